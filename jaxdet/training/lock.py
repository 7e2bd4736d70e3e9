"""One run at a time in a folder."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxdet.runtime.agreement import from_all

_PATIENCE = 60.0  # seconds: a job that is started again may overlap with what it was before
_PAUSE = 0.5  # seconds

_log = logging.getLogger(__name__)


@contextmanager
def alone_in(workdir: Path) -> Iterator[None]:
    """Inside, no other run writes into the folder; the lock goes with the process, however that ends.

    Of several processes the first holds it.  File systems without such locks (some of networks) let all through.

    Raises:
        ValueError: another run is in the folder, and stays there for a minute.
    """
    first = jax.process_index() == 0
    descriptor = from_all(lambda: _lock(workdir) if first else None)[jax.process_index()]
    try:
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(workdir: Path) -> int | None:
    """The folder, open and locked; None where there are no locks."""
    descriptor, end = os.open(workdir, os.O_RDONLY), time.monotonic() + _PATIENCE
    waits = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(descriptor)
                raise ValueError(
                    f"{workdir}: expected no other run in this folder, but one is training there; wait for its end, "
                    "or give this one a --workdir of its own"
                ) from None
        except OSError:
            os.close(descriptor)
            return None
        if not waits:
            _log.warning("another run is in %s: waiting for it to end", workdir)
            waits = True
        time.sleep(_PAUSE)
