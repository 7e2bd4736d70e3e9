"""Which images make up which batch, as pure functions of seed and step.

A batch holds images of one canvas only.  Nothing here remembers anything: step ``s`` of a run is the same batch
whoever asks for it, however often, with any number of workers or processes.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.records import Source
from jaxdet.data.settings import Data
from jaxdet.data.transforms import IGNORED, canvas_hw, image_arrays, target_arrays, view_of

# What the random draws are for; part of their seeds.
_ORDER, _AUGMENT, _REPLACE = 0, 1, 2
_TRIES = 10  #: images that are drawn in place of a broken one before it is an error

_log = logging.getLogger(__name__)


def buckets(sizes: NDArray[np.int32], chosen: NDArray[np.int64], data: Data) -> list[NDArray[np.int64]]:
    """Split the positions ``chosen`` by canvas.

    Args:
        sizes: ``[N, 2]`` heights and widths of all images.
        chosen: ``[M]`` positions to split.

    Returns:
        For each canvas that occurs, landscape first, the positions in the given order.  A square canvas is one bucket.
    """
    landscape = sizes[chosen, 1] > sizes[chosen, 0]
    if canvas_hw((1, 2), data) == canvas_hw((2, 1), data):
        landscape = np.zeros(len(chosen), np.bool_)
    return [part for part in (chosen[landscape], chosen[~landscape]) if len(part)]


def trainable(source: Source, data: Data) -> NDArray[np.int64]:
    """Positions of the images to train on.

    Raises:
        ValueError: none is left.
    """
    keep = source.sizes.min(axis=1) >= data.min_side
    if data.filter_empty:
        keep &= source.usable > 0
    chosen = np.flatnonzero(keep)
    if not len(chosen):
        raise ValueError(
            f"training data: expected images with usable annotations and sides of at least {data.min_side} pixels, "
            f"got none among {len(source)}; see data.filter_empty, data.min_side and `python -m jaxdet.data.check`"
        )
    return chosen


@dataclass(frozen=True, eq=False)  # compared by identity, so that lru_cache can key on it
class TrainPlan:
    """The order of training: in each epoch every image comes exactly once, shuffled within its bucket.

    What the last batch of a bucket lacks is filled with -1: slots that nothing is learned from.
    """

    buckets: tuple[NDArray[np.int64], ...]
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches of an epoch, the same in each."""
        return sum(-(-len(bucket) // self.batch_size) for bucket in self.buckets)

    def batch(self, step: int) -> NDArray[np.int64]:
        """``[batch_size]`` positions in the source of step ``step`` (0, 1, ...), or -1; the first is an image."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batch: NDArray[np.int64] = _epoch(self, epoch)[place]
        return batch


@lru_cache(maxsize=4)  # the epoch at hand, and the next one while batches are prepared ahead
def _epoch(plan: TrainPlan, epoch: int) -> NDArray[np.int64]:
    rng = np.random.default_rng([plan.seed, _ORDER, epoch])
    return rng.permutation(_cut([rng.permutation(bucket) for bucket in plan.buckets], plan.batch_size))


def _cut(buckets: Sequence[NDArray[np.int64]], batch_size: int) -> NDArray[np.int64]:
    """``[steps, batch_size]``: each bucket in batches of its own, the last of which ends with -1."""
    rows = [np.zeros((0, batch_size), np.int64)]
    for bucket in buckets:
        lacking = -len(bucket) % batch_size
        rows.append(np.pad(bucket, (0, lacking), constant_values=-1).reshape(-1, batch_size))
    return np.concatenate(rows)


@dataclass(frozen=True)
class EvalPlan:
    """The order of evaluation: every image once, in the source's order within its bucket; -1 fills the last batch."""

    buckets: tuple[NDArray[np.int64], ...]
    batch_size: int

    def batches(self) -> NDArray[np.int64]:
        """``[steps, batch_size]`` positions in the source, or -1."""
        return _cut(self.buckets, self.batch_size)


@dataclass(frozen=True)
class Share:
    """The rows of a global batch that one process prepares."""

    process_index: int
    process_count: int
    batch_size: int  #: global

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process: expected an index below {self.process_count}, got {self.process_index}")
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch size {self.batch_size}: expected a multiple of the number of processes {self.process_count}"
            )

    @property
    def slots(self) -> range:
        """Slots of the global batch."""
        size = self.batch_size // self.process_count
        return range(self.process_index * size, (self.process_index + 1) * size)


@dataclass(frozen=True)
class TrainBatches:
    """Step -> this process's part of the batch, as a dict of arrays; what the workers of the pipeline run."""

    source: Source
    data: Data
    plan: TrainPlan
    share: Share
    start: int  #: step of position 0
    steps: int

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, position: int) -> dict[str, Any]:
        step = self.start + position
        indices = self.plan.batch(step)
        return stack([self._slot(step, slot, indices) for slot in self.share.slots])

    def _slot(self, step: int, slot: int, indices: NDArray[np.int64]) -> dict[str, Any]:
        if indices[slot] >= 0:
            return self._whole_example(step, slot, int(indices[slot]))
        # Pixels of an image that is there already, so that statistics of the batch stay those of images.
        images = indices[indices >= 0]
        return _without_truth(self._whole_example(step, slot, int(images[slot % len(images)])))

    def _whole_example(self, step: int, slot: int, index: int) -> dict[str, Any]:
        """The example of a slot; with ``data.skip_broken`` that of another image if its own is broken."""
        if not self.data.skip_broken:
            return self._example(step, slot, index)
        for skipped, candidate in enumerate(self._candidates(step, slot, index)):
            try:
                return self._example(step, slot, candidate) | {"skipped_images": np.int32(skipped)}
            except ValueError as error:
                _log.warning("step %d: another image takes the place of a broken one: %s", step, error)
        raise ValueError(
            f"step {step}: an image and the {_TRIES} drawn in its place are broken; `python -m jaxdet.data.check` "
            "lists what is wrong with a data set"
        )

    def _candidates(self, step: int, slot: int, index: int) -> Iterator[int]:
        """The image itself, then others of its canvas: the same ones in whatever process the slot is."""
        yield index
        rng = np.random.default_rng([self.plan.seed, _REPLACE, step, slot])
        bucket = next(bucket for bucket in self.plan.buckets if index in bucket)
        yield from map(int, rng.choice(bucket, _TRIES))

    def _example(self, step: int, slot: int, index: int) -> dict[str, Any]:
        # One generator for each slot of each step: the draws depend on neither workers nor processes.
        rng = np.random.default_rng([self.plan.seed, _AUGMENT, step, slot])
        record = self.source[index]
        view = view_of(_hw(record.image), self.data, flip=bool(rng.random() < self.data.flip_probability))
        targets = target_arrays(record, view, self.data)
        dropped = targets.pop("dropped")
        return image_arrays(record.image, view, index) | {"targets": targets, "dropped": dropped}


