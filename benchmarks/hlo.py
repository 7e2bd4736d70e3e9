"""What a compiled program has, read from its text: kernels, loops, collectives, convolutions, calls of the host.

The text is that of ``jax.stages.Compiled.as_text()``, after all of XLA's passes, for any device.  An operation of the
outermost computation, or of a loop's body, is a kernel: what XLA has fused is one operation there.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

#: Bytes: sums of losses, counts, norms are less.
LITTLE = 2**20
#: Operations that move no data: names of what is there already, or of what is computed elsewhere.
_NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "call"}
_NO_KERNEL |= {"conditional", "partition-id", "replica-id", "opt-barrier", "add-dependency"}
#: Where one device reads what others have.  The end of an asynchronous one has the result, its start operands too.
_COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"}
_COLLECTIVES |= {"collective-permute", "collective-broadcast"}
_CALLED = re.compile(r"\b(calls|to_apply|body|condition|branch_computations|\w+_computation)=(\{[^}]*\}|%?[\w.\-]+)")
_NAME = re.compile(r"%?([\w.\-]+)")
_ARRAY = re.compile(r"\b(pred|[a-z]\w*?(\d+)\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Operation:
    """A line of the text."""

    name: str
    type: str  #: of its result, as in ``f32[2,3]{1,0}``; of several results in brackets
    code: str  #: what it does, as in ``fusion``
    operands: tuple[str, ...]  #: their names
    constant: int | None  #: of a whole number that is written down
    rest: str  #: attributes

    @property
    def where(self) -> str:
        """The place in the traced program."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found.group(1) if found else ""

    @property
    def called(self) -> Iterator[tuple[str, str]]:
        """Computations that it runs: as what, and their names."""
        for key, names in _CALLED.findall(self.rest):
            yield from ((key, name) for name in _NAME.findall(names))

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern among its attributes."""
        found = re.search(pattern, self.rest)
        return found.group(1) if found else None


@dataclass(frozen=True)
class Loop:
    """A loop of the program."""

    rounds: int | None  #: None: as many as the data ask for
    kernels: int  #: of one round, those of loops inside it left out
    where: str
    depth: int  #: loops around it


@dataclass(frozen=True)
class Collective:
    """Data that pass between devices, the rounds of loops around it multiplied, where they are known."""

    kind: str
    bytes: int  #: of its result, on one device
    where: str


@dataclass
class Contents:
    """What `contents` finds."""

    kernels: Counter[str] = field(default_factory=Counter)  #: outside of loops, by what they do
    launches: int = 0  #: of all kernels, a loop of unknown length counted as one round
    bytes: int = 0  #: that these read and write, if each reads its operands whole
    loops: list[Loop] = field(default_factory=list)
    collectives: list[Collective] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  #: places of loops of unknown length with a collective in them
    beside: int = 0  #: of the launches, those while an asynchronous collective of more than `LITTLE` is on its way
    convolutions: Counter[str] = field(default_factory=Counter)  #: by the type of what they read, as in ``bf16``
    callbacks: list[str] = field(default_factory=list)  #: by which the program calls the host

    def moved(self, kind: str = "") -> int:
        """Bytes of all collectives, or those of one kind."""
        return sum(each.bytes for each in self.collectives if each.kind == kind or not kind)


def contents(text: str) -> Contents:
    """Read the text of a compiled program.

    Raises:
        ValueError: it is none.
    """
    computations, entry = _computations(text)
    if entry is None:
        raise ValueError(f"expected the text of a compiled program, with an ENTRY, got {text[:80]!r}")
    found = Contents()
    _walk(computations, entry, found, rounds=1, depth=0)
    return found


def size(type_: str) -> int:
    """Bytes of the arrays of a type."""
    total = 0
    for name, bits, sides in _ARRAY.findall(type_):
        total += math.prod(int(side) for side in sides.split(",") if side) * (8 if name == "pred" else int(bits)) // 8
    return total


def _computations(text: str) -> tuple[dict[str, list[Operation]], str | None]:
    """Operations of each computation by its name, and the name of the outermost one."""
    found: dict[str, list[Operation]] = {}
    entry, current = None, None
    for line in text.splitlines():
        if start := re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line):
            current = found.setdefault(start.group(2), [])
            entry = start.group(2) if start.group(1) else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (operation := _operation(line)):
            current.append(operation)
    return found, entry


def _operation(line: str) -> Operation | None:
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    text = line[head.end() :]
    # The type of several results is in brackets, and so are tiles inside types.
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    code, _, _ = text[end:].strip().partition("(")
    arguments = text[text.index("(", end) :]
    close = _closing(arguments)
    # Operands stand alone or behind their types.
    names = tuple(re.findall(r"%?([\w.\-]+)(?=[,)])", re.sub(r"[\[{][^\]}]*[\]}]", "", arguments[1 : close + 1])))
    number = arguments[1:close] if code == "constant" else ""
    constant = int(number) if re.fullmatch(r"-?\d+", number) else None
    return Operation(head.group(1), text[:end], code, names, constant, arguments[close + 1 :])


def _closing(text: str) -> int:
    """Where the bracket closes that the text begins with."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"expected a closing bracket in {text[:80]!r}")


