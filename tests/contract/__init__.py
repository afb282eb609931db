"""What `tf_slipstream._compat` relies on of either Keras that is not in its documentation.

A test here fails when a new Keras renames or changes something private, and names it; it uses no
code of ours where it can do without. To add one: a test named after the private name, in the file
of the Keras that has it; `test_compat.py` finds private names that have none.
"""
