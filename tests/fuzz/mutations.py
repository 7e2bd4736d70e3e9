"""Ways to spoil what is valid: bytes, and the tree of a json."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

_WORDS = (b"\x00" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\x40\x00\x00\x00")
_EDITS = ("flip", "set", "word", "cut", "repeat", "insert", "truncate")

#: Written into the json's text in place of these strings: json.dumps cannot write them.
_WRITTEN = {
    "@deep": "[" * 400 + "]" * 400,
    "@deeper": "[" * 100_000 + "]" * 100_000,
    "@object": '{"a":' * 980 + "1" + "}" * 980,
    "@digits": "1" * 400,
    "@more digits": "9" * 6000,
    "@large": "1e999",
}
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3.0, 1.5, -0.0, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 1e-320),
    *(2**15, 2**24 + 1, 2**31, 2**32, 2**62, 2**63, -(2**63) - 1, *_WRITTEN),
    *("", "1", "nan", "\x00", "\ud800", "\x1b[2J", "../../../etc/passwd", "/etc/passwd", "/dev/zero", ".", "a" * 5000),
    *([], {}, [[]], [None], [[None]], [1, 2, 3, 4], [[0, 0, 9, 9]], ["x"] * 6, {"size": [20, 30], "counts": []}),
)


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes, most: int = 6) -> bytes:
    """One to ``most`` edits; every other one is near the beginning, where headers are."""
    for _ in range(draw(st.integers(1, most))):
        last = max(len(content) - 1, 0)
        place = draw(st.one_of(st.integers(0, min(last, 64)), st.integers(0, last)))
        content = _edited(content, draw(st.sampled_from(_EDITS)), place, draw(st.integers(0, 255)), draw)
    return content


def _edited(content: bytes, edit: str, place: int, value: int, draw: st.DrawFn) -> bytes:
    head, tail = content[:place], content[place:]
    if edit == "flip":
        return head + bytes(byte ^ (1 << value % 8) for byte in tail[:1]) + tail[1:]
    if edit == "set":
        return head + bytes([value]) + tail[1:]
    if edit == "word":
        return head + _WORDS[value % len(_WORDS)] + tail[4:]
    if edit == "cut":
        return head + tail[1 + value :]
    if edit == "repeat":
        return head + tail[:value] * 2 + tail[value:]
    return head + draw(st.binary(min_size=1, max_size=40)) + tail if edit == "insert" else head


def places(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies in a json: paths of keys and positions."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from places(value, (*prefix, key))


@st.composite
def spoilt_tree(draw: st.DrawFn, tree: Any, values: st.SearchStrategy[Any] | None = None, most: int = 4) -> Any:
    """One to ``most`` things in a json replaced by odd ones, left out, doubled, wrapped or moved."""
    tree = copy.deepcopy(tree)
    odd = st.one_of(st.sampled_from(_ODD), st.floats(), st.integers(), st.text(max_size=8))
    odd = odd if values is None else values
    for _ in range(draw(st.integers(1, most))):
        known = list(places(tree))
        if not known:
            return tree
        path = draw(st.sampled_from(known))
        parent = at(tree, path[:-1])
        edit = draw(st.sampled_from(("put", "put", "put", "drop", "double", "wrap", "move")))
        if edit == "put":
            parent[path[-1]] = copy.deepcopy(draw(odd))
        elif edit == "drop":
            del parent[path[-1]]
        elif edit == "double" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[path[-1]]))
        elif edit == "wrap":
            parent[path[-1]] = [parent[path[-1]]]
        else:
            parent[path[-1]] = copy.deepcopy(at(tree, draw(st.sampled_from(known))))
    return tree


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    """What lies at a path of ``places``."""
    for key in path:
        tree = tree[key]
    return tree


def as_json(tree: Any) -> bytes:
    """The json of a tree, with what no json writer writes in the place of its names."""
    text = json.dumps(tree)
    for name, written in _WRITTEN.items():
        text = text.replace(json.dumps(name), written)
    return text.encode()
