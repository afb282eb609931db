"""Tests of `tf_slipstream.ops`: one file per op, with the native ops and on plain TensorFlow ops.

Tests that need a Keras layer or optimizer of ours do not belong here. To add one: a function in the
file of its op; `tables.py` builds tables, trains them and compares them with `tests/reference.py`.
"""
