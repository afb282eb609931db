"""TensorFlow's names of its types, in the order of its `DataType`, and their bytes."""

# Number, name, and bytes of an element; None where it has no fixed number of them.
_DTYPES = (
    (1, "float32", 4),
    (2, "float64", 8),
    (3, "int32", 4),
    (4, "uint8", 1),
    (5, "int16", 2),
    (6, "int8", 1),
    (7, "string", None),
    (8, "complex64", 8),
    (9, "int64", 8),
    (10, "bool", 1),
    (11, "qint8", 1),
    (12, "quint8", 1),
    (13, "qint32", 4),
    (14, "bfloat16", 2),
    (15, "qint16", 2),
    (16, "quint16", 2),
    (17, "uint16", 2),
    (18, "complex128", 16),
    (19, "float16", 2),
    (20, "resource", None),
    (21, "variant", None),
    (22, "uint32", 4),
    (23, "uint64", 8),
)
_NAMES = {number: name for number, name, _ in _DTYPES}
_NUM_BYTES = {name: num_bytes for _, name, num_bytes in _DTYPES}


def name_of(number):
    """Returns the name of a type, by its number in `DataType`."""
    return _NAMES.get(number, f"type {number}")


def bytes_of_element(name):
    """Returns the bytes of an element; None where they are not fixed, or the type is not known."""
    return _NUM_BYTES.get(name)
