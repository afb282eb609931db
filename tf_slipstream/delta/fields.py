"""Checks what a JSON text holds, before anything relies on it.

A checksum tells that a text is as it was written. It does not tell that the writer made sense.
"""

import json
import re
import typing

from tf_slipstream.delta.errors import ExportError

_SHOWN_CHARACTERS = 60


class Kind(typing.NamedTuple):
    """What the value of a field must be.

    Attributes:
        expected: In words.
        is_right: Function that tells of a value whether it is that.
    """

    expected: str
    is_right: typing.Callable


def _is_hexadecimal(value, num_digits):
    return isinstance(value, str) and re.fullmatch(f"[0-9a-f]{{{num_digits}}}", value) is not None


TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXT_OR_NULL = Kind("a text or null", lambda value: value is None or isinstance(value, str))
COUNT = Kind(
    "an integer from 0 to 2**63 - 1", lambda value: type(value) is int and 0 <= value < 1 << 63
)
ID = Kind("16 hexadecimal digits", lambda value: _is_hexadecimal(value, 16))
SHA256 = Kind("64 hexadecimal digits", lambda value: _is_hexadecimal(value, 64))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
COUNTS = Kind(
    "a list of integers from 0 to 2**63 - 1",
    lambda value: isinstance(value, list) and all(map(COUNT.is_right, value)),
)


def one_of(*values):
    """Returns the kind of a text that must be one of these."""
    return Kind(f"one of {', '.join(values)}", lambda value: value in values)


def values_are(kind):
    """Returns the kind of an object whose values are all of a kind."""
    return Kind(
        f"an object whose values are {kind.expected}",
        lambda value: isinstance(value, dict) and all(map(kind.is_right, value.values())),
    )


def read_json(data):
    """Returns the object that a JSON text holds, a dict.

    Args:
        data: Bytes, UTF-8.

    Raises:
        ExportError: If they are no JSON, an object repeats a name, or it is no object.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_repeats)
    except ExportError:
        raise
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise ExportError(f"its text is no JSON that can be read: {reason}") from None
    if not isinstance(value, dict):
        raise ExportError(f"its text is {_shown(value)} where an object belongs")
    return value


def check_fields(value, what, **kinds):
    """Checks that an object has exactly these fields, each of its kind, and returns it.

    Args:
        value: What JSON gave.
        what: What the object is, for errors.
        **kinds: A `Kind` for each field.

    Raises:
        ExportError: If it is not so; it names the field.
    """
    if not isinstance(value, dict):
        raise ExportError(f"{what} is {_shown(value)} where an object belongs")
    for name in [*kinds, *value]:
        if name not in value:
            raise ExportError(f"{what} has no field '{name}'")
        if name not in kinds:
            raise ExportError(f"{what} has a field {_shown(name)}, which is not known")
        if not kinds[name].is_right(value[name]):
            raise ExportError(
                f"{what} has {_shown(value[name])} as '{name}' where {kinds[name].expected} belongs"
            )
    return value


def _without_repeats(pairs):
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ExportError("an object of its text repeats a name")
    return value


def _shown(value):
    """Returns what a value is, in a few words."""
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "a list"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."
