"""What the pickles of NumPy name: element types and arrays, in forms that take nothing else.

NumPy pickles an array as a call that makes an empty one, which the pickle then fills with shape, type and bytes
([numpy/_core/multiarray and ndarray.__reduce__](https://github.com/numpy/numpy)); since protocol 5 as one call.
"""

import math
import reprlib
from typing import Any, NoReturn

import numpy as np

from jaxdet.checkpoints.tree import Array

#: NumPy's codes of numbers: b1, f2, .., u8.
_CODES = frozenset(["b1", "f2", "f4", "f8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))])
NDARRAY = "numpy.ndarray"  #: stands for the class, which pickles name and nothing here uses


class Dtype:
    """The element type that a torch storage class or dtype stands for; a pickle cannot change it."""

    __slots__ = ("numpy",)
    numpy: np.dtype[Any]

    def __init__(self, numpy: Any) -> None:
        object.__setattr__(self, "numpy", np.dtype(numpy))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Dtype does not change")


class ArrayDtype(Dtype):
    """What NumPy's pickles call a dtype, of which they set the byte order."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", "|") or any(state[2:5]):
            raise ValueError(f"an element type that is none of numbers in little-endian order: {reprlib.repr(state)}")


class PickledArray:
    """An array of NumPy, which its pickles make empty and then fill; ``array`` is read-only."""

    __slots__ = ("array",)
    array: Array

    def __init__(self) -> None:
        self.array = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise ValueError(f"an array described by {reprlib.repr(state)}")
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> Array:
    """The array of these bytes, which are not copied; ValueError if they are not those of the shape."""
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray) or order not in ("C", "F"):
        raise ValueError(f"an array of {type(dtype).__name__}, {type(data).__name__} in order {reprlib.repr(order)}")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {reprlib.repr(shape)}")
    if len(data) != math.prod(shape) * dtype.numpy.itemsize:
        raise ValueError(f"an array of shape {shape} and {dtype.numpy} with {len(data)} bytes")
    array: Array = np.frombuffer(data, dtype.numpy).reshape(shape, order=order)
    array.flags.writeable = False
    return array


def empty_array(kind: Any, shape: Any, code: Any) -> PickledArray:
    """What NumPy's ``_reconstruct`` makes; shape and type come later."""
    if kind != NDARRAY:
        raise ValueError("an array of a class of its own")
    return PickledArray()


def whole_array(data: Any, dtype: Any, shape: Any, order: Any) -> PickledArray:
    """What NumPy's ``_frombuffer`` makes, in pickles of protocol 5."""
    made = PickledArray()
    made.array = _array(data, dtype, shape, order)
    return made


def array_dtype(code: Any, *_: Any) -> ArrayDtype:
    """The element type of a NumPy array by its code, as ``f4``."""
    if code not in _CODES:
        raise ValueError(f"an array of {reprlib.repr(code)}, expected one of numbers")
    return ArrayDtype(code)
