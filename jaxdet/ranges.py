"""Ranges of settings: what the classes of a config check when they are made.

A setting out of range would otherwise show as a division by zero, as memory that no machine has, or as a model that
finds nothing.
"""

from typing import Any, NamedTuple


class Range(NamedTuple):
    """Numbers from ``least`` to ``most``, but for those in ``without``; ``odd``: odd whole numbers alone."""

    least: float
    most: float
    without: tuple[float, ...] = ()
    odd: bool = False

    def has(self, value: float) -> bool:
        """Whether a number is one of them; NaN never is."""
        inside = self.least <= value <= self.most and value not in self.without
        return inside and (not self.odd or value % 2 == 1)

    def __str__(self) -> str:
        left_out = f", not {' or '.join(map(_text, self.without))}" if self.without else ""
        return f"{'an odd' if self.odd else 'a'} number from {_text(self.least)} to {_text(self.most)}{left_out}"


def _text(number: float) -> str:
    return f"{int(number):,}" if number == int(number) else str(number)


# Upper bounds are far above what anyone has a use for, and below what takes all memory of a machine.
CHANNELS = Range(1, 2**16)
CLASSES = Range(1, 10**5)
CROP = Range(1, 512)  #: pixels of a side
DETECTIONS = Range(1, 10**5)
HEADS = Range(0, 99)
KERNEL = Range(1, 63, odd=True)  #: an even one has no centre, and a crop would change its size
LAYERS = Range(0, 100)
LEVELS = Range(0, 12)  #: log2 of a stride
SAMPLES = Range(0, 64)  #: of a bin along each axis; 0: adaptive
SHARE = Range(0, 1)
WEIGHT = Range(0, 10**6)


def positive(most: float) -> Range:
    """Numbers above 0."""
    return Range(0, most, without=(0,))


def check_ranges(owner: object, **ranges: Range) -> None:
    """Check settings of a dataclass or module; called by its ``__post_init__``.

    A setting that is None passes, and so does what is no number: types are checked by `jaxdet.config.check`.  Of a
    tuple every number is checked, and there must be one.

    Args:
        owner: the object.
        ranges: for each setting the numbers that it may be.

    Raises:
        ValueError: names the setting, its range and what it is.
    """
    for name, allowed in ranges.items():
        value: Any = getattr(owner, name)
        members = value if isinstance(value, tuple) else (value,)
        if not members or any(isinstance(number, (int, float)) and not allowed.has(number) for number in members):
            many = " in each place" if isinstance(value, tuple) else ""
            raise ValueError(f"{type(owner).__name__}.{name}: expected {allowed}{many}, got {value}")
