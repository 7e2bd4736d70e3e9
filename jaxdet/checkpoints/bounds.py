"""How much memory what is read may take, and what a checkpoint's folder may hold: it may be a stranger's."""

import math
import os
import stat
from pathlib import Path
from typing import Any

import jax

EXPANSION = 16
"""How many times larger than its files the arrays of a checkpoint may be.  Trained weights hardly compress."""
SMALL = 1 << 26
"""Bytes that the arrays of any checkpoint may have."""


def largest(stored: int) -> int:
    """Bytes that arrays may have whose files have ``stored``."""
    return SMALL + EXPANSION * stored


def check_files(folder: Path) -> int:
    """Bytes of the files in a checkpoint's folder.

    ValueError if it holds anything but files and folders: a pipe would be waited for, a link or device has no end.
    """
    total = 0
    for path in sorted(folder.rglob("*")):
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{path}: expected a file or a folder in a checkpoint, got a link, a pipe or a device")
        total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def check_size(tree: Any, stored: int) -> None:
    """ValueError if arrays of these shapes are larger than files of ``stored`` bytes make plausible."""
    total = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
    if total > largest(stored):
        raise ValueError(
            f"its arrays have {total} bytes, expected at most {largest(stored)} in {stored} bytes of files"
        )
