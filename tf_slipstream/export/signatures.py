"""What a served model is asked, by the names that TensorFlow Serving's users expect."""

import tensorflow as tf

# The type that a feature has in a `tf.Example`.
_EXAMPLE_DTYPES = {"i": tf.int64, "u": tf.int64, "f": tf.float32, "b": tf.int64}


def signatures_of(model, inputs=None, examples=None):
    """Makes the signatures of a model.

    Args:
        model: Keras model or layer.
        inputs: What it is called with: a spec (`tf.TensorSpec`, `tf.RaggedTensorSpec`,
            `tf.SparseTensorSpec`), or a dict, list or tuple of specs. None: what it was made with.
        examples: Whether to have the signatures that take `tf.Example`s; None: if its inputs can be
            read from them.

    Returns:
        Dict from name to concrete function, see `save_version`.

    Raises:
        ValueError: If `inputs` is needed, or `examples` cannot be had.
    """
    structure = inputs if inputs is not None else _inputs_of(model)
    specs = _named_specs(structure)
    components = {name: part for one in specs.items() for name, part in _components(*one).items()}

    def serve(**tensors):
        values = {name: _assemble(name, spec, tensors) for name, spec in specs.items()}
        return _named_outputs(_call(model, structure, values))

    signatures = {"serving_default": tf.function(serve).get_concrete_function(**components)}
    reason = _why_no_examples(specs)
    if examples and reason:
        raise ValueError(f"The signatures for tf.Example cannot be made: {reason}.")
    if examples is not False and not reason:
        signatures |= _example_signatures(model, structure, specs)
    return signatures


def _example_signatures(model, structure, specs):
    features = {name: _feature(spec) for name, spec in specs.items()}
    one_string = tf.TensorSpec([None], tf.string)

    def answer(serialized):
        parsed = tf.io.parse_example(serialized, features)
        values = {name: tf.cast(parsed[name], spec.dtype) for name, spec in specs.items()}
        for name, spec in specs.items():
            if isinstance(spec, tf.TensorSpec):
                values[name] = tf.ensure_shape(values[name], spec.shape)
        return _named_outputs(_call(model, structure, values))

    @tf.function
    def predict(examples):
        return answer(examples)

    @tf.function
    def regression(inputs):
        (scores,) = answer(inputs).values()
        return {"outputs": scores}

    predict = predict.get_concrete_function(one_string)
    signatures = {"predict": predict}
    outputs = list(predict.structured_outputs.values())
    if len(outputs) == 1 and outputs[0].dtype == tf.float32 and outputs[0].shape[1:] == [1]:
        signatures["regression"] = regression.get_concrete_function(one_string)
    return signatures


def _inputs_of(model):
    """Returns the specs that a model was built with, in the structure that it is called with."""
    if getattr(model, "inputs", None):
        return tf.nest.map_structure(_spec_of, model.input)
    # tf_keras remembers what a subclassed model was first called with.
    spec = model.save_spec() if hasattr(model, "save_spec") else None
    if spec is not None:
        return tf.nest.map_structure(lambda one: one, spec[0][0])
    raise ValueError(
        f"`inputs` is needed for {model!r}, which does not say what it is called with: give specs, "
        'say inputs={"user": tf.TensorSpec([None], tf.int64)}.'
    )


def _spec_of(tensor):
    """Returns the spec of a Keras input."""
    spec = getattr(tensor, "type_spec", None)
    if spec is not None and not isinstance(spec, tf.TensorSpec):
        return _NamedSpec(spec, tensor.name)
    dtype = tf.as_dtype(tensor.dtype)
    if getattr(tensor, "ragged", False):
        return _NamedSpec(tf.RaggedTensorSpec(tensor.shape, dtype, 1), tensor.name)
    if getattr(tensor, "sparse", False):
        return _NamedSpec(tf.SparseTensorSpec(tensor.shape, dtype), tensor.name)
    return tf.TensorSpec(tensor.shape, dtype, tensor.name)


class _NamedSpec:
    """A spec with a name, which those of ragged and sparse tensors lack."""

    def __init__(self, spec, name):
        self.spec, self.name = spec, name


def _named_specs(structure):
    """Returns the specs of a structure by name: its key in a dict, else its own or a number."""
    if not isinstance(structure, (dict, list, tuple)):
        structure = [structure]
    is_dict = isinstance(structure, dict)
    named = {}
    for place, one in structure.items() if is_dict else enumerate(structure):
        name = place if is_dict else getattr(one, "name", None) or f"input_{place}"
        spec = one.spec if isinstance(one, _NamedSpec) else one
        if not isinstance(spec, (tf.TensorSpec, tf.RaggedTensorSpec, tf.SparseTensorSpec)):
            raise ValueError(
                f"`inputs` must be a spec, or a dict, list or tuple of specs; got {one!r}."
            )
        named[name] = spec
    return named


def _components(name, spec):
    """Returns the dense tensors that an input is made of, as specs by name."""
    if isinstance(spec, tf.TensorSpec):
        return {name: tf.TensorSpec(spec.shape, spec.dtype, name)}
    if isinstance(spec, tf.RaggedTensorSpec):
        parts = {"values": ([None], spec.dtype), "row_splits": ([None], tf.int64)}
    else:
        rank = spec.shape.rank
        parts = {
            "indices": ([None, rank], tf.int64),
            "values": ([None], spec.dtype),
            "dense_shape": ([rank], tf.int64),
        }
    return {f"{name}_{part}": tf.TensorSpec(*of, f"{name}_{part}") for part, of in parts.items()}


def _assemble(name, spec, tensors):
    parts = [tensors[component] for component in _components(name, spec)]
    if isinstance(spec, tf.TensorSpec):
        return parts[0]
    make = tf.RaggedTensor.from_row_splits
    return make(*parts) if isinstance(spec, tf.RaggedTensorSpec) else tf.SparseTensor(*parts)


def _call(model, structure, values):
    if isinstance(structure, dict):
        return model(values, training=False)
    values = list(values.values())
    if not isinstance(structure, (list, tuple)):
        values = values[0]
    return model(values, training=False)


def _named_outputs(outputs):
    if isinstance(outputs, dict):
        return outputs
    return {f"output_{place}": one for place, one in enumerate(tf.nest.flatten(outputs))}


def _why_no_examples(specs):
    """Returns why inputs cannot be read from `tf.Example`s; None if they can."""
    for name, spec in specs.items():
        is_known = spec.dtype == tf.string or spec.dtype.as_numpy_dtype().dtype.kind in "iufb"
        if not is_known:
            return f"'{name}' is {spec.dtype.name}, which no feature can be"
        if isinstance(spec, tf.TensorSpec):
            if not spec.shape.rank or not spec.shape[1:].is_fully_defined():
                return f"'{name}' has shape {spec.shape}, and only its first axis may be unknown"
        elif spec.shape.rank != 2:
            return f"'{name}' has {spec.shape.rank} axes, and a feature that varies has 2"
    return None


def _feature(spec):
    kind = spec.dtype.as_numpy_dtype
    dtype = tf.string if spec.dtype == tf.string else _EXAMPLE_DTYPES[kind().dtype.kind]
    if isinstance(spec, tf.TensorSpec):
        return tf.io.FixedLenFeature(spec.shape[1:], dtype)
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.io.RaggedFeature(dtype, row_splits_dtype=tf.int64)
    return tf.io.VarLenFeature(dtype)
