"""What a table carries beside its rows: named columns and their version, variables, statistics.

Plain values and `tf.Variable`s; nothing here decides or computes a step. To add a column: its name
in `schema.py` and in `custom_ops/kernels/schema.h`, and the version in both.
"""
