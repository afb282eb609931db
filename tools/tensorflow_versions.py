"""The TensorFlow versions that a wheel has native ops for, and what each is tested with."""

import typing


class Tested(typing.NamedTuple):
    """What a version is tested with.

    Attributes:
        python: The Python, `"major.minor"`.
        keras: Requirement of Keras 3.
    """

    python: str
    keras: str


# The oldest with the oldest Keras that works; together they have every Python.
TENSORFLOW_VERSIONS = {
    "2.18": Tested("3.10", "keras==3.8.*"),
    "2.19": Tested("3.11", "keras"),
    "2.20": Tested("3.12", "keras"),
    "2.21": Tested("3.13", "keras"),
}
OLDEST, NEWEST = min(TENSORFLOW_VERSIONS), max(TENSORFLOW_VERSIONS)
# Has wheels of every version above.
PYTHON_OF_ALL = "3.12"
