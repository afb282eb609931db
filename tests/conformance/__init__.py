"""What every public class owes a Keras user: config, serialisation, `tf.function`, docstring.

Nothing of one class alone: that is in its own test. A new public Keras class is found by itself,
and needs an entry in `KERAS_OBJECTS` of `test_keras_objects.py`.
"""
