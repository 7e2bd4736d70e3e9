"""Which images make up which batch, as pure functions of seed and step.

A batch holds images of one canvas only.  There is no state: step ``s`` of a run is the same batch for whoever asks,
with any number of workers or processes.  So a run resumes by its step number alone.

A training set may be cut into shards (``data.shards``), equal parts in its order.  Each has as many slots of every
batch, one shard behind the other, and what is shuffled stays within its shard.  So a process that has the slots of some
shards reads the images of these alone, and the batches do not depend on how many processes there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.pipeline.augment import check_augment
from jaxdet.data.pipeline.transforms import canvas_hw
from jaxdet.data.records import Source
from jaxdet.data.settings import Data
from jaxdet.data.sources.stored import CHECK, StoredSource

# Part of the seed of each random draw, so that draws for different purposes are independent of each other.
_ORDER, AUGMENT, REPLACE, MIX, OWN = 0, 1, 2, 3, 4


def buckets(sizes: NDArray[np.int32], chosen: NDArray[np.int64], data: Data) -> list[NDArray[np.int64]]:
    """Split positions of images by canvas.

    Args:
        sizes: ``[N, 2]`` heights and widths of all images.
        chosen: ``[M]`` positions to split.
        data: settings of the canvas.

    Returns:
        For each canvas that occurs, landscape first, the widest of all before the others, the positions in the given
        order.
    """
    # Data sets have few sizes, if many images: each is asked for its canvas once.
    distinct, which = np.unique(sizes[chosen], axis=0, return_inverse=True)
    canvases = [canvas_hw((height, width), data) for height, width in distinct.tolist()]
    order = sorted(set(canvases), key=lambda hw: hw[0] - hw[1])
    places = np.array([order.index(canvas) for canvas in canvases], np.int64)[which.ravel()]
    return [chosen[places == place] for place in range(len(order))]


def trainable(source: Source, data: Data) -> NDArray[np.int64]:
    """Find the images to train on, as ``data.min_side`` and ``data.filter_empty`` say.

    Returns:
        ``[M]`` their positions, ascending.

    Raises:
        ValueError: there is none.
    """
    keep = source.sizes.min(axis=1) >= data.min_side
    if data.filter_empty:
        keep &= source.usable > 0
    chosen = np.flatnonzero(keep)
    if not len(chosen):
        raise ValueError(
            f"training data: expected images with usable annotations and sides of at least {data.min_side} pixels, "
            f"got none among {len(source)}; see data.filter_empty, data.min_side and `jaxdet data check`"
        )
    return chosen


def left_out(source: Source, data: Data) -> list[str]:
    """Say in a line each what training leaves out of a source: images, annotations, and categories altogether.

    What has no slot among ``data.max_boxes``, and broken images, are counted as they come (`BatchIterator`).
    """
    lines = []
    small = source.sizes.min(axis=1) < data.min_side
    empty = (source.usable == 0) & ~small & data.filter_empty
    reasons = []
    if small.any():
        reasons.append(f"{small.sum()} with a side under {data.min_side} pixels (data.min_side)")
    if empty.any():
        reasons.append(f"{empty.sum()} without usable annotations (data.filter_empty)")
    if reasons:
        lines.append(f"{(small | empty).sum()} of {len(source)} images: {', '.join(reasons)}")
    counts = source.table if isinstance(source, StoredSource) else {}
    if "left_out" in counts and counts["left_out"].any():
        lost, all_ = counts["left_out"].sum(), counts["left_out"].sum() + source.usable.sum()
        lines.append(
            f"{lost} of {all_} annotations: ignored, without area, under a pixel, or outside of the image; {CHECK}"
        )
    if "learned" in counts and not counts["learned"].all():
        names = [category.name for category, n in zip(source.categories, counts["learned"], strict=True) if not n]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        lines.append(f"{len(names)} of {len(source.categories)} categories, which have nothing to learn from: {shown}")
    return [f"training leaves out {line}" for line in lines]


@dataclass(frozen=True, eq=False)  # compared by identity, so that lru_cache can key on it
class TrainPlan:
    """The order of training: in each epoch every image comes exactly once, shuffled within its bucket and its shard.

    The last batch of a bucket, or of a shard's part of it, is filled with -1: slots from which nothing is learned.
    """

    buckets: tuple[NDArray[np.int64], ...]  #: positions in the source, by canvas; ascending where there are shards
    batch_size: int  #: over all processes
    seed: int
    bounds: tuple[int, ...] = ()  #: positions at which a shard ends and the next one begins

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in an epoch; all epochs have the same."""
        # Of each canvas as many as the shard with the most images of it needs.
        return sum(max(-(-len(part) // self.slots_of_shard) for part in parts) for parts in _parts(self))

    def batch(self, step: int) -> NDArray[np.int64]:
        """``[batch_size]`` positions in the source for a step (0, 1, ...), or -1; one is always an image."""
        epoch, place = divmod(step, self.steps_per_epoch)
        batch: NDArray[np.int64] = _epoch(self, epoch)[place]
        return batch

    @property
    def slots_of_shard(self) -> int:
        """How many slots of a batch a shard has."""
        return self.batch_size // (len(self.bounds) + 1)

    def of_shard(self, slot: int) -> NDArray[np.int64]:
        """Positions of all images of the shard that a slot belongs to, canvas by canvas."""
        return np.concatenate([parts[slot // self.slots_of_shard] for parts in _parts(self)])

    def of_canvas(self, slot: int, index: int) -> NDArray[np.int64]:
        """Those of the canvas that the image at position ``index`` has."""
        canvas = next(canvas for canvas, bucket in enumerate(self.buckets) if index in bucket)
        return _parts(self)[canvas][slot // self.slots_of_shard]


def train_plan(source: Source, data: Data, seed: int) -> TrainPlan:
    """Plan the training on a source.

    Raises:
        ValueError: there is no image to train on, `data.augment` does not fit, or as `check_shards`; or a shard has no
            image of a canvas that others have, so that it could not fill its slots.
    """
    check_augment(data)
    check_shards(data)
    chosen = trainable(source, data)
    bounds = [positions.start for positions in shard_positions(len(source), data.shards)]
    plan = TrainPlan(tuple(buckets(source.sizes, chosen, data.in_training())), data.batch_size, seed, tuple(bounds[1:]))
    for bucket, parts in zip(plan.buckets, _parts(plan), strict=True):
        for shard, part in enumerate(parts):
            if not len(part):
                height, width = source.sizes[bucket[0]]
                raise ValueError(
                    f"data.shards: expected images of every canvas in each of the {data.shards} shards, shard {shard} "
                    f"has none like image {bucket[0]} of {height} x {width} pixels; bring the training set into "
                    "random order, or set data.shards to less"
                )
    return plan


def check_shards(data: Data, process_count: int = 1) -> None:
    """Raise a ValueError unless a batch is cut equally into shards, and the shards are dealt equally to processes."""
    if data.batch_size % data.shards:
        raise ValueError(
            f"data.shards: expected a number that divides data.batch_size={data.batch_size}, got {data.shards}; set "
            f"data.batch_size={-(-data.batch_size // data.shards) * data.shards} or another data.shards"
        )
    if data.shards > 1 and data.shards % process_count:
        raise ValueError(
            f"data.shards: expected a multiple of the {process_count} processes, each of which reads shards of its "
            f"own, got {data.shards}; start as many processes as divide it, or set data.shards, which is another order "
            "of the images, so that a run that has begun needs --accept-changes"
        )


def shard_positions(count: int, shards: int) -> list[range]:
    """The positions in a source of ``count`` images that each of its shards has; sizes differ by one at most."""
    bounds = [count * shard // shards for shard in range(shards + 1)]
    return [range(first, last) for first, last in pairwise(bounds)]


def own_positions(count: int, data: Data, process_index: int, process_count: int) -> range:
    """The positions that a process may read: those of its shards, or all where there is one shard."""
    if data.shards == 1:
        return range(count)
    each = data.shards // process_count
    mine = shard_positions(count, data.shards)[process_index * each : (process_index + 1) * each]
    return range(mine[0].start, mine[-1].stop)


@lru_cache(maxsize=4)
def _parts(plan: TrainPlan) -> list[list[NDArray[np.int64]]]:
    """The buckets, each as the parts that the shards have of it."""
    return [np.split(bucket, np.searchsorted(bucket, plan.bounds)) for bucket in plan.buckets]


@lru_cache(maxsize=4)  # the current epoch, and the next one while batches are prepared ahead
def _epoch(plan: TrainPlan, epoch: int) -> NDArray[np.int64]:
    """``[steps_per_epoch, batch_size]`` the batches of an epoch."""
    # Images are shuffled within their bucket and shard, then batches among each other: canvases alternate at random.
    rng = np.random.default_rng([plan.seed, _ORDER, epoch])
    canvases = []
    for parts in _parts(plan):
        rows = [_cut([rng.permutation(part)], plan.slots_of_shard) for part in parts]
        # A shard that has fewer images of this canvas leaves its slots of the last batches empty.
        steps = max(map(len, rows))
        padded = [np.pad(part, ((0, steps - len(part)), (0, 0)), constant_values=-1) for part in rows]
        canvases.append(np.concatenate(padded, axis=1))
    return rng.permutation(np.concatenate(canvases))


def _cut(buckets: Sequence[NDArray[np.int64]], batch_size: int) -> NDArray[np.int64]:
    """Cut each bucket into batches of its own, ``[steps, batch_size]``; the last one of a bucket ends with -1."""
    rows = [np.zeros((0, batch_size), np.int64)]  # `concatenate` needs one array, even without buckets
    for bucket in buckets:
        lacking = -len(bucket) % batch_size
        rows.append(np.pad(bucket, (0, lacking), constant_values=-1).reshape(-1, batch_size))
    return np.concatenate(rows)


@dataclass(frozen=True)
class EvalPlan:
    """The order of evaluation: every image once, in the source's order within its bucket; -1 fills the last batch."""

    buckets: tuple[NDArray[np.int64], ...]  #: positions in the source, by canvas
    batch_size: int  #: over all processes

    def batches(self) -> NDArray[np.int64]:
        """``[steps, batch_size]`` positions in the source, or -1."""
        return _cut(self.buckets, self.batch_size)


def eval_plan(source: Source, data: Data, batch_size: int) -> EvalPlan:
    """Plan the evaluation of a source, ``batch_size`` images at a time over all processes."""
    return EvalPlan(tuple(buckets(source.sizes, np.arange(len(source)), data)), batch_size)


@dataclass(frozen=True)
class Share:
    """The slots of a global batch that one process prepares: a contiguous part, equally long for all."""

    process_index: int
    process_count: int
    batch_size: int  #: over all processes

    def __post_init__(self) -> None:
        if not 0 <= self.process_index < self.process_count:
            raise ValueError(f"process: expected an index below {self.process_count}, got {self.process_index}")
        if self.batch_size % self.process_count:
            raise ValueError(
                f"batch size {self.batch_size}: expected a multiple of the number of processes {self.process_count}"
            )

    @property
    def slots(self) -> range:
        """This process's slots of the global batch."""
        size = self.batch_size // self.process_count
        return range(self.process_index * size, (self.process_index + 1) * size)
