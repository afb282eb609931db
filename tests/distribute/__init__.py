"""Tests of training on several devices and machines.

`replicas.py` trains a table on virtual devices of this process, `processes.py` starts clusters of
real processes. To add a test of rows over replicas, compare with one device as `test_replicas.py`
does: where sums of gradients are exact, all is equal to the bit.
"""
