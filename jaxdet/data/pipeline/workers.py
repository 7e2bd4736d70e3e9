"""Worker processes that prepare batches (grain's), and what happens when one of them dies or is left behind.

grain starts the processes and brings their batches over, through shared memory.  This file adds what it lacks: an
error for every death of a worker (grain waits for ever after some), workers that end with a parent that was killed,
signals that only the main process answers, and shared memory that is given back.
"""

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
from jaxdet.runtime.main_guard import ADVICE, refuse_in_workers

#: Bytes from which an array goes through shared memory.  Smaller ones go through a pipe of 64 KB, and a worker whose
#: last batch does not fit into the pipe cannot end before grain kills it, 25 s later.  So images and masks of any
#: size must not go there.
_MIN_SHARED = 2**12

#: Schedulers and terminals send these to all processes of a job; the main process alone answers, by saving.
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_GRAIN_SAYS_DEAD = "terminated unexpectedly"  #: part of grain's message
_POLL_SECONDS = 5.0  #: time to wait for a batch before the processes are checked
_POLLS_AFTER_DEATH = 4  #: checks before a death is an error: what the worker sent before it may still arrive


class WorkerIterator:
    """Iterates over a sequence in order; ``data.workers`` processes prepare its elements.

    ``next`` raises what was raised in a worker, and ChildProcessError within a minute after a worker has died.  grain
    itself notices most deaths, but not that of a worker that exits with code 0 or in the middle of a message: then it
    waits without end.  Therefore a thread asks grain for the batches, and the thread that calls ``next`` waits for
    both, the answer and the end of a worker.

    Args:
        batches: the sequence, which is pickled for each worker.
        data: settings; ``workers`` and ``prefetch`` are used.
    """

    def __init__(self, batches: Any, data: Data) -> None:
        refuse_in_workers()
        self._pid_files = ScratchFolder()  # has a file for each worker that is at work, see `_init_worker`
        self._memory_prefix = f"jd{secrets.token_hex(2)}_"  # the names of the workers' shared memory begin with it
        init_worker = partial(_init_worker, self._pid_files.path, self._memory_prefix)
        self._abandoned = False
        self._workers = data.workers
        self._untouched = data.workers  # workers that have sent nothing yet, given that they take turns
        self._requests: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        with _stop_signals_blocked():
            self._iterator: Any = iter(_by_processes(batches, data, init_worker))
            threading.Thread(target=self._ask_grain, daemon=True, name="jaxdet-batches").start()

    def __next__(self) -> Any:
        self._untouched -= 1
        self._requests.put(True)
        polls_after_death = 0
        while polls_after_death < _POLLS_AFTER_DEATH:
            try:
                answer = self._answers.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                polls_after_death += bool(self._dead_workers())
                continue
            if not isinstance(answer, BaseException):
                return answer
            if isinstance(answer, RuntimeError) and (_GRAIN_SAYS_DEAD in str(answer) or self._dead_workers()):
                raise ChildProcessError(self._death_message(str(answer))) from answer
            raise answer
        self._abandoned = True
        raise ChildProcessError(self._death_message("It ended without a word."))

    def close(self) -> None:
        """End the workers and free their shared memory; no batch may be asked for afterwards."""
        self._touch_all_workers()
        self._requests.put(False)
        if self._abandoned:
            self._kill_workers()
        else:
            self._iterator.close()
            self._iterator = None
            _wait_for_grain_to_free()
        _free_shared_memory(self._memory_prefix)
        self._pid_files.remove()

    def _touch_all_workers(self) -> None:
        """Take a batch from each worker, if one was taken from any.

        grain starts all workers with the first batch, but on closing ends only those that it has read from.  The
        others would be killed with the interpreter, and what they had put into shared memory would stay there.
        """
        if self._untouched == self._workers:
            return
        with contextlib.suppress(Exception):  # neither these batches nor their errors are of interest any more
            while self._untouched > 0:
                next(self)

    def _kill_workers(self) -> None:
        """End the workers without grain, whose threads wait for the dead one for ever."""
        for process in multiprocessing.active_children():
            if process.pid in self._started_workers():
                process.kill()
        atexit.register(_exit_at_once)  # at the end of the interpreter grain would wait for its threads

    def _ask_grain(self) -> None:
        while self._requests.get():
            try:
                self._answers.put(next(self._iterator))
            except BaseException as error:  # StopIteration too: `__next__` raises it where the batch was asked for
                self._answers.put(error)

    def _death_message(self, why: str) -> str:
        if not self._started_workers():
            return (
                "the worker processes of the data pipeline have ended before they began. Each first imports the script "
                "that runs, which must be a file, and what went wrong there is said above. The usual cause is a script "
                f"that would begin its work again: {ADVICE}"
            )
        return (
            f"a worker process of the data pipeline has ended before its time. {why} The usual cause is a lack of "
            "memory; fewer data.workers or a smaller data.prefetch need less, and with data.workers=0 there are no "
            "such processes"
        )

    def _dead_workers(self) -> set[int]:
        """Process ids of workers that have ended before their time; one without further batches is none."""
        living = {process.pid for process in multiprocessing.active_children()}
        return self._started_workers() - living

    def _started_workers(self) -> set[int]:
        return {int(name) for name in os.listdir(self._pid_files.path) if name.isdigit()}


