"""TensorBoard events in the folder ``tensorboard`` of a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxdet.runtime.files import named_in_errors
from jaxdet.training.writers.writer import Settings


class TensorBoard:
    """Writes events by the calling thread (a `Writer`).

    tensorboardX's own ``SummaryWriter`` writes from a thread.  Where the disk is full that thread dies, and the next
    scalar waits for it without end.
    """

    def start(self, workdir: Path, settings: Settings, step: int) -> None:
        self._folder = workdir / "tensorboard"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._events = EventsWriter(str(self._folder / "events"))
        # TensorBoard then forgets what older files have of this step and later.
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._write(step, summary=summary.scalar(name, value))
        with named_in_errors(self._folder):
            self._events.flush()  # so that a full disk is an error here, and not when the file is closed

    def image(self, step: int, name: str, pixels: NDArray[np.uint8]) -> None:
        self._write(step, summary=summary.image(name, pixels, dataformats="HWC"))

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:
        self._events.write_event(Event(step=step, wall_time=time.time(), **content))
