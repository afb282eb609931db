"""Tests of publishing.

What a serving host runs is tested in processes that have no TensorFlow; see `processes`.
"""
