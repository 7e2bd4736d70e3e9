"""The dense detector: it scores and moves every place of every level, and the best places become detections.

With one class and a sampler it is the region proposal network (Ren et al. 2015); with K classes, a focal loss and no
sampler RetinaNet (Lin et al. 2017); with points in place of anchors FCOS (Tian et al. 2019).  What they share is here
once: places and which of them exist, matching, losses, the best of each level, decoding, suppression.

Letters in shapes: B images, n places of a level, N of all levels, A places in a cell, S samples, K classes, c numbers
of a code.  Boxes are in pixels of the resized image.
"""

import dataclasses
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.features import Losses
from jaxdet.nn.heads.codes import Codes, read_codes
from jaxdet.nn.heads.dense import DenseHead, RPNHead
from jaxdet.ops.anchors import Anchors, Places, by_place, inside, on_image
from jaxdet.ops.boxes import BoxCoder, DeltaCoder, area, clip, safe
from jaxdet.ops.devices import on_own_images
from jaxdet.ops.losses import (
    BinaryCrossEntropy,
    BoxLoss,
    ClassLoss,
    SmoothL1,
    binary_cross_entropy,
    centerness,
    masked_sum,
)
from jaxdet.ops.matching import Assigner, Matcher
from jaxdet.ops.rounding import whole_parts
from jaxdet.ops.sampling import Choice, HardNegatives, Sampler
from jaxdet.ops.selection import largest_first, top_k
from jaxdet.ops.suppression import NMS, Suppression
from jaxdet.ranges import SHARE, WEIGHT, Range, check_ranges
from jaxdet.structures import Detections, Features, Proposals, Targets


@struct.dataclass
class Origins:
    """The places that detections, or what is trained on, come from, and what the head said there."""

    places: jax.Array  #: ``[B, M, 4]``
    codes: jax.Array | None  #: ``[B, M, c]``


@struct.dataclass
class DenseOutputs:
    """What the head predicts for every place, level by level, and inside a level in the order y, x, place."""

    places: list[jax.Array]  #: ``[n, 4]`` float32, anchors or points as boxes
    exists: list[jax.Array]  #: ``[B, n]`` bool, the cell is not padding
    logits: list[jax.Array]  #: ``[B, n, K]`` float32
    deltas: list[jax.Array]  #: ``[B, n, 4]`` float32
    codes: list[Codes] | None  #: what else the head predicts of each place; None where it has no codes
    quality: list[jax.Array] | None  #: ``[B, n]`` float32, logits of how well a place fits; None where it has none
    num_classes: int = struct.field(pytree_node=False)  #: K; logits may have a column more, background

    def origins(self, index: jax.Array) -> Origins:
        """Where what has the places ``index [B, M]``, counted over all levels, comes from."""
        codes = None if self.codes is None else read_codes(self.codes, index)
        return Origins(jnp.concatenate(self.places)[index], codes)


