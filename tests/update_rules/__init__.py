"""Tests of `tf_slipstream.update_rules`: what a rule takes from its Keras optimizer, and what its
gradients do to a row in the end.

The equations are tested in `tests/ops`, where native and plain-TensorFlow ops meet the oracle. To
add one: the rule's row in `RULES` of `test_update_rules.py`, and in `CASES` of
`test_conservation.py` where it has momentum.
"""
