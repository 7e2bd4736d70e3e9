"""A pickle reader that can build tensors, arrays and plain containers, and can run nothing else.

A pickle is a program: it names functions of any module and calls them.  Two things keep it harmless here.  Before
anything runs, its opcodes are checked (`_check_opcodes`): no construction of objects, bounded memory, bounded nesting.
Then names are looked up in one table of our own functions (`_allowed`); nothing is imported, and what the table holds
takes no attributes, so that a pickle cannot change it either.

What torch writes is described by its own reader,
[torch/serialization.py and torch/_utils.py](https://github.com/pytorch/pytorch/tree/main/torch).
"""

import io
import math
import pickle
import pickletools
import reprlib
from collections.abc import Callable, Mapping
from typing import IO, Any, NoReturn

import ml_dtypes
import numpy as np

from jaxdet.checkpoints.files.pickled_arrays import NDARRAY, Dtype, array_dtype, empty_array, whole_array
from jaxdet.checkpoints.tree import Array

#: Bytes that a tensor larger than its storage may have.  torch's ``expand`` makes such tensors, with a stride of 0;
#: a later copy of one would take all the memory that its shape claims.
_MAX_EXPANDED_BYTES = 1 << 26

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
# For types without a storage class of their own, torch stores the name of the dtype.
_NAMED_DTYPES = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
_NUMPY_DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32")


class _Call:
    """A function that a pickle may call; there is no attribute that the pickle could set."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError("an allowed function does not change")

    def __call__(self, *args: Any) -> Any:
        return self._function(*args)


class _Copies:
    """A budget for what the calls of one pickle copy, in elements.

    A call takes few bytes in the pickle, and may have the same large argument as the calls before: without a budget
    a small file could make thousands of copies of it.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def counted(self, function: Callable[..., Any]) -> _Call:
        """Wrap a function so that the lengths of its arguments are charged; ValueError when the budget is spent."""

        def call(*args: Any) -> Any:
            self._left -= sum(len(arg) for arg in args if hasattr(arg, "__len__"))
            if self._left < 0:
                raise ValueError("calls that copy more than the pickle holds")
            return function(*args)

        return _Call(call)


class _Dict(dict[Any, Any]):
    """An OrderedDict of the file; its attributes (torch's ``_metadata``, versions of modules) are not kept."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


def _rebuild_tensor(storage: Array, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Array:
    """Make the view that torch calls a tensor.

    Args:
        storage: ``[n]`` elements.
        offset: where the view begins, in elements, as the strides.
        size: the view's shape.
        stride: the step of each axis.
        rest: requires_grad, backward hooks, and in newer files a dictionary of flags, all of which must be off.

    Raises:
        ValueError: a part is of another type than torch writes, or the view leaves the storage.
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
    # `as_strided` checks nothing: a view beyond the storage would read other memory of the process.
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if last >= storage.size:
        raise ValueError(f"a tensor reaches element {last} of a storage with {storage.size}")
    elements = math.prod(size)
    if elements > storage.size and elements * storage.itemsize > _MAX_EXPANDED_BYTES:
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
    """As `_rebuild_tensor`, of a storage without a type: the dtype is an argument of its own."""
    if not isinstance(dtype, Dtype) or not isinstance(storage, np.ndarray) or storage.dtype != np.uint8:
        raise ValueError("a tensor of an unknown type")
    if storage.size % dtype.numpy.itemsize:
        raise ValueError(f"a storage of {storage.size} bytes for elements of {dtype.numpy.itemsize}")
    return _rebuild_tensor(storage.view(dtype.numpy), offset, size, stride, grad, hooks, *rest)


def _rebuild_from_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with Python attributes, such as a subclass's; the attributes are dropped."""
    if not isinstance(function, _Call):
        raise ValueError("a tensor made by an unknown function")
    return function(*args)


