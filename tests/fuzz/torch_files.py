"""Bad ``.pth`` files: a good one and those that torch wrote, spoilt, and pickles made up from opcodes."""

from pathlib import Path

import numpy as np
from hypothesis import strategies as st

from tests.checkpoints import pickles
from tests.fuzz.mutations import spoilt_bytes
from tests.fuzz.worker import Files

_FIXTURES = Path(__file__).parents[1] / "checkpoints" / "fixtures"
_SHAPES = {"backbone.conv1.weight": (2, 3, 7, 7), "rpn_head.rpn_cls.bias": (3,)}


def state() -> dict[str, np.ndarray]:
    """Weights that the judge's variables have a place for."""
    return {name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for name, shape in _SHAPES.items()}


def _program() -> bytes:
    arrays = [(name, array, str(key)) for key, (name, array) in enumerate(state().items())]
    items = [
        pickles.unicode(name)
        + pickles.tensor(
            size=array.shape,
            stride=[step // array.itemsize for step in array.strides],
            what=pickles.storage(key=key, count=array.size),
        )
        for name, array, key in arrays
    ]
    return pickles.program(b"}" + b"".join(item + b"s" for item in items))


def pth(program: bytes | None = None) -> bytes:
    """The weights as torch writes them, or their archive with another pickle in it."""
    storages = {str(key): array.tobytes() for key, array in enumerate(state().values())}
    return pickles.archive(_program() if program is None else program, storages)


def _weights(content: bytes) -> Files:
    return {"weights": content}


@st.composite
def _fixture_bytes(draw: st.DrawFn) -> Files:
    name = draw(st.sampled_from(sorted(path.name for path in _FIXTURES.glob("*.pt*"))))
    return _weights(draw(spoilt_bytes((_FIXTURES / name).read_bytes())))


_ATOMS = [
    b"N", b"\x88", b"K\x03", b"J\xff\xff\xff\x7f", b"\x8a\x09" + b"\xff" * 8 + b"\x01", b"G" + bytes(8), b"h\x00",
    b"h\x01", b")", b"]", b"}", b"X\x06\x00\x00\x00canary", pickles.unicode("state_dict"), pickles.unicode("latin1"),
    pickles.storage(), pickles.tensor(), pickles.integers(2, 2), pickles.integers(2**31 - 1, 0),
]  # fmt: skip
_CALLED = [
    pickles.TENSOR, pickles.ORDERED_DICT, b"ctorch\nSize\n", b"ctorch\ndevice\n", b"c_codecs\nencode\n",
    b"ctorch\nFloatStorage\n", b"ctorch._tensor\n_rebuild_from_type_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"cos\nmkdir\n",
]  # fmt: skip
_LOOSE = [
    b"(", b"s", b"a", b"u", b"e", b"t", b"\x85", b"\x86", b"\x87", b"R", b"b", b"0", b"1", b"2", b"q\x00", b"q\x01",
    b"\x94", b"Q", b"\x8f", b"\x90", b"\x91", b"l", b"d", b".",
]  # fmt: skip


@st.composite
def _opcodes(draw: st.DrawFn) -> Files:
    """Opcodes in any order, some of them many times over."""
    times = st.sampled_from([1, 1, 1, 1, 2, 40, 2000])
    codes = draw(st.lists(st.tuples(st.sampled_from(_ATOMS + _CALLED + _LOOSE), times), max_size=25))
    return _weights(pth(pickles.program(b"}" + b"".join(code * count for code, count in codes))))


def _larger(inner: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Opcodes that make a value of others."""
    several = st.lists(inner, max_size=6).map(b"".join)
    called = st.sampled_from(_CALLED)
    return st.one_of(
        several.map(lambda items: b"(" + items + b"t"),
        several.map(lambda items: b"](" + items + b"e"),
        several.map(lambda items: b"\x8f(" + items + b"\x90"),
        st.lists(st.tuples(inner, inner), max_size=4).map(lambda pairs: b"}(" + b"".join(map(b"".join, pairs)) + b"u"),
        st.tuples(called, several).map(lambda call: call[0] + b"(" + call[1] + b"tR"),
        st.tuples(inner, inner).map(lambda pair: pair[0] + pair[1] + b"b"),
        st.tuples(inner, inner).map(lambda pair: pickles.tensor(what=pair[0], rest=pair[1])),
        st.tuples(inner, st.sampled_from([b"q\x00", b"q\x01", b"2\x86" * 60, b"\x85" * 150])).map(b"".join),
        inner.map(lambda item: item + b"Q"),
    )


_PROGRAMS = st.recursive(st.sampled_from(_ATOMS), _larger, max_leaves=12)

KINDS: dict[str, st.SearchStrategy[Files]] = {
    "pth: bytes": st.deferred(lambda: spoilt_bytes(pth()).map(_weights)),
    "pth: bytes of torch's": _fixture_bytes(),
    "pth: bytes of the pickle": st.deferred(lambda: spoilt_bytes(_program()).map(pth).map(_weights)),
    "pth: opcodes": _opcodes(),
    "pth: programs": _PROGRAMS.map(lambda value: b"}q\x01" + pickles.unicode("w") + value + b"s")
    .map(pickles.program)
    .map(pth)
    .map(_weights),
}