@contextlib.contextmanager
def _stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals in threads that start inside, and in processes that such threads start.

    A worker ignores them itself, but only after seconds of imports (`_init_worker`).
    """
    # Python's resource tracker starts with the first shared memory.  Started by a thread that blocks the signals, it
    # would unblock them there, so it has to run before.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _free_shared_memory(prefix: str) -> None:
    """Free what ended workers have left: batches that were on their way, or were never sent.

    Only Linux lists shared memory.  Elsewhere the interpreter frees it at its end and reports it as leaked.
    """
    for path in Path("/dev/shm").glob(f"{prefix}*"):
        with contextlib.suppress(FileNotFoundError):
            block = shared_memory.SharedMemory(path.name)
            block.close()
            block.unlink()


def _wait_for_grain_to_free() -> None:
    """Wait until grain has freed the batches that it has received and that nobody took."""
    gc.collect()  # grain's iterators form reference cycles that hold these batches
    if SharedMemoryArray._del_thread_pool is not None:
        SharedMemoryArray._del_thread_pool.apply(int)  # a single thread frees in order, so this no-op comes last


def _exit_at_once() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _by_processes(batches: Any, data: Data, init_worker: Callable[[int, int], None]) -> Any:
    """grain's data set over ``batches``, read by worker processes."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which only absl's app.run parses
    options = grain.MultiprocessingOptions(num_workers=data.workers, per_worker_buffer_size=data.prefetch)
    # One thread and one batch at a time inside a worker: the parallelism is that of the processes.
    prepared = grain.MapDataset.source(batches).to_iter_dataset(
        grain.ReadOptions(num_threads=1, prefetch_buffer_size=1)
    )
    return grain.experimental.WithOptionsIterDataset(
        prepared, grain.experimental.DatasetOptions(min_shm_size=_MIN_SHARED)
    ).mp_prefetch(options, worker_init_fn=init_worker)


def _init_worker(pid_files: Path, memory_prefix: str, worker: int, workers: int) -> None:
    """Prepare a worker process; grain calls this first, with the worker's number and their count."""
    shared_memory._SHM_NAME_PREFIX = f"/{memory_prefix}"  # type: ignore[attr-defined]  # there is no public way
    cv2.setNumThreads(1)  # cv2 would start a thread for every core, in every worker
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    name = pid_files / str(os.getpid())
    name.touch()
    # A worker that has prepared all its batches ends before the others.  It removes its file, so that it does not
    # count as dead.
    util.Finalize(None, name.unlink, kwargs={"missing_ok": True}, exitpriority=100)


def _end_with_parent() -> None:
    """End this process when its parent does; the workers of a killed process would stay for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
