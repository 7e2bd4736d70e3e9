"""Batches for training and evaluation, prepared ahead by worker processes (grain).

Workers are spawned and import this package's modules but never the model's, so a script that trains needs the usual
``if __name__ == "__main__"`` guard.  Close an iterator, or use it in a ``with`` statement: its workers end with it.
"""

import logging
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grain
import numpy as np
from numpy.typing import NDArray

from jaxdet.data.pipeline.batches import EvalBatches, TrainBatches, stack
from jaxdet.data.pipeline.plans import Share, eval_plan, train_plan
from jaxdet.data.pipeline.transforms import image_arrays, view_of
from jaxdet.data.pipeline.workers import Prepared
from jaxdet.data.records import Source
from jaxdet.data.settings import Data

if TYPE_CHECKING:  # importing it costs jax and flax, which workers have no use for
    from jaxdet.structures import Batch

_log = logging.getLogger(__name__)
_ENDLESS = 2**40  # steps; nobody gets there


class BatchIterator(Iterator["Batch"]):
    """Batches in order.  A context manager; ``close`` ends the workers.

    Attributes:
        dropped: instances that had no slot (``data.max_boxes``) in the batches so far, on this process.
        skipped: broken images whose place another took (``data.skip_broken``).
        steps_per_epoch: of training; of evaluation, the number of batches.
    """

    def __init__(self, batches: TrainBatches | EvalBatches, data: Data, steps_per_epoch: int) -> None:
        self.dropped = self.skipped = 0
        self.steps_per_epoch = steps_per_epoch
        self._max_boxes = data.max_boxes
        self._iterator: Any = _prepared(batches, data)
        self._length = len(batches)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "Batch":
        arrays = None if self._iterator is None else next(self._iterator, None)
        if arrays is None:
            self.close()
            raise StopIteration
        batch = to_batch(_copied(arrays))
        self._count(**{name: int(each.sum()) for name, each in batch.counts.items()})
        return batch

    def _count(self, dropped: int = 0, skipped_images: int = 0) -> None:
        if dropped and not self.dropped:
            _log.warning(
                "an image has more than %d instances: those beyond are left out of training, and counted "
                "(raise data.max_boxes to keep them)",
                self._max_boxes,
            )
        self.dropped += dropped
        self.skipped += skipped_images

    def close(self) -> None:
        """End the workers; the iterator is at its end afterwards.  May be called again."""
        if self._iterator is None:
            return
        self._iterator.close()
        self._iterator = None
        if self.dropped:
            _log.warning("%d instances had no slot among %d", self.dropped, self._max_boxes)
        if self.skipped:
            _log.warning("%d times another image took the place of a broken one", self.skipped)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _copied(arrays: dict[str, Any]) -> dict[str, Any]:
    """Plain arrays instead of views of the workers' shared memory.

    Some milliseconds a batch, for which the memory goes back at once: blocks that live until the interpreter ends
    are reported as leaks.
    """
    return {key: _copied(value) if isinstance(value, dict) else np.array(value) for key, value in arrays.items()}


def _prepared(batches: TrainBatches | EvalBatches, data: Data) -> Any:
    if data.workers:
        return Prepared(batches, data)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=data.prefetch)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def train_batches(
    source: Source,
    data: Data,
    *,
    seed: int,
    start_step: int,
    steps: int | None = None,
    process_index: int = 0,
    process_count: int = 1,
) -> BatchIterator:
    """Training batches from ``start_step`` on: the same ones, draws included, that a run from step 0 would see.

    Args:
        source: the data.
        data: settings; ``batch_size`` counts all processes.
        seed: of order and augmentation.
        start_step: number of the first batch.
        steps: number of batches; None for as many as are taken.
        process_index: which part of each global batch to deliver.
        process_count: into how many parts it is cut.

    Returns:
        Iterator of ``Batch`` with NumPy leaves, ``batch_size / process_count`` images each.

    Raises:
        ValueError: nothing to train on, or a batch size that does not divide.
    """
    if start_step < 0:
        raise ValueError(f"start_step: expected 0 or more, got {start_step}")
    share = Share(process_index, process_count, data.batch_size)
    plan = train_plan(source, data, seed)
    count = _ENDLESS if steps is None else steps
    return BatchIterator(TrainBatches(source, data, plan, share, start_step, count), data, plan.steps_per_epoch)


def eval_batches(
    source: Source, data: Data, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> BatchIterator:
    """Evaluation batches: every image of the source once over all processes, not mirrored, without targets.

    All processes get the same number of batches and, at each step, the same canvas.  Slots that only fill a batch
    have ``valid`` False and index -1.

    Args:
        source: the data.
        data: settings; ``batch_size`` of training does not matter here.
        batch_size: over all processes.
        process_index: which part of each global batch to deliver.
        process_count: into how many parts it is cut.
    """
    share = Share(process_index, process_count, batch_size)
    order = eval_plan(source, data, batch_size).batches()
    return BatchIterator(EvalBatches(source, data, order, share), data, len(order))


def single_batch(image: NDArray[np.uint8], data: Data) -> "Batch":
    """A batch of one image, without targets, for prediction.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        data: settings of resize and canvas.

    Raises:
        ValueError: not such an image.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"image: expected [H, W, 3] uint8 RGB (jaxdet.data.load_image makes it), got {image.shape} {image.dtype}"
        )
    return to_batch(stack([image_arrays(image, view_of((image.shape[0], image.shape[1]), data), 0)]))


def to_batch(arrays: dict[str, Any]) -> "Batch":
    """Stacked arrays as the nouns of ``structures``."""
    from jaxdet.structures import Batch, Masks, Targets

    targets = arrays.get("targets")
    if targets is None:
        return Batch(**arrays)
    others = {name: leaf for name, leaf in targets.items() if name not in ("masks", "frames")}
    return Batch(**{**arrays, "targets": Targets(masks=Masks(targets["masks"], targets["frames"]), **others)})
