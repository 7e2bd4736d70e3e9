"""Test-time augmentation: an image is seen several times, mirrored and at other sizes, and what is found is merged.

As detectron2's ``GeneralizedRCNNWithTTA`` does it
(https://github.com/facebookresearch/detectron2/blob/main/detectron2/modeling/test_time_augmentation.py): detections of
all views, in pixels of the image, go through suppression once more, class by class.  Then the model is asked for the
masks of what is left, in every view, and their probabilities are averaged.  A detection keeps the score that the best
view gave it; scores of masks are averaged too.

A model whose masks do not follow from a box alone cannot be asked: one-stage models, whose masks come from codes of
their places, and a refining step, which suppresses anew.  There the mask of a detection is the mean of its own mask and
of those that the suppressed detections of other views have, the nearest of each view, at the pixels of the image; what
a view has not found has no part in it.

Letters in shapes: N detections of all views, D slots of a model, h w rows and columns of a mask.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from jaxdet.data import Category, Data, Source, single_batch
from jaxdet.data.settings import MAX_SIDE
from jaxdet.evaluation import match_categories
from jaxdet.evaluation.inference import Progress, image_of, in_order, predict_batch, results_of
from jaxdet.evaluation.paste import encode_window, snapped, soft_mask
from jaxdet.evaluation.results import Result, image_results
from jaxdet.models.detector import Detector
from jaxdet.models.limits import Limits, suppression_of
from jaxdet.runtime.agreement import from_all
from jaxdet.runtime.compiling import compiler_options
from jaxdet.runtime.mesh import data_mesh, replicate, split_batch
from jaxdet.structures import Batch, Detections, Masks

_NMS = 0.5  #: IoU of the suppression over views, where a model does not say its own
_Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TestTimeAugmentation:
    """How often an image is seen: at each of ``short_sides``, and with ``flip`` mirrored left to right too.

    A short side, in pixels, stands in the place of ``data.short_side``, and ``data.long_side`` follows in proportion;
    none: the model's own.  Each size has canvases of its own to compile.
    """

    __test__: ClassVar[bool] = False  # pytest takes classes of such a name for tests

    flip: bool = True
    short_sides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if len(set(self.short_sides)) < len(self.short_sides):
            raise ValueError(f"test-time augmentation: expected each short side once, got {self.short_sides}")

    @classmethod
    def from_text(cls, text: str) -> "TestTimeAugmentation":
        """What a command takes: ``flip,600,800``, each part of it where it is wanted.

        Raises:
            ValueError: another word.
        """
        words = [word.strip() for word in text.split(",") if word.strip()]
        sizes = [word for word in words if word != "flip"]
        if not words or not all(size.isdecimal() and 0 < int(size) <= MAX_SIDE for size in sizes):
            raise ValueError(
                f"--tta: expected flip, short sides of 1 to {MAX_SIDE:,} pixels, or both, as in flip,600,800, "
                f"got {text!r}"
            )
        return cls("flip" in words, tuple(map(int, sizes)))

    def views(self, data: Data) -> Iterator[tuple[Data, bool]]:
        """For each view the settings of its size, and whether it is mirrored."""
        for side in self.short_sides or (data.short_side,):
            long_side = max(round(data.long_side * side / data.short_side), side)
            sized = dataclasses.replace(data, short_side=side, long_side=long_side)
            yield from ((sized, flipped) for flipped in ((False, True) if self.flip else (False,)))


@dataclass(frozen=True)
class _View:
    """An image as the model sees it once."""

    batch: Batch  #: of it alone
    flipped: bool
    width: int  #: of the image as stored, in pixels

    @property
    def factors(self) -> _Floats:
        """``[4]``: resized pixels in a stored one, for x1, y1, x2, y2."""
        return np.asarray(self.batch.scale, np.float32)[0, [1, 0, 1, 0]]

    def to_image(self, boxes: _Floats) -> _Floats:
        """Boxes ``[..., 4]`` of the view in pixels of the stored image."""
        return self._mirrored(boxes / self.factors)

    def to_view(self, boxes: _Floats) -> _Floats:
        """Boxes ``[..., 4]`` of the stored image in pixels of the view."""
        return self._mirrored(boxes) * self.factors

    def _mirrored(self, boxes: _Floats) -> _Floats:
        if not self.flipped:
            return boxes
        width = np.float32(self.width)
        return np.stack([width - boxes[..., 2], boxes[..., 1], width - boxes[..., 0], boxes[..., 3]], -1)


def augmented_results(
    model: Detector,
    mesh: Mesh,
    variables: Any,
    image: NDArray[np.uint8],
    data: Data,
    augment: TestTimeAugmentation,
    category_ids: Sequence[int],
    *,
    image_id: int = 0,
    score_threshold: float = 0.0,
    limits: Limits | None = None,
) -> list[Result]:
    """What is found in an image that is seen several times; of a single view, what is found in that.

    Args:
        model: any `Detector`.
        mesh: a single device.
        variables: of the model, on that device.
        image: ``[H, W, 3]`` uint8 RGB.
        data: settings of resize and canvas.
        augment: the views.
        category_ids: the id that each label stands for.
        image_id: of the results.
        score_threshold: detections below it are left out.
        limits: of suppression, in each view and over all; None: those of the model.
    """
    views = [
        _View(single_batch(image[:, ::-1].copy() if flipped else image, sized), flipped, image.shape[1])
        for sized, flipped in augment.views(data)
    ]
    on_device = [split_batch(view.batch, mesh) for view in views]
    # All begin before the first is waited for.
    predicted = [predict_batch(model, mesh, variables, batch, limits) for batch in on_device]
    host = [image_of(jax.tree.map(np.asarray, found), 0) for found in predicted]
    if len(views) == 1:
        return results_of(image_of(views[0].batch, 0), host[0], image_id, category_ids, score_threshold)
    found = [_in_image(its, view, score_threshold) for its, view in zip(host, views, strict=True)]
    threshold, slots = _suppression(model, limits, host[0])
    kept, nearest = merge(found, threshold, slots)
    hw = image.shape[0], image.shape[1]
    if getattr(model, "describes_given", False):
        kept = _described(model, variables, on_device, views, kept, host[0])
        return image_results(kept, image_id=image_id, category_ids=category_ids, scale=np.ones(2, np.float32), hw=hw)
    results = image_results(kept, image_id=image_id, category_ids=category_ids, scale=np.ones(2, np.float32), hw=hw)
    if host[0].masks is None:
        return results
    rated = kept.scores if kept.mask_scores is None else kept.mask_scores
    for result, members, own, score in zip(results, nearest, rated, kept.scores, strict=True):
        result["segmentation"] = _mean_mask(found, members, hw)
        if own != score:
            result["mask_score"] = float(own)
    return results


def detect_augmented(
    model: Detector,
    variables: Any,
    source: Source,
    data: Data,
    augment: TestTimeAugmentation,
    *,
    categories: Sequence[Category] | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """`inference.detect` with several views of each image, one image after the other, on one device of each process."""
    ids = match_categories(model.num_classes, source.categories, categories)
    mesh = data_mesh(jax.local_devices()[:1])
    placed = replicate(variables, mesh)
    indices = range(jax.process_index(), len(source), jax.process_count())

    def own_share() -> list[tuple[int, list[Result]]]:
        found = []
        for index in indices:
            image, image_id = source[index].image, int(source.image_ids[index])
            its = augmented_results(model, mesh, placed, image, data, augment, ids, image_id=image_id)
            found.append((index, its))
            if progress is not None:
                progress(min(len(found) * jax.process_count(), len(source)), len(source))
        return found

    return in_order(from_all(own_share), len(source))


def merge(found: Sequence[Detections], threshold: float, limit: int) -> tuple[Detections, list[list[tuple[int, int]]]]:
    """Greedy suppression inside each class over the detections of all views, in pixels of the image.

    Args:
        found: of each view, without a batch axis and with valid rows alone.
        threshold: IoU above which the better one suppresses the other; of equal scores the first view's is better.
        limit: how many may stay.

    Returns:
        Those that stay, best first, without masks, and for each of them the view and the row of itself and of the
        nearest that it suppresses in each other view.
    """
    boxes, scores, labels = (
        np.concatenate([getattr(its, name) for its in found]) for name in ("boxes", "scores", "labels")
    )
    of = [(view, row) for view, its in enumerate(found) for row in range(len(its.scores))]
    view_of = np.array([view for view, _ in of], int)
    left = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    members: list[list[tuple[int, int]]] = []
    while left.size and len(kept) < limit:
        best, left = left[0], left[1:]
        overlap = _iou(boxes[best], boxes[left])
        gone = (overlap > threshold) & (labels[left] == labels[best])
        near: dict[int, tuple[float, int]] = {}
        for share, other in zip(overlap[gone], left[gone].tolist(), strict=True):
            if view_of[other] != view_of[best] and share > near.get(view_of[other], (0.0, 0))[0]:
                near[view_of[other]] = share, other
        kept.append(int(best))
        members.append([of[best], *(of[other] for _, other in near.values())])
        left = left[~gone]
    plain = [dataclasses.replace(its, masks=None) for its in found]  # bitmaps of views may differ in size
    stay: Detections = jax.tree.map(lambda *leaves: np.concatenate(leaves)[np.array(kept, np.intp)], *plain)
    return stay, members


def _in_image(found: Detections, view: _View, score_threshold: float) -> Detections:
    """The detections of a view that count, in pixels of the stored image, masks turned as the image lies."""
    boxes = view.to_image(found.boxes)
    keep = found.valid & (found.scores >= score_threshold) & np.isfinite(boxes).all(-1)
    # As in results of one view: what has no area is no object, and overlaps with nothing, not even with its equal.
    keep &= (boxes[:, 2:] > boxes[:, :2]).all(-1)
    keep &= np.isfinite(found.scores if found.mask_scores is None else found.mask_scores)
    its: Detections = jax.tree.map(lambda leaf: np.asarray(leaf)[keep], found)
    masks = its.masks
    if masks is not None:
        values = masks.values[..., ::-1] if view.flipped else masks.values
        crop = None if masks.crop is None else view.to_image(masks.crop)
        masks = dataclasses.replace(masks, values=values, frames=view.to_image(masks.frames), crop=crop)
    return dataclasses.replace(its, boxes=boxes[keep], masks=masks)


def _suppression(model: Detector, limits: Limits | None, found: Detections) -> tuple[float, int]:
    """Threshold and number of detections of the suppression over views."""
    if limits is not None:
        return float(limits.iou_threshold), int(limits.max_detections)
    if not hasattr(type(model), "suppression_key"):
        return _NMS, len(found.scores)
    suppression: Any = suppression_of(model)
    return suppression.iou_threshold, suppression.max_detections


def _described(
    model: Detector,
    variables: Any,
    batches: Sequence[Batch],
    views: Sequence[_View],
    kept: Detections,
    like: Detections,
) -> Detections:
    """The detections with masks and scores of masks that are the mean of what the model says of them in each view."""
    if like.masks is None:
        return kept
    number, slots = len(kept.scores), len(like.scores)

    def padded(leaf: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([leaf, np.zeros((slots - number, *leaf.shape[1:]), leaf.dtype)])[None]

    valid = np.ones(number, bool)
    values, rated = [], []
    for view, batch in zip(views, batches, strict=True):
        boxes = view.to_view(kept.boxes).astype(np.float32)
        columns = [padded(leaf) for leaf in (boxes, kept.scores, kept.labels, valid, np.zeros(number, np.int32))]
        given = Detections(*columns)  # type: ignore[arg-type]
        said = _describe()(model, variables, batch, given)
        bitmaps = np.asarray(said.masks.values)[0, :number]
        values.append(bitmaps[..., ::-1] if view.flipped else bitmaps)
        if said.mask_scores is not None:
            rated.append(np.asarray(said.mask_scores)[0, :number])
    mean = np.mean(np.stack(values), 0, dtype=np.float32)
    masks = Masks(mean, kept.boxes, threshold=like.masks.threshold, snapped=like.masks.snapped)
    scores = np.mean(np.stack(rated), 0, dtype=np.float32) if rated else None
    return dataclasses.replace(kept, masks=masks, mask_scores=scores)


@cache
def _describe() -> Any:
    """Not made before the first use, as `inference.predict_batch`."""
    return jax.jit(
        lambda model, variables, batch, given: model.apply(variables, batch, given, method="describe"),
        static_argnums=0,
        compiler_options=compiler_options(),
    )


def _mean_mask(found: Sequence[Detections], members: Sequence[tuple[int, int]], hw: tuple[int, int]) -> Any:
    """The mean of the masks of some detections, by view and row, as run lengths."""
    parts, threshold = [], 0.5
    for view, row in members:
        masks = found[view].masks
        assert masks is not None  # those of a model all have masks or none has
        frame = snapped(masks.frames[row], masks.values[row].shape) if masks.snapped else masks.frames[row]
        crop, threshold = None if masks.crop is None else masks.crop[row], masks.threshold
        parts.append(soft_mask(masks.values[row], frame, hw, crop, masks.logits))
    top, left = min(part[0] for part in parts), min(part[1] for part in parts)
    bottom = max(y + values.shape[0] for y, _, values in parts)
    right = max(x + values.shape[1] for _, x, values in parts)
    total = np.zeros((bottom - top, right - left), np.float32)
    for y, x, values in parts:
        total[y - top : y - top + values.shape[0], x - left : x - left + values.shape[1]] += values
    return encode_window(total / np.float32(len(parts)) >= threshold, top, left, hw)


def _iou(box: _Floats, boxes: _Floats) -> _Floats:
    """IoU ``[N]`` of one box with others."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), -1)
    area = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], -1)
    return np.asarray(shared / np.maximum(area - shared, 1e-9), np.float32)
