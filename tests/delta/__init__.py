"""Tests of what is on the disk and of what serving hosts do with it."""