def _encode(text: str, encoding: str) -> bytes:
    """Bytes, which pickles of protocol 2 hold as text in latin1."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {reprlib.repr(encoding)}")
    return text.encode("latin1")


def _ordered_dict(pairs: Any = ()) -> _Dict:
    """An OrderedDict as Python 2 wrote it, with its items as an argument.

    `_check_keys` does not see these keys, so the same rule is applied here.
    """
    ordered = _Dict()
    for key, value in pairs:
        if not (type(key) is str or (type(key) is int and key.bit_length() < 64)):
            raise ValueError("a key that is neither a number of 64 bits nor a string")
        ordered[key] = value
    return ordered


def _device(*parts: Any) -> str:
    """torch's device as text, such as ``cuda:0``; nothing here uses it, but old files name one for each storage."""
    if not all(type(part) in (str, int) for part in parts):
        raise ValueError("a device that is not given by its kind and number")
    return ":".join(str(part) for part in parts)


def _allowed(copies: _Copies) -> dict[tuple[str, str], Any]:
    """What a pickle may name: (module, name) -> our function or value."""
    # Only what is as long as its arguments is charged; tensors are views, and copy nothing.
    allowed: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): copies.counted(_ordered_dict),
        ("torch._utils", "_rebuild_tensor"): _Call(_rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v2"): _Call(_rebuild_tensor),
        ("torch._utils", "_rebuild_tensor_v3"): _Call(_rebuild_tensor_v3),
        ("torch._utils", "_rebuild_parameter"): _Call(lambda data, *_: data),
        ("torch._utils", "_rebuild_parameter_with_state"): _Call(lambda data, *_: data),
        ("torch._tensor", "_rebuild_from_type_v2"): _Call(_rebuild_from_type),
        # Classes that torch passes to `_rebuild_from_type_v2`, which ignores them.
        ("torch", "Tensor"): "torch.Tensor",
        ("torch.nn.parameter", "Parameter"): "torch.nn.Parameter",
        ("torch", "Size"): copies.counted(lambda sizes=(): tuple(sizes)),
        ("torch", "device"): copies.counted(_device),
        ("_codecs", "encode"): copies.counted(_encode),
        ("__builtin__", "bytes"): _Call(lambda: b""),  # how protocol 2 writes no bytes at all
        ("numpy", "ndarray"): NDARRAY,
        ("numpy", "dtype"): _Call(array_dtype),
    }
    for core in ("numpy.core", "numpy._core"):  # before NumPy 2 and since
        allowed[f"{core}.multiarray", "_reconstruct"] = _Call(empty_array)
        allowed[f"{core}.numeric", "_frombuffer"] = _Call(whole_array)
    for name, dtype in _STORAGE_DTYPES.items():
        allowed |= {(module, name): Dtype(dtype) for module in ("torch", "torch.cuda", "torch.storage")}
    allowed |= {("torch", name): Dtype(getattr(ml_dtypes, name)) for name in (*_NAMED_DTYPES, "bfloat16")}
    return allowed | {("torch", name): Dtype(name) for name in (*_NUMPY_DTYPES, "uint64")}


class _Unpickler(pickle.Unpickler):
    """Python's unpickler, with names from `_allowed` and tensors' storages from ``storage``; ``size`` in bytes."""

    def __init__(self, file: IO[bytes], size: int, storage: Callable[[tuple[Any, ...]], Array]) -> None:
        super().__init__(file, encoding="utf-8")
        # A call takes six bytes or more, so this allows the short arguments that torch repeats in every tensor.
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


def _no_storage(pid: tuple[Any, ...]) -> NoReturn:
    """The storages of a pickle that must hold no tensors."""
    raise ValueError("a tensor where none belongs")


def load(file: IO[bytes], storage: Callable[[tuple[Any, ...]], Array] = _no_storage) -> Any:
    """Read the next pickle of a file.

    Args:
        file: the file, at the start of a pickle; it is left at the pickle's end.
        storage: maps a persistent id, ``("storage", Dtype, key, ...)``, to an array of one axis.

    Returns:
        What was pickled; tensors are read-only views of the storages.

    Raises:
        ValueError: the pickle is broken, or does what is refused.
    """
    start = file.tell()  # the pickle is read twice: to check it, and to run it
    try:
        _check_opcodes(file)
        size = file.tell() - start
        file.seek(start)
        return _Unpickler(file, size, storage).load()
    except ValueError:
        raise
    except Exception as error:  # a broken program fails in many ways, such as an empty stack
        raise ValueError(f"a broken pickle: {type(error).__name__}: {error}") from None


