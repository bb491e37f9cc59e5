"""`python -m greedylr_fused COMMAND`: `doctor`, `bench`, `plot` and `refine`, each a module or folder of its name."""
