"""What `distribution.py` runs: bytes that travel between devices and machines, and step times.

One module per strategy, with a `measure(args)` that yields results and returns ratios; subjects run
in processes of their own. To add a strategy, list its module in `distribution.py`.
"""
