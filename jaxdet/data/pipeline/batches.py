"""Batches as arrays: sequences that grain's workers index, position -> the images of a plan with their targets.

Batches are plain nested dicts here, since the classes of ``structures`` would import jax into every worker.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.pipeline.augment import distort, draw_view
from jaxdet.data.pipeline.mix import mix
from jaxdet.data.pipeline.own import augmented
from jaxdet.data.pipeline.plans import AUGMENT, MIX, OWN, REPLACE, Share, TrainPlan
from jaxdet.data.pipeline.transforms import IGNORED, canvas_hw, image_arrays, target_arrays, view_of
from jaxdet.data.records import Record, Source
from jaxdet.data.settings import Data

_TRIES = 10  #: images that are drawn in place of a broken one; if all are broken, the data set is at fault

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainBatches:
    """Position -> this process's part of a training batch, as a nested dict of arrays."""

    source: Source
    data: Data
    plan: TrainPlan
    share: Share
    start: int  #: the training step that position 0 stands for
    steps: int  #: number of positions

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, position: int) -> dict[str, Any]:
        step = self.start + position
        indices = self.plan.batch(step)
        return stack([self._slot(step, slot, indices) for slot in self.share.slots])

    def _slot(self, step: int, slot: int, indices: NDArray[np.int64]) -> dict[str, Any]:
        if indices[slot] >= 0:
            return self._whole_example(step, slot, int(indices[slot]))
        # A slot that only fills the batch shows an image of the batch again: batch norm that is trained takes its
        # statistics over all slots, and a black image would move them.  It is one of the slot's own shard.
        first = slot - slot % self.plan.slots_of_shard
        own = indices[first : first + self.plan.slots_of_shard]
        images = own[own >= 0] if own.max() >= 0 else self.plan.of_canvas(slot, int(indices.max()))
        return _without_targets(self._whole_example(step, slot, int(images[slot % len(images)])))

    def _whole_example(self, step: int, slot: int, index: int) -> dict[str, Any]:
        """The example of a slot; with ``data.skip_broken`` that of another image if the slot's own is broken."""
        if not self.data.skip_broken:  # the error ends the run and names the image
            return self._example(step, slot, index)
        for skipped, candidate in enumerate(self._candidates(step, slot, index)):
            try:
                example = self._example(step, slot, candidate)
            except ValueError as error:
                _log.warning("step %d: another image takes the place of a broken one: %s", step, error)
                continue
            return example | {"counts": example["counts"] | {"skipped_images": np.int32(skipped)}}
        raise ValueError(
            f"step {step}: an image and the {_TRIES} drawn in its place are broken; `jaxdet data check` "
            "lists what is wrong with a data set"
        )

    def _candidates(self, step: int, slot: int, index: int) -> Iterator[int]:
        """Yield the image itself, then others of its canvas and shard, as seed, step and slot alone say."""
        yield index
        rng = np.random.default_rng([self.plan.seed, REPLACE, step, slot])
        # From the same canvas, or the batch would not have one shape.
        yield from map(int, rng.choice(self.plan.of_canvas(slot, index), _TRIES))

    def _example(self, step: int, slot: int, index: int) -> dict[str, Any]:
        # One generator for each slot of each step: the draws depend on neither workers nor processes.
        rng = np.random.default_rng([self.plan.seed, AUGMENT, step, slot])
        record = self._mixed(step, slot, index)
        record = augmented(record, self.data, np.random.default_rng([self.plan.seed, OWN, step, slot]))
        view = draw_view(record, self.data, rng)
        targets = target_arrays(record, view, self.data)
        counts = {"dropped": targets.pop("dropped")}
        small = targets.pop("small")
        if self.data.min_box:
            counts["small_boxes"] = small
        arrays = image_arrays(record.image, view, index)
        seen = arrays["image"][: view.hw[0], : view.hw[1]]
        seen[:] = distort(seen, self.data, rng)
        return arrays | {"targets": targets, "counts": counts}

    def _mixed(self, step: int, slot: int, index: int) -> Record:
        # With the index: where a broken image was drawn to be mixed in, the candidate after it draws another one.
        rng = np.random.default_rng([self.plan.seed, MIX, step, slot, index])
        images = self.plan.of_shard(slot)
        return mix(self.source[index], lambda: self.source[int(rng.choice(images))], self.data, rng)


def _without_targets(example: dict[str, Any]) -> dict[str, Any]:
    """Keep the pixels of an example and invalidate all else: slot, ground truth, semantic map and counts."""
    targets = example["targets"] | {"valid": np.zeros_like(example["targets"]["valid"])}
    if "semantic" in targets:
        targets["semantic"] = np.full_like(targets["semantic"], IGNORED)
    # Broken images were met all the same.
    counts = {name: count if name == "skipped_images" else np.int32(0) for name, count in example["counts"].items()}
    return example | {"targets": targets, "counts": counts, "index": np.int32(-1), "valid": np.bool_(False)}


@dataclass(frozen=True)
class EvalBatches:
    """Position -> this process's part of an evaluation batch; slots without an image are zero and not valid."""

    source: Source
    data: Data
    order: NDArray[np.int64]  #: ``[steps, batch_size]``, as ``EvalPlan.batches`` gives it
    share: Share

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        row = self.order[position]  # its first slot always has an image, and all of them share a canvas
        canvas = canvas_hw((int(self.source.sizes[row[0], 0]), int(self.source.sizes[row[0], 1])), self.data)
        return stack([self._example(int(row[slot]), canvas) for slot in self.share.slots])

    def _example(self, index: int, canvas: tuple[int, int]) -> dict[str, Any]:
        if index < 0:
            return empty_image_arrays(canvas)
        record = self.source[index]
        return image_arrays(record.image, view_of(_hw(record.image), self.data), index)


def empty_image_arrays(canvas: tuple[int, int]) -> dict[str, Any]:
    """A slot that only fills the batch: black, not valid, and with sizes that any op can divide by."""
    return {
        "image": np.zeros((*canvas, 3), np.uint8),
        "true_hw": np.array(canvas, np.float32),
        "scale": np.ones(2, np.float32),
        "original_hw": np.array(canvas, np.int32),
        "index": np.int32(-1),
        "valid": np.bool_(False),
    }


def stack(examples: list[dict[str, Any]]) -> dict[str, Any]:
    """Stack nested dicts of arrays, which all have the same keys and shapes, along a new first axis."""
    return {
        key: stack([example[key] for example in examples])
        if isinstance(value, dict)
        else np.stack([example[key] for example in examples])
        for key, value in examples[0].items()
    }


def _hw(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
