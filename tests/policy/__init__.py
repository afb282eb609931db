"""Tests of which rows are stale, against a slow model of docs/reference/sleeping_rows.md.

What belongs here: everything that a `StalenessPolicy` does to tables. A new rule needs its held sum
in `reference.py`; a new field of the policy its line there and in `training.py`'s `policies`.
"""
