"""A pickle reader that can build tensors and plain containers, and can run nothing.

A pickle is a program: it names functions of any module and calls them.  Here a name is looked up in one table of
our own functions, nothing is imported, and what the table holds takes no attributes, so that a pickle cannot change
it either.  The opcodes are checked before any of them runs (``pickle_check``).  What torch
writes is described by its own reader,
[torch/serialization.py and torch/_utils.py](https://github.com/pytorch/pytorch/tree/main/torch).
"""

import io
import pickle
import reprlib
from collections.abc import Callable, Mapping
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np

from jaxdet.checkpoints.files.pickle_check import check_opcodes
from jaxdet.checkpoints.tree import Array

LARGEST_EXPANDED = 1 << 26
"""Bytes that a tensor larger than its storage (torch's ``expand``: a stride of 0) may have."""

_STORAGE_DTYPES: Mapping[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "ComplexFloatStorage": np.complex64,
    "ComplexDoubleStorage": np.complex128,
    "UntypedStorage": np.uint8,
}
# Types without a storage class of their own: torch names the dtype itself.
_NAMED_DTYPES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_NUMPY_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


class Dtype:
    """The element type that a torch storage class or dtype stands for."""

    __slots__ = ("numpy",)
    numpy: np.dtype[Any]

    def __init__(self, numpy: Any) -> None:
        object.__setattr__(self, "numpy", np.dtype(numpy))

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("a Dtype does not change")


class _Call:
    """A function that a pickle may call; it has no attributes that the pickle could set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("an allowed function does not change")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Copies:
    """What the calls of one pickle may copy, in elements: it can give the same argument again and again."""

    def __init__(self, most: int) -> None:
        self._left = most

    def counted(self, function: Callable[..., Any]) -> _Call:
        """A function that takes its arguments' lengths off.  ValueError where nothing is left."""

        def call(*args: Any) -> Any:
            self._left -= sum(len(arg) for arg in args if hasattr(arg, "__len__"))
            if self._left < 0:
                raise ValueError("calls that copy more than the pickle holds")
            return function(*args)

        return _Call(call)


class _Dict(dict[Any, Any]):
    """An OrderedDict of the file; its attributes (torch's ``_metadata`` of module versions) are not kept."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def rebuild_tensor(storage: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Array:
    """The view of ``storage`` (one axis) with these sizes and strides, counted in elements.

    ``rest`` is requires_grad, backward hooks, and in newer files a dictionary of flags, all of which must be off.
    ValueError where the view leaves the storage.
    """
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
        raise ValueError(f"a tensor without a storage: {type(storage).__name__}")
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride) <= 32):
        raise ValueError(f"a tensor of size {reprlib.repr(size)} and strides {reprlib.repr(stride)}")
    if not all(type(n) is int and n >= 0 for n in (offset, *size, *stride)):
        numbers = [reprlib.repr(part) for part in (size, stride, offset)]
        raise ValueError("a tensor of size {}, strides {} and offset {}".format(*numbers))
    if len(rest) > 2 and rest[2]:
        raise ValueError(f"a tensor with the flags {reprlib.repr(rest[2])}, which are not supported")
    if 0 in size:
        return np.zeros(size, storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise ValueError(f"a tensor reaches element {last} of a storage with {storage.size}")
    elements = 1
    for n in size:
        elements *= n
    if elements > storage.size and elements * storage.itemsize > LARGEST_EXPANDED:
        raise ValueError(f"a tensor of {elements} elements on a storage of {storage.size}")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _rebuild_tensor_v3(
    storage: Array,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    grad: Any,
    hooks: Any,
    dtype: Any,
    *rest: Any,
) -> Array:
    if not isinstance(dtype, Dtype) or not isinstance(storage, np.ndarray) or storage.dtype != np.uint8:
        raise ValueError("a tensor of an unknown type")
    if storage.size % dtype.numpy.itemsize:
        raise ValueError(f"a storage of {storage.size} bytes for elements of {dtype.numpy.itemsize}")
    return rebuild_tensor(storage.view(dtype.numpy), offset, size, stride, grad, hooks, *rest)


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with Python attributes of its own: the tensor."""
    if not isinstance(function, _Call):
        raise ValueError("a tensor made by an unknown function")
    return function(*args)


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _ordered_dict(pairs: Any = ()) -> _Dict:
    """An OrderedDict as Python 2 wrote it, with its items as an argument; keys as ``pickle_check`` allows them."""
    ordered = _Dict()
    for key, value in pairs:
        if not (type(key) is str or (type(key) is int and key.bit_length() < 64)):
            raise ValueError("a key that is neither a number of 64 bits nor a string")
        ordered[key] = value
    return ordered


