"""Compares trained configurations: quality and how sure it is, time, memory, what it is worth.

Belongs here: what saves a run's test scores, and statistics of saved runs, in NumPy alone. What
trains is the user's file (`training.py`). What only prints is in `cli`.
To add a measure: a function in `statistics.py`, its line in `compare.py`, and its cell in
`report.py`.
"""