@struct.dataclass
class Assigned:
    """The places of a batch that were trained on, and what they should have predicted."""

    index: jax.Array  #: ``[B, S]`` int32, counted over all levels
    positive: jax.Array  #: ``[B, S]`` bool
    gt_index: jax.Array  #: ``[B, S]`` int32, the ground truth; 0 where not positive
    boxes: jax.Array  #: ``[B, S, 4]``, what was predicted there, cut to the image; no gradient


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which places go on: the ``per_level`` best of each level, of which ``suppression`` leaves a few.

    A place is ranked by its likeliest class, and all its classes go on.  With ``pairs_above`` pairs of a place and a
    class are ranked, those with a higher score, and boxes without area are dropped (FCOS).

    Boxes are cut to the image before suppression, or with ``clip="after"`` behind it, as in detectron2's RetinaNet:
    then they suppress each other with what lies outside of the image, and those that lie there as a whole take a place
    among the detections before they are dropped.
    """

    per_level: int = 1000
    suppression: Suppression = NMS()
    pairs_above: float | None = None
    clip: Literal["before", "after"] = "before"

    def __post_init__(self) -> None:
        check_ranges(self, per_level=Range(1, 10**7), pairs_above=SHARE)
        if self.clip not in ("before", "after"):
            raise ValueError(f'Selection.clip: expected "before" or "after" (suppression), got {self.clip!r}')


@struct.dataclass
class _Candidates:
    """What suppression gets of a level."""

    boxes: jax.Array  #: ``[M, 4]``
    scores: jax.Array  #: ``[M, K]``, or ``[M, 1]`` of one class
    valid: jax.Array  #: ``[M]``
    index: jax.Array  #: ``[M]``, the place in the level
    labels: jax.Array  #: ``[M]``, the class, where there is the score of one


class DenseDetector(nn.Module):
    """Places are scored and moved by ``head``; the best become detections, or proposals of a second stage.

    ``sampler`` chooses the places to train on; None: all of them, and the losses are divided by the number of
    positives, of which every image counts ``least_positives`` at least.  ``mining`` weighs the class losses of what was
    chosen.  Where the head predicts how well a place fits (its centerness), scores are times that, box losses are
    weighted by the true value, and there is a ``loss_centerness``.  ``box_weight`` is that of the box loss.

    ``border`` admits places that far outside the image to training, negative: all.  ``train`` and ``test``
    select what goes on.  Places in the padding beyond ``true_hw`` rounded up to ``pad_multiple`` do not exist, so that
    what is found does not depend on the canvas.
    """

    head: DenseHead
    places: Places = Anchors()
    coder: BoxCoder = DeltaCoder()
    matcher: Assigner = Matcher()
    sampler: Sampler | None = None
    mining: HardNegatives | None = None
    class_loss: ClassLoss = BinaryCrossEntropy()
    box_loss: BoxLoss = SmoothL1()
    box_weight: float = 1.0
    least_positives: int = 1
    border: float = -1.0
    train: Selection = Selection()
    test: Selection = Selection()
    pad_multiple: int = 32

    def __post_init__(self) -> None:
        check_ranges(self, border=Range(-1e6, 1e6), pad_multiple=Range(1, 4096))
        check_ranges(self, box_weight=WEIGHT, least_positives=Range(0, 10**6))
        super().__post_init__()

    def __call__(self, features: Features, true_hw: jax.Array, num_classes: int = 1) -> DenseOutputs:
        """Head outputs on all levels of the places, for images of ``true_hw [B, 2]``."""
        levels = self.places.levels
        # The reference pads each image to that multiple and keeps the anchors on this padding.
        padded = whole_parts(true_hw, self.pad_multiple) * self.pad_multiple
        outputs = DenseOutputs([], [], [], [], None, None, num_classes)
        codes, quality = [], []
        columns = self.class_loss.columns(num_classes)
        for i, (level, x) in enumerate(zip(levels, features.select(levels, "the dense head"), strict=True)):
            maps = self.head(x, columns, i)
            batch, height, width, channels = maps.deltas.shape
            if channels != 4 * self.places.per_cell:
                raise ValueError(self._wrong_places(channels // 4))
            # NumPy until here: places depend on shapes alone and become constants of the program.
            outputs.places.append(jnp.asarray(self.places.grid(level, height, width, features.canvas_hw)))
            outputs.exists.append(on_image(padded / 2**level, height, width, self.places.per_cell))
            # [B, h, w, A * K] -> [B, h * w * A, K]: the order of ``places``.  Scores, boxes and losses are float32.
            outputs.logits.append(by_place(maps.logits, columns).astype(jnp.float32))
            outputs.deltas.append(by_place(maps.deltas, 4).astype(jnp.float32))
            if maps.codes is not None:
                codes.append(maps.codes)
            if maps.quality is not None:
                quality.append(maps.quality.reshape(batch, -1).astype(jnp.float32))
        return dataclasses.replace(outputs, codes=codes or None, quality=quality or None)

    def _wrong_places(self, scored: int) -> str:
        own, head = f"model.{self.name or 'dense'}", type(self.head).__name__
        mend = f"set {own}.head.anchors={self.places.per_cell}"
        if not hasattr(self.head, "anchors"):
            mend = f"{head} has a single one, take Points as {own}.places"
        return (
            f"the head scores {scored} anchors a cell, the anchors have {self.places.per_cell} (scales times ratios): "
            + mend
        )

    def intermediates(self, outputs: DenseOutputs, name: str) -> dict[str, Any]:
        """``{name}/{level}/logits [B, n, K]``, ``deltas [B, n, 4]``, and ``codes`` and ``quality`` if there are any."""
        named: dict[str, Any] = {}
        for i, level in enumerate(self.places.levels):
            named |= {f"{name}/{level}/logits": outputs.logits[i], f"{name}/{level}/deltas": outputs.deltas[i]}
            if outputs.codes is not None:
                named[f"{name}/{level}/codes"] = outputs.codes[i].everywhere()
            if outputs.quality is not None:
                named[f"{name}/{level}/quality"] = outputs.quality[i]
        return named

    def losses(
        self, outputs: DenseOutputs, true_hw: jax.Array, targets: Targets, key: jax.Array
    ) -> tuple[Losses, Assigned]:
        """``loss_cls`` and ``loss_bbox``, of a head with quality ``loss_centerness``; ``key`` drives the sampler."""
        # [N, 4] and [B, N, ..]: losses know no levels.
        places, exists = jnp.concatenate(outputs.places), jnp.concatenate(outputs.exists, 1)
        logits, deltas = jnp.concatenate(outputs.logits, 1), jnp.concatenate(outputs.deltas, 1)
        quality = None if outputs.quality is None else jnp.concatenate(outputs.quality, 1)
        keys = jax.random.split(key, true_hw.shape[0])
        # Decisions are made for one image at a time; head outputs are only gathered by them.
        chosen, gt_index, labels, boxes = jax.vmap(lambda *image: self._targets(places, outputs.num_classes, *image))(
            exists, true_hw, targets, keys
        )
        references = places
        # [B, N, ..] -> [B, S, ..]; without a sampler every place is a sample.
        if self.sampler is not None:
            logits = jnp.take_along_axis(logits, chosen.index[..., None], axis=1)
            deltas = jnp.take_along_axis(deltas, chosen.index[..., None], axis=1)
            quality = None if quality is None else jnp.take_along_axis(quality, chosen.index, axis=1)
            references = places[chosen.index]
        positive, valid = chosen.positive, chosen.valid
        # Both sides get a unit box where there is no object: the logarithm of an empty one would make NaN of gradients.
        references = safe(jnp.broadcast_to(references, boxes.shape), positive)
        # The reference counts at least one positive, and where it samples one negative, in each image; a slot of the
        # batch without an image has no places.
        counts = [jnp.maximum(positive.sum(1), self.least_positives)]
        if self.sampler is not None:
            counts.append(jnp.maximum((valid & ~positive).sum(1), 1))
        number = jnp.maximum(jnp.where(exists.any(1), sum(counts), 0).sum(), 1)
        class_loss = self.class_loss(logits, labels)
        if self.mining is not None:
            class_loss = class_loss * self.mining(class_loss, positive, valid & ~positive)
        distance = self.box_weight * self.box_loss(self.coder, references, deltas, boxes)
        terms = {"loss_cls": masked_sum(class_loss, valid) / number}
        if quality is None:
            terms["loss_bbox"] = masked_sum(distance, positive) / number
        else:
            # FCOS: boxes of cells near the centre weigh more, as much as their detections will.
            centred = jnp.where(positive, centerness(references, boxes), 0.0)
            terms["loss_bbox"] = masked_sum(distance * centred, positive) / jnp.maximum(centred.sum(), 1e-6)
            terms["loss_centerness"] = masked_sum(binary_cross_entropy(quality, centred), positive) / number
        predicted = self.coder.decode(references, jax.lax.stop_gradient(deltas))
        cut = jax.vmap(lambda boxes, hw: clip(boxes, hw, self.places.least_side))(predicted, true_hw)
        return terms, Assigned(chosen.index, positive, gt_index, cut)

    def detections(self, outputs: DenseOutputs, true_hw: jax.Array, selection: Selection) -> Detections:
        """The best places of each level, moved, cut to the image and thinned out; no gradient.

        ``index`` counts the places of all levels in order, as `DenseOutputs.origins` takes it.
        """
        # Proposals are constants for the second stage (approximate joint training, Ren et al. 2015, section 3.2).
        outputs = jax.lax.stop_gradient(outputs)
        # Where each level begins in the list of all places.
        sizes = [len(places) for places in outputs.places]
        first = [sum(sizes[:i]) for i in range(len(sizes))]
        quality: list[Any] = outputs.quality or [None] * len(sizes)

        def one_image(exists: Any, logits: Any, deltas: Any, quality: Any, hw: jax.Array) -> Detections:
            best = [
                self._best(*level, hw, selection)
                for level in zip(outputs.places, exists, logits, deltas, quality, strict=True)
            ]
            level = jnp.concatenate([jnp.full(len(b.index), i, jnp.int32) for i, b in enumerate(best)])
            found = jax.tree.map(lambda *parts: jnp.concatenate(parts), *best)
            # One suppression over all levels, which knows from which level each candidate came.
            labels = None if selection.pairs_above is None else found.labels
            detections = selection.suppression(found.boxes[:, None], found.scores, found.valid, level, labels)
            if selection.clip == "after":
                detections = _cut(detections, hw, self.places.least_side)
            place = jnp.concatenate([b.index + start for b, start in zip(best, first, strict=True)])
            return dataclasses.replace(detections, index=jnp.where(detections.valid, place[detections.index], 0))

        images = (outputs.exists, outputs.logits, outputs.deltas, quality, true_hw)
        return on_own_images(jax.vmap(one_image), *images)

    def proposals(self, outputs: DenseOutputs, true_hw: jax.Array, selection: Selection) -> Proposals:
        """`detections` as proposals, whatever their class."""
        best = self.detections(outputs, true_hw, selection)
        return Proposals(best.boxes, best.scores, best.valid)

    def _targets(
        self,
        places: jax.Array,
        num_classes: int,
        exists: jax.Array,
        true_hw: jax.Array,
        targets: Targets,
        key: jax.Array,
    ) -> tuple[Choice, jax.Array, jax.Array, jax.Array]:
        """The places of one image to train on, their ground truths and labels ``[S]``, the boxes ``[S, 4]`` to give.

        Where there is one class, an object is of that class whatever it is.
        """
        # Places that are not usable are neither positive nor negative, and so have no loss.
        usable = exists & inside(places, true_hw, self.border)
        match = self.matcher(places, usable, targets.boxes, targets.valid, targets.crowd, targets.masks)
        if self.sampler is None:
            # No draw: the ignored band between the thresholds is the only thing that is left out.
            chosen = Choice(jnp.arange(len(places)), match.positive, match.positive | match.negative)
            gt_index = match.gt_index
        else:
            chosen = self.sampler(match, key)
            gt_index = match.gt_index[chosen.index]
        # An RPN has one class, 0, whatever the label says.
        own = targets.labels[gt_index] if num_classes > 1 else 0
        labels = jnp.where(chosen.positive, own, num_classes)
        return chosen, gt_index, labels, safe(targets.boxes[gt_index], chosen.positive)

    def _best(
        self,
        places: jax.Array,
        exists: jax.Array,
        logits: jax.Array,
        deltas: jax.Array,
        quality: jax.Array | None,
        hw: jax.Array,
        selection: Selection,
    ) -> _Candidates:
        """The best places of a level, or the best pairs of a place and a class."""
        scores = self.class_loss.scores(logits)
        usable = exists & jnp.isfinite(logits).all(-1)
        if selection.pairs_above is None:
            # -1 is below every probability, so that unusable places come last and are told apart.
            ranked = jnp.where(usable, scores.max(-1), -1.0)
        else:
            ranked = jnp.where(usable[:, None] & (scores > selection.pairs_above), scores, -1.0).reshape(-1)
        best, index = top_k(ranked, min(selection.per_level, len(ranked)))
        labels = jnp.zeros_like(index)
        if selection.pairs_above is not None:
            index, labels = index // scores.shape[1], index % scores.shape[1]
        # Decoded after the choice: a thousand boxes in place of a few hundred thousand.
        boxes = self.coder.decode(places[index], deltas[index])
        if selection.clip == "before":
            boxes = clip(boxes, hw, self.places.least_side)
        valid = best >= 0.0
        if selection.pairs_above is None:
            chosen = scores[index]
        else:
            chosen, valid = best[:, None], valid & (area(boxes) > 0)
        if quality is not None:
            chosen = chosen * jax.nn.sigmoid(quality[index])[:, None]
        return _Candidates(boxes, chosen, valid, index, labels)


def _cut(detections: Detections, hw: jax.Array, least_side: float) -> Detections:
    """Detections ``[D]`` of an image of size ``hw [2]`` cut to it; those without area go, and the others move up."""
    boxes = clip(detections.boxes, hw, least_side)
    cut = dataclasses.replace(detections, boxes=boxes, valid=detections.valid & (area(boxes) > 0))
    order = largest_first(cut.valid.astype(jnp.float32))
    moved: Detections = jax.tree.map(lambda leaf: leaf[order], cut)
    return moved


def rpn(
    head: DenseHead = RPNHead(),
    *,
    anchors: Places = Anchors(),
    sampler: Sampler = Sampler(number=256, positive_fraction=0.5),
    coder: DeltaCoder = DeltaCoder(),
    box_loss: BoxLoss = SmoothL1(),
    border: float = -1.0,
    iou_threshold: float = 0.7,
    train: tuple[int, int] = (2000, 1000),
    test: tuple[int, int] = (1000, 1000),
    **settings: Any,
) -> DenseDetector:
    """The region proposal network of Faster R-CNN (Ren et al. 2015): a dense detector of one class with a sampler.

    ``train`` and ``test`` are the most boxes a level that enter suppression, and the most of all levels that leave it;
    ``iou_threshold`` is that of suppression, which knows levels apart.  Other ``settings`` are `DenseDetector`'s.
    """

    def selection(numbers: tuple[int, int]) -> Selection:
        per_level, limit = numbers
        return Selection(per_level, NMS(None, iou_threshold, limit, within="level"))

    # Thresholds of the paper, section 3.1.2.  Proposals have no least score: the second stage judges them.
    return DenseDetector(
        head,
        places=anchors,
        coder=coder,
        matcher=Matcher(positive_iou=0.7, negative_iou=0.3, min_positive_iou=0.3),
        sampler=sampler,
        box_loss=box_loss,
        border=border,
        train=selection(train),
        test=selection(test),
        **settings,
    )
