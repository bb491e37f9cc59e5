"""What `python -m benchmarks.convergence` consists of: tasks, schedules under test, the plan of runs, their statistics
and the report on them.
"""
