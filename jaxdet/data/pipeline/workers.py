"""Worker processes that prepare batches (grain's), and what happens when one of them ends before its time."""

import atexit
import contextlib
import gc
import multiprocessing
import os
import queue
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import resource_tracker, shared_memory, util
from pathlib import Path
from typing import Any

import cv2
import grain
from absl import flags
from grain._src.python.ipc.shared_memory_array import SharedMemoryArray

from jaxdet.data.settings import Data
from jaxdet.runtime.files import ScratchFolder

# bytes.  What is smaller goes through a pipe of 64 KB, and a worker whose last batch does not fit into it can not end
# before grain kills it after 25 s: so no array of some size may go there.
_MIN_SHARED = 2**12
# Schedulers and terminals send these to all processes of a job; what they ask for is the main process's to do.
_ASK_TO_END = (signal.SIGINT, signal.SIGTERM)
_DEATH = "terminated unexpectedly"  # grain's words for it
_LOOK = 5.0  # seconds of waiting, after which it is looked whether all workers live
_LOOKS = 4  # as often before it is an error; what a worker did before it ended may still arrive


class Prepared:
    """The elements of a sequence in order, prepared by ``data.workers`` processes.  An iterator; `close` ends them.

    ``next`` raises what was raised in a worker, and ChildProcessError within a minute after a worker has died.  grain
    itself sees most deaths, but not that of a worker that ends with code 0 or in the middle of a message: then it
    waits without end.  So a thread of its own asks grain, and this one waits for both the answer and the workers.
    """

    def __init__(self, batches: Any, data: Data) -> None:
        self._names = ScratchFolder()
        self._blocks = f"jd{secrets.token_hex(2)}_"  # how the names of the workers' shared memory begin
        start = partial(_start, self._names.path, self._blocks)
        self._abandoned = False
        self._workers = data.workers
        self._unmet = data.workers  # that have given nothing yet, as far as one can know: they take turns
        self._asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with _deaf():
            self._iterator: Any = iter(_by_processes(batches, data, start))
            threading.Thread(target=self._answer, daemon=True, name="jaxdet-batches").start()

    def __next__(self) -> Any:
        self._unmet -= 1
        self._asked.put(True)
        looks = 0
        while looks < _LOOKS:
            try:
                answer = self._answers.get(timeout=_LOOK)
            except queue.Empty:
                looks += bool(self._ended())
                continue
            if not isinstance(answer, BaseException):
                return answer
            if isinstance(answer, RuntimeError) and (_DEATH in str(answer) or self._ended()):
                raise ChildProcessError(_message(str(answer))) from answer
            raise answer
        self._abandoned = True
        raise ChildProcessError(_message("It ended without a word."))

    def close(self) -> None:
        """End the workers, and give their shared memory back.  Nothing may be asked for afterwards."""
        self._meet_all()
        self._asked.put(False)
        if self._abandoned:
            self._leave_behind()
        else:
            self._iterator.close()
            self._iterator = None
            _wait_for_grain()
        _free(self._blocks)
        self._names.remove()

    def _meet_all(self) -> None:
        """Take a batch of each worker, once there was one of any.

        grain starts all of them with the first batch, but ends only those that it has turned to: the others would be
        killed with the interpreter, and what they had put into shared memory would stay.
        """
        if self._unmet == self._workers:
            return
        with contextlib.suppress(Exception):  # they are not wanted any more: neither what they give nor what fails
            while self._unmet > 0:
                next(self)

    def _leave_behind(self) -> None:
        """End the workers without grain, whose threads wait for ever for the one that is no more."""
        for process in multiprocessing.active_children():
            if process.pid in self._begun():
                process.kill()
        atexit.register(_exit_at_once)  # at the end of the interpreter grain would wait for its threads

    def _answer(self) -> None:
        while self._asked.get():
            try:
                self._answers.put(next(self._iterator))
            except BaseException as error:  # StopIteration too: it is raised where the batch was asked for
                self._answers.put(error)

    def _ended(self) -> set[int]:
        """Ids of the workers that have begun and are no more, but for those that came to their end."""
        living = {process.pid for process in multiprocessing.active_children()}
        return self._begun() - living

    def _begun(self) -> set[int]:
        return {int(name) for name in os.listdir(self._names.path) if name.isdigit()}


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Threads that start inside, and the processes that these start, do not hear the signals of `_ASK_TO_END`.

    It takes a worker seconds of imports to come to `_start`, where it learns to ignore them.
    """
    resource_tracker.ensure_running()  # a thread that has to start it hears them afterwards
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ASK_TO_END)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _free(blocks: str) -> None:
    """Free the shared memory that is left of workers that have ended: batches that were on their way, or never sent.

    Linux alone lists it.  Elsewhere it goes with the interpreter, which reports it as leaked.
    """
    for path in Path("/dev/shm").glob(f"{blocks}*"):
        with contextlib.suppress(FileNotFoundError):
            block = shared_memory.SharedMemory(path.name)
            block.close()
            block.unlink()


def _wait_for_grain() -> None:
    """Wait until grain has freed the batches that it has received and that nobody took."""
    gc.collect()  # grain's iterators form cycles that hold these batches
    if SharedMemoryArray._del_thread_pool is not None:
        SharedMemoryArray._del_thread_pool.apply(int)  # one thread, which frees in order: this comes last


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _message(why: str) -> str:
    return (
        f"a worker process of the data pipeline has ended before its time. {why} The usual cause is a lack of memory; "
        "fewer data.workers or a smaller data.prefetch need less, and with data.workers=0 there are no such processes"
    )


def _by_processes(batches: Any, data: Data, start: Callable[[int, int], None]) -> Any:
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which only app.run parses
    options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=data.prefetch)
    # One thread and one batch at a time inside a worker: the parallelism is the workers'.
    prepared = grain.MapDataset.source(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    # Images and masks go through shared memory, what is small through the pipe.
    return grain.experimental.WithOptionsIterDataset(
        prepared, grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED)
    ).mp_prefetch(options, worker_init_fn=start)


def _start(names: Path, blocks: str, worker: int, workers: int) -> None:
    """First thing in a worker, of which there are several."""
    shared_memory._SHM_NAME_PREFIX = f"/{blocks}"  # type: ignore[attr-defined]  # there is no public way
    cv2.setNumThreads(1)  # else it would start a thread for every core
    for number in _ASK_TO_END:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name = names / str(os.getpid())
    name.touch()
    # A worker without further batches ends before the others, and is not missed.
    util.Finalize(None, name.unlink, kwargs={"missing_ok": True}, exitpriority=100)


def _end_with_parent() -> None:
    """Without this, workers of a process that was killed would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