def loads(data: bytes, storage: Callable[[tuple[Any, ...]], Array] = _no_storage) -> Any:
    """Read bytes that hold one pickle and no more; arguments and errors as `load`."""
    file = io.BytesIO(data)
    value = load(file, storage)
    if file.tell() != len(data):
        raise ValueError(f"{len(data) - file.tell()} bytes after the end of the pickle")
    return value


# The check of the opcodes: a walk over the pickle that follows what would be on the stack, and runs nothing.

#: Levels of containers inside containers; what torch saves has about ten.  Python's C code follows nested tuples by
#: recursion, for example to hash them, and a file could make it overflow its stack.
_MAX_DEPTH = 200

#: Opcodes that build objects of any class, or name classes and storages in ways that torch never does.
_FORBIDDEN = frozenset({"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"})
#: Opcodes that put values into a container that lies below them on the stack.
_IN_PLACE = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
#: Types, in pickletools' words, of values that cannot contain others.
_PLAIN = frozenset({"int", "int_or_bool", "bool", "float", "None", "str", "bytes", "bytes_or_str"})
_MARK = -1  #: stands on the stack for pickle's mark


def _check_opcodes(file: IO[bytes]) -> None:
    """Check one pickle, without running it.

    Args:
        file: the file, at the start of a pickle; it is left at the pickle's end.

    Raises:
        ValueError: opcodes that torch never writes, memo slots that could not have been filled, containers nested
            deeper than `_MAX_DEPTH`, or keys that are containers.
    """
    # Both hold depths instead of values: the levels of containers in a value, 0 for numbers and strings.
    stack: list[int] = []
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _FORBIDDEN:
            raise ValueError(
                f"it builds objects of classes of its own (opcode {opcode.name}), which is refused: "
                "save the bare state dict (name -> tensor) and load that"
            )
        if "PUT" in opcode.name:
            # Python's memo is an array: filling slot 2^31 would allocate gigabytes.
            if int(argument or 0) > count:
                raise ValueError(f"memo slot {argument} after {count} opcodes")
            memo[int(argument or 0)] = stack[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(memo[int(argument or 0)])
        elif not opcode.stack_before and opcode.stack_after and opcode.stack_after[0].name in _PLAIN:
            # Long integers count as containers, which may not be keys: a file could choose thousands with one hash,
            # which makes a dictionary slow.  Among integers of 64 bits no more than eight share a hash.
            stack.append(int(isinstance(argument, int) and argument.bit_length() > 63))
        else:
            _follow(opcode, stack)


def _follow(opcode: Any, stack: list[int]) -> None:
    """Apply an opcode to the depths on the stack."""
    needs = opcode.stack_before
    inside: list[int] = []  # depths of the values between the mark and the top
    if pickletools.markobject in needs:
        while (depth := stack.pop()) != _MARK:
            inside.append(depth)
        needs = needs[: needs.index(pickletools.markobject)]
    taken = [stack.pop() for _ in needs][::-1]
    _check_keys(opcode.name, taken, inside[::-1])
    if opcode.name in _IN_PLACE:
        depth = max((taken[0], *(1 + d for d in (*taken[1:], *inside))))
    else:
        depth = 1 + max((0, *taken, *inside))
    if depth > _MAX_DEPTH:
        raise ValueError(f"containers nested deeper than {_MAX_DEPTH} levels")
    stack += [_MARK if kind is pickletools.markobject else depth for kind in opcode.stack_after]


def _check_keys(name: str, taken: list[int], inside: list[int]) -> None:
    """Refuse keys that are containers.

    Keys are hashed, and the hash of a tuple hashes each element as often as it occurs.  A tuple of the same tuple
    twice, 60 levels deep, takes some hundred bytes in the file, and 2^60 steps to hash.
    """
    keys = {
        "SETITEM": taken[1:2],
        "SETITEMS": inside[::2],
        "DICT": inside[::2],
        "ADDITEMS": inside,
        "FROZENSET": inside,
    }
    if any(keys.get(name, ())):
        raise ValueError("a key that is neither a number of 64 bits nor a string")
