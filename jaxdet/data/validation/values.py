"""Values of a json from anyone, each looked at before it is used.

Every function returns the value in its type, or raises a ValueError that says what was expected and what came.
"""

import sys
import unicodedata
from collections.abc import Mapping
from typing import Any

_WHOLE = range(-(1 << 63), 1 << 63)  # int64


def short(value: object, length: int = 60) -> str:
    """A value as ASCII text for a message, whatever it holds and however large it is."""
    try:
        text = ascii(value[: length + 1] if isinstance(value, str | bytes | list | tuple) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, or lists in lists in lists
        return f"a {type(value).__name__} that cannot be printed"
    return text if len(text) <= length else text[: length - 3] + "..."


def printable(text: str) -> str:
    """Text, a file's name say, with all that a terminal would obey or refuse written out; new lines stay."""
    return "".join(letter if letter.isprintable() or letter == "\n" else ascii(letter)[1:-1] for letter in text)


def value_of(entry: Any, key: str) -> Any:
    """What an object of the json has under a key."""
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected an object, got {short(entry)}")
    if key not in entry:
        raise ValueError(f"expected the key {key!r}, got {short(list(entry))}")
    return entry[key]


def whole(entry: Any, key: str) -> int:
    """An integer of 64 bits; 3.0 counts as 3, true does not count as 1."""
    value = value_of(entry, key)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if type(value) is not int or value not in _WHOLE:
        raise ValueError(f"{key}: expected a whole number, got {short(value)}")
    return value


def text(entry: Any, key: str) -> str:
    """A string without control characters, which a terminal would obey, and without halves of characters."""
    value = value_of(entry, key)
    if not isinstance(value, str) or any(unicodedata.category(letter) in ("Cc", "Cs") for letter in value):
        raise ValueError(f"{key}: expected a string without control characters, got {short(value)}")
    return value


def flag(entry: Any, key: str) -> bool:
    """0, 1, false or true; absent or null is false."""
    value = entry.get(key)
    if value is not None and (type(value) not in (int, float, bool) or value not in (0, 1)):
        raise ValueError(f"{key}: expected 0 or 1, got {short(value)}")
    return bool(value)


def is_number(value: Any, most: float = sys.float_info.max) -> bool:
    """Whether a value is a number and at most ``most`` away from 0, which neither infinity is nor what is no number."""
    return type(value) in (int, float) and -most <= value <= most
