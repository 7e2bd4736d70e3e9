"""How much memory what is read may take, and what a checkpoint's folder may hold: it may be a stranger's."""

import math
import os
import stat
from pathlib import Path
from typing import Any

import jax
import numpy as np

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


def check_size(tree: Any, stored: int, dtype: str | None = None) -> None:
    """ValueError if arrays of these shapes are larger than files of ``stored`` bytes make plausible.

    They are of their own dtypes, or will all be of that one.
    """
    sizes = [(math.prod(leaf.shape), np.dtype(dtype or leaf.dtype).itemsize) for leaf in jax.tree.leaves(tree)]
    total = sum(number * size for number, size in sizes)
    if total > largest(stored):
        raise ValueError(
            f"its arrays have {total} bytes{f' as {dtype}' if dtype else ''}, expected at most {largest(stored)} "
            f"in {stored} bytes of files"
        )
