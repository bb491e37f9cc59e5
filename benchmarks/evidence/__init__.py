"""Convergence: tasks, schedules under test, the plan of runs, their statistics and the report on them."""