def _walk(all_: Mapping[str, list[Operation]], name: str, found: Contents, *, rounds: int, depth: int) -> int:
    """Add what a computation and those that it calls have; returns the kernels of one round, inner loops left out."""
    kernels, types = 0, {operation.name: operation.type for operation in all_[name]}
    under_way: set[str] = set()
    for operation in all_[name]:
        _inspect(operation, types, found, rounds)
        kind, _, end = operation.code.rpartition("-")
        if kind in _COLLECTIVES and end == "start" and size(operation.type) > LITTLE:
            under_way.add(operation.name)
        elif kind in _COLLECTIVES and end == "done":
            under_way -= {*operation.operands}
        if operation.code == "while":
            known = _rounds(all_, operation)
            place, before = len(found.loops), len(found.collectives)
            parts = dict(operation.called)
            # Where images are split over devices, a loop that ends when all images are done asks all devices for that.
            _inside(all_, parts["condition"], found, rounds * (known or 1))
            inside = _walk(all_, parts["body"], found, rounds=rounds * (known or 1), depth=depth + 1)
            found.loops.insert(place, Loop(known, inside, operation.where, depth))
            if known is None and len(found.collectives) > before:
                found.waiting.append(operation.where)
            continue
        if operation.code not in _NO_KERNEL and not operation.code.endswith("-done"):
            kernels += 1
            found.launches += rounds
            found.beside += rounds * (bool(under_way) and kind not in _COLLECTIVES)
            found.bytes += rounds * sum(size(types.get(each, "")) for each in (operation.name, *operation.operands))
            if depth == 0:
                found.kernels[_kind(operation)] += 1
            for _, called in operation.called:
                _inside(all_, called, found, rounds)
        else:
            for _, called in operation.called:
                kernels += _walk(all_, called, found, rounds=rounds, depth=depth)
    return kernels


def _rounds(all_: Mapping[str, list[Operation]], loop: Operation) -> int | None:
    """How often a loop turns, where that is written down, or it counts from 0 to a number."""
    if turns := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
        return int(turns)
    condition = next(called for key, called in loop.called if key == "condition")
    tests = [*all_[condition]]
    for operation in all_[condition]:
        tests += (each for _, called in operation.called for each in all_.get(called, ()))
    limits = [each.constant for each in tests if each.constant is not None]
    kinds = Counter(each.code for each in tests if each.code not in _NO_KERNEL)
    counts = kinds["compare"] == 1 and set(kinds) <= {"compare", "fusion", "copy"} and len(limits) == 1
    below = any("direction=LT" in each.rest for each in tests)
    return limits[0] if counts and below else None


def _inside(all_: Mapping[str, list[Operation]], name: str, found: Contents, rounds: int) -> None:
    """What is fused into one kernel has no kernels of its own, but may have the rest."""
    types = {operation.name: operation.type for operation in all_.get(name, ())}
    for operation in all_.get(name, ()):
        _inspect(operation, types, found, rounds)
        for _, called in operation.called:
            _inside(all_, called, found, rounds)


def _kind(operation: Operation) -> str:
    return (operation.attribute(r'custom_call_target="([^"]+)"') or operation.code).removesuffix("-start")


def _inspect(operation: Operation, types: Mapping[str, str], found: Contents, rounds: int) -> None:
    """Add a collective, a convolution or a call of the host; ``types`` are those of what is around, by name."""
    code, target = operation.code, _kind(operation)
    asynchronous = code.endswith("-start")
    kind = code.removesuffix("-done")
    if kind in _COLLECTIVES and not asynchronous:
        found.collectives.append(Collective(kind, rounds * size(operation.type), operation.where))
    if code == "convolution" or "__cudnn$conv" in target:
        # A product of matrices is a convolution without a window on a TPU.
        if code == "convolution" and not re.search(r"dim_labels=\w*\d", operation.rest):
            return
        read = [_ARRAY.search(types.get(name, "")) for name in operation.operands[:2]]
        found.convolutions.update({"/".join(sorted({each.group(1) for each in read if each})): 1})
    transfer = code in ("send", "recv") and "is_host_transfer=true" in operation.rest
    if transfer or code in ("infeed", "outfeed") or re.search(r"callback|host_?transfer", target, re.IGNORECASE):
        found.callbacks.append(target)