def _without_truth(example: dict[str, Any]) -> dict[str, Any]:
    """The pixels of an example as no image of the source: no ground truth is valid, and all of its map unknown."""
    targets = example["targets"] | {"valid": np.zeros_like(example["targets"]["valid"])}
    if "semantic" in targets:
        targets["semantic"] = np.full_like(targets["semantic"], IGNORED)
    nothing = {"index": np.int32(-1), "valid": np.bool_(False), "dropped": np.int32(0)}
    return example | {"targets": targets} | nothing


@dataclass(frozen=True)
class EvalBatches:
    """Position -> this process's part of an evaluation batch; slots without an image are zero and not valid."""

    source: Source
    data: Data
    order: NDArray[np.int64]  #: of ``EvalPlan.batches``
    share: Share

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.order[position]
        canvas = canvas_hw((int(self.source.sizes[row[0], 0]), int(self.source.sizes[row[0], 1])), self.data)
        return stack([self._example(int(row[slot]), canvas) for slot in self.share.slots])

    def _example(self, index: int, canvas: tuple[int, int]) -> dict[str, Any]:
        if index < 0:
            return empty_image_arrays(canvas)
        record = self.source[index]
        return image_arrays(record.image, view_of(_hw(record.image), self.data), index)


def empty_image_arrays(canvas: tuple[int, int]) -> dict[str, Any]:
    """A slot that only fills the batch: black, not valid, sizes that any op can divide by."""
    return {
        "image": np.zeros((*canvas, 3), np.uint8),
        "true_hw": np.array(canvas, np.float32),
        "scale": np.ones(2, np.float32),
        "original_hw": np.array(canvas, np.int32),
        "index": np.int32(-1),
        "valid": np.bool_(False),
    }


def stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Join equal nested dicts of arrays along a new first axis."""
    return {
        key: stack([example[key] for example in examples])
        if isinstance(value, dict)
        else np.stack([example[key] for example in examples])
        for key, value in examples[0].items()
    }


def _hw(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