def _device(*parts: Any) -> str:
    if not all(type(part) in (str, int) for part in parts):
        raise ValueError("a device that is not given by its kind and number")
    return ":".join(str(part) for part in parts)


def _allowed(copies: _Copies) -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): copies.counted(_ordered_dict),
        ("torch._utils", "_rebuild_tensor"): _Call(rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Call(rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): _Call(_rebuild_tensor_v3),
        ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
        ("torch._utils", "_rebuild_parameter_with_state"): _Call(lambda data, *_: data),
        ("torch._tensor", "_rebuild_from_type_v2"): _Call(_rebuild_from_type),
        ("torch", "Tensor"): "torch.Tensor",
        ("torch.nn.parameter", "Parameter"): "torch.nn.Parameter",
        ("torch", "Size"): copies.counted(lambda sizes=(): tuple(sizes)),
        ("torch", "device"): copies.counted(_device),
        ("_codecs", "encode"): copies.counted(_encode),
    }
    for name, dtype in _STORAGE_DTYPES.items():
        allowed |= {(module, name): Dtype(dtype) for module in ("torch", "torch.cuda", "torch.storage")}
    allowed |= {("torch", name): Dtype(getattr(ml_dtypes, name)) for name in (*_NAMED_DTYPES, "bfloat16")}
    return allowed | {("torch", name): Dtype(name) for name in (*_NUMPY_DTYPES, "uint64")}


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: IO[bytes], size: int, storage: Callable[[tuple[Any, ...]], Array]) -> None:
        super().__init__(file, encoding="utf-8")
        # A call with arguments takes six bytes or more, so that short ones may come again.
        self._storage, self._allowed = storage, _allowed(_Copies(4 * size))

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._allowed[module, name]
        except KeyError:
            raise ValueError(
                f"it wants to call {module}.{name}, which is refused: only tensors, numbers, strings and plain "
                "containers are read. Save the bare state dict (name -> tensor) and load that"
            ) from None

    def persistent_load(self, pid: Any) -> Array:
        if not isinstance(pid, tuple) or not pid or pid[0] != "storage":
            raise ValueError(
                f"it refers to {reprlib.repr(pid)}, expected a storage; whole pickled modules are not read"
            )
        return self._storage(pid)


def no_storage(pid: tuple[Any, ...]) -> NoReturn:
    """For pickles that hold no tensors."""
    raise ValueError("a tensor where none belongs")


def load(file: IO[bytes], storage: Callable[[tuple[Any, ...]], Array] = no_storage) -> Any:
    """The next pickle of ``file``, which is left behind it.

    ``storage`` maps a persistent id, ``("storage", Dtype, key, ...)``, to an array of one axis.  Tensors come as
    read-only views of those arrays.  ValueError says what was refused or broken.
    """
    start = file.tell()
    try:
        check_opcodes(file)
        size = file.tell() - start
        file.seek(start)
        return _Unpickler(file, size, storage).load()
    except ValueError:
        raise
    except Exception as error:  # whatever a broken program of opcodes runs into
        raise ValueError(f"a broken pickle: {type(error).__name__}: {error}") from None


def loads(data: bytes, storage: Callable[[tuple[Any, ...]], Array] = no_storage) -> Any:
    """``load`` of bytes that hold one pickle and nothing else."""
    file = io.BytesIO(data)
    value = load(file, storage)
    if file.tell() != len(data):
        raise ValueError(f"{len(data) - file.tell()} bytes after the end of the pickle")
    return value
