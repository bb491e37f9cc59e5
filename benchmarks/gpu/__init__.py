"""What `python -m benchmarks.gpu_check` consists of: its stages, what runs them, how they ended, and a summary of what
they measured. `runner` and `outcome` need the standard library only.
"""
