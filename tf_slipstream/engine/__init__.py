"""A training step of tables, whatever trains them: one device, replicas, parameter servers.

Between Keras's surface above (`embedding`, `optimizer`) and the ops below. `registry` knows which
variables are tables and who holds something of them; `tables` does a step; a file for each strategy
says what travels. No Keras class belongs here. To add a strategy: a file with the methods of
`one_device.OneDevice`, its place in `tables`, and its tests in `tests/distribute`.
"""
