"""Tests of `tf_slipstream.update_rules`: what a rule takes from its Keras optimizer.

The equations are tested in `tests/ops`, where native and plain-TensorFlow ops meet the oracle. To
add one: the rule's row in `RULES` of `test_update_rules.py`.
"""
