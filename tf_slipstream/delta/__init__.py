"""Published changes on disk: versions, deltas, their checksums, and the next version made of both.

What a serving host runs and what publishing writes with: the standard library and NumPy, no
TensorFlow and no other part of the package; a test checks it. Not here: models, training, and what
makes a SavedModel; see `export`. To add a kind of file: a module of its own on top of
`sealed_file`, as `delta_file` is. Check every field of it with `fields` before it is used.
"""
