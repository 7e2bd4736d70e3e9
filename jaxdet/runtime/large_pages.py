"""Large pages of memory, for programs that compute on a CPU.

Nothing here may import jax: entry points call this before jax is loaded.
"""

import os
import sys
from pathlib import Path

_TUNABLE = "glibc.malloc.hugetlb"
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")  #: to whom the kernel gives large pages
_GLIBC = (2, 35)  #: the first version that knows the tunable


def ask_for_large_pages() -> None:
    """Restart the calling program, as the same process, with a malloc that asks for pages of 2 MB.

    XLA gets memory for temporary values from malloc and gives it back after each call, so that the kernel clears it
    anew each time.  In pages of 4 KB that takes up to a third of a training step (docs/BENCHMARKS.md).  The C library
    reads the setting when a process starts and not later, therefore the restart: call this before anything else.

    There is no restart where nothing would be gained: without Linux or its glibc from 2.35 on; where the kernel gives
    large pages to everyone or to no one; and where ``GLIBC_TUNABLES`` names the setting already, which is also how to
    keep the small pages (``glibc.malloc.hugetlb=0``).
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in tunables or not sys.executable or not _on_request():
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    # `orig_argv` has Python's own options too, such as -X or -m, which `argv` lacks.
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    """Whether the kernel gives large pages to those who ask, and the C library can ask."""
    try:
        name, version = str(os.confstr("CS_GNU_LIBC_VERSION")).split()
        return (
            name == "glibc"
            and tuple(int(part) for part in version.split(".")[:2]) >= _GLIBC
            and "[madvise]" in _KERNEL.read_text()
        )
    except (AttributeError, ValueError, OSError):  # another system, or another C library
        return False
