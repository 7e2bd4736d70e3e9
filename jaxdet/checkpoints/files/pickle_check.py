"""A look at the opcodes of a pickle before any of them runs."""

import pickletools
from typing import IO, Any

DEEPEST = 200
"""Levels of containers inside containers; what torch saves has about ten.  Python's C code follows tuples inside
tuples by recursion (to hash them, say), and a file could make it overflow its stack."""

_FORBIDDEN = frozenset({"INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"})
_IN_PLACE = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_PLAIN = frozenset({"int", "int_or_bool", "bool", "float", "None", "str", "bytes", "bytes_or_str"})
_MARK = -1


def check_opcodes(file: IO[bytes]) -> None:
    """Reads one pickle.  ValueError for opcodes that torch never writes, for memo slots that could not have been
    filled, for containers nested deeper than ``DEEPEST``, and for keys that are containers.
    """
    stack: list[int] = []  # the depth of each value on the machine's stack; numbers and strings have none
    memo: dict[int, int] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if opcode.name in _FORBIDDEN:
            raise ValueError(
                f"it builds objects of classes of its own (opcode {opcode.name}), which is refused: "
                "save the bare state dict (name -> tensor) and load that"
            )
        if "PUT" in opcode.name:
            # The memo is an array in memory: slot 2^31 would allocate gigabytes.
            if int(argument or 0) > count:
                raise ValueError(f"memo slot {argument} after {count} opcodes")
            memo[int(argument or 0)] = stack[-1]
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif "GET" in opcode.name:
            stack.append(memo[int(argument or 0)])
        elif not opcode.stack_before and opcode.stack_after and opcode.stack_after[0].name in _PLAIN:
            # Of all integers a file could choose thousands with one hash; of these of 64 bits there are eight.
            stack.append(int(isinstance(argument, int) and argument.bit_length() > 63))
        else:
            _run(opcode, stack)


def _run(opcode: Any, stack: list[int]) -> None:
    """What the opcode does to the depths on the stack."""
    needs = opcode.stack_before
    inside: list[int] = []
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
    if depth > DEEPEST:
        raise ValueError(f"containers nested deeper than {DEEPEST} levels")
    stack += [_MARK if kind is pickletools.markobject else depth for kind in opcode.stack_after]


def _check_keys(name: str, taken: list[int], inside: list[int]) -> None:
    """Keys are hashed.  The hash of a tuple visits what is in it as often as it is named there: (a, a) of (b, b) of ..
    takes longer than anyone waits."""
    keys = {
        "SETITEM": taken[1:2],
        "SETITEMS": inside[::2],
        "DICT": inside[::2],
        "ADDITEMS": inside,
        "FROZENSET": inside,
    }
    if any(keys.get(name, ())):
        raise ValueError("a key that is neither a number of 64 bits nor a string")
