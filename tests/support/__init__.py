"""What the tests share.

`tensors` compares bits and errors, `oracle` and `golden` know what is right, `ranks` runs several processes that cannot
hang; the others stand in for what a test has no use for, or look at what a machine would run.
"""
