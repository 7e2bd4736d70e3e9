"""TensorBoard events, written at once and by this thread.

tensorboardX's own ``SummaryWriter`` writes from a thread: where the disk is full that thread dies, and the next
scalars wait for it without end.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxdet.runtime.files import named_in_errors


class Board:
    """An event file in ``folder``, which is made.

    Args:
        folder: where TensorBoard looks.
        first: the first step that this file speaks of; TensorBoard forgets what older files say of it and later ones.
    """

    def __init__(self, folder: Path, first: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._events = EventsWriter(str(folder / "events"))
        self._write(first, session_log=SessionLog(status=SessionLog.START))

    def scalar(self, step: int, name: str, value: float) -> None:
        self._write(step, summary=summary.scalar(name, value))

    def picture(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        """An image ``[H, W, 3]`` RGB."""
        self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def flush(self) -> None:
        """Bring it to the disk; OSError if it is full."""
        with named_in_errors(self._folder):
            self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
