"""Batches for training and evaluation, prepared ahead by worker processes (grain).

Workers are spawned: each imports the script that was started, which therefore needs the usual guard
``if __name__ == "__main__"``, and this package's modules, but neither jax nor the model's.  Close an iterator, or use
it in a ``with`` statement: its workers end with it.
"""

import logging
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import grain
import numpy as np
from numpy.typing import NDArray

from jaxdet.data.pipeline.batches import EvalBatches, TrainBatches, empty_image_arrays, stack
from jaxdet.data.pipeline.plans import Share, check_shards, eval_plan, left_out, train_plan
from jaxdet.data.pipeline.transforms import image_arrays, view_of
from jaxdet.data.pipeline.workers import WorkerIterator
from jaxdet.data.records import Source
from jaxdet.data.settings import Data

if TYPE_CHECKING:  # `structures` imports jax and flax, which would cost every worker seconds and memory
    from jaxdet.structures import Batch

_log = logging.getLogger(__name__)
_ENDLESS = 2**40  #: steps; grain needs a length, and no run gets there


class BatchIterator(Iterator["Batch"]):
    """Iterates over batches in order.  A context manager; ``close`` ends the workers.

    Attributes:
        dropped: number of instances so far, on this process, for which there was no slot (``data.max_boxes``).
        small: number of instances so far with a side under ``data.min_box``.
        skipped: number of broken images so far whose place another image took (``data.skip_broken``).
        steps_per_epoch: training steps in an epoch; in evaluation the number of batches.
    """

    def __init__(self, batches: TrainBatches | EvalBatches, data: Data, steps_per_epoch: int) -> None:
        self.dropped = self.small = self.skipped = 0
        self.steps_per_epoch = steps_per_epoch
        self._max_boxes = data.max_boxes
        self._iterator: Any = _prepared(batches, data)
        self._length = len(batches)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> "Batch":
        # At its end the workers are closed at once, and not when someone thinks of it.
        arrays = None if self._iterator is None else next(self._iterator, None)
        if arrays is None:
            self.close()
            raise StopIteration
        batch = _to_batch(_copied(arrays))
        self._count(**{name: int(count.sum()) for name, count in batch.counts.items()})
        return batch

    def _count(self, dropped: int = 0, small_boxes: int = 0, skipped_images: int = 0) -> None:
        """Add up what `target_arrays` and `TrainBatches` counted; the first loss is logged at once."""
        if dropped and not self.dropped:  # one warning: in dense data it would come with every batch
            _log.warning(
                "an image has more than %d instances: those beyond are left out of training, and counted "
                "(raise data.max_boxes to keep them)",
                self._max_boxes,
            )
        self.dropped += dropped
        self.small += small_boxes
        self.skipped += skipped_images

    def close(self) -> None:
        """End the workers; afterwards the iterator is exhausted.  May be called again."""
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
    """Copy arrays out of the workers' shared memory.

    It costs some milliseconds a batch, but the shared memory is free at once.  Whoever kept a view until the
    interpreter ends would be told of leaked memory.
    """
    return {key: _copied(value) if isinstance(value, dict) else np.array(value) for key, value in arrays.items()}


def _prepared(batches: TrainBatches | EvalBatches, data: Data) -> Any:
    """An iterator over ``batches``, prepared ahead by processes or, with ``data.workers=0``, by a thread."""
    if data.workers:
        return WorkerIterator(batches, data)
    # One thread keeps the order, and decodes while the device works.
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
    """Iterate over training batches from ``start_step`` on.

    They are the batches, random draws included, that a run from step 0 would see from there on.  What training leaves
    out of the source is warned of here, by the first process.

    Args:
        source: the data.
        data: settings; ``batch_size`` is that of all processes together.
        seed: seed of order and augmentation.
        start_step: number of the first batch.
        steps: number of batches; None: as many as are taken.
        process_index: which part of each global batch to deliver.
        process_count: into how many parts each global batch is cut.

    Returns:
        Iterator of ``Batch`` with NumPy leaves, ``batch_size / process_count`` images each.

    Raises:
        ValueError: there is nothing to train on, or the processes do not divide the batch size, or the shards.
    """
    check_shards(data, process_count)
    if start_step < 0:
        raise ValueError(f"start_step: expected 0 or more, got {start_step}")
    share = Share(process_index, process_count, data.batch_size)
    plan = train_plan(source, data, seed)
    if process_index == 0:
        for line in left_out(source, data):
            _log.warning("%s", line)
    count = _ENDLESS if steps is None else steps
    return BatchIterator(TrainBatches(source, data, plan, share, start_step, count), data, plan.steps_per_epoch)


def eval_batches(
    source: Source, data: Data, *, batch_size: int, process_index: int = 0, process_count: int = 1
) -> BatchIterator:
    """Iterate over evaluation batches: every image once over all processes, not mirrored, without targets.

    All processes get the same number of batches and, at each step, the same canvas, since they run one compiled
    program together.  Slots that only fill a batch have ``valid`` False and index -1.

    Args:
        source: the data.
        data: settings; ``batch_size``, which is that of training, is not used.
        batch_size: images in a batch, over all processes.
        process_index: which part of each global batch to deliver.
        process_count: into how many parts each global batch is cut.

    Raises:
        ValueError: the processes do not divide the batch size.
    """
    share = Share(process_index, process_count, batch_size)
    order = eval_plan(source, data, batch_size).batches()
    return BatchIterator(EvalBatches(source, data, order, share), data, len(order))


def single_batch(image: NDArray[np.uint8], data: Data) -> "Batch":
    """Make a batch of one image, as `image_batch`."""
    return image_batch([image], data, 1)


def image_batch(images: Sequence[NDArray[np.uint8]], data: Data, size: int) -> "Batch":
    """Make a batch of images without targets, for prediction.

    Args:
        images: ``[H, W, 3]`` uint8 RGB each, of one canvas (`transforms.canvas_hw`); one at least.
        data: settings; those of resize and canvas are used.
        size: of the batch; slots beyond the images have ``valid`` False and index -1.

    Raises:
        ValueError: an array is no such image.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(
                "image: expected [H, W, 3] uint8 RGB (jaxdet.data.load_image makes it), got "
                f"{image.shape} {image.dtype}"
            )
    views = [view_of((image.shape[0], image.shape[1]), data) for image in images]
    slots = [image_arrays(image, view, i) for i, (image, view) in enumerate(zip(images, views, strict=True))]
    return _to_batch(stack(slots + [empty_image_arrays(views[0].canvas)] * (size - len(images))))


def _to_batch(arrays: dict[str, Any]) -> "Batch":
    """Wrap stacked arrays into the classes of ``structures``."""
    from jaxdet.structures import Batch, Masks, Targets  # imports jax, see above

    targets = arrays.get("targets")
    if targets is None:
        return Batch(**arrays)
    others = {name: leaf for name, leaf in targets.items() if name not in ("masks", "frames")}
    return Batch(**{**arrays, "targets": Targets(masks=Masks(targets["masks"], targets["frames"]), **others)})
