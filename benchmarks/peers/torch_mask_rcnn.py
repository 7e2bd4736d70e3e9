"""Mask R-CNN with ResNet-50 and FPN in plain torch, with settings and weights of one in jaxdet; one image.

Heads get given proposals, as in `benchmarks.programs`.  Samplers must be those of ``order="first"``, so that both sides
train on the same boxes.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers.torch_nms import nms
from benchmarks.peers.torch_resnet import twin_of
from benchmarks.peers.torch_roi_align import roi_align
from jaxdet.checkpoints.names.mmdet import to_mmdet
from jaxdet.models.two_stage import TwoStage
from jaxdet.ops.boxes import DeltaCoder
from jaxdet.ops.matching import Matcher
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Batch, Proposals

LOGITS = 28  #: side of a mask


class TorchMaskRCNN:
    """The network; its layers go by their names in mmdetection."""

    def __init__(self, net: TwoStage, weights: Any) -> None:
        masks: Any = net.parts[0]
        self.net, self.box_branch, self.mask_branch = net, net.heads[0], masks.heads[0]
        arrays = jax.tree.map(np.asarray, weights)
        self.backbone = twin_of({name: tree["backbone"] for name, tree in arrays.items() if "backbone" in tree})
        self.weights = {
            name: torch.tensor(array).requires_grad_()
            for name, array in to_mmdet(arrays).items()
            if not name.startswith("backbone.")
        }

    @property
    def trained(self) -> list[Any]:
        """Parameters that are not frozen."""
        return [p for p in self.backbone.parameters() if p.requires_grad] + list(self.weights.values())

    def conv(self, x: Any, name: str, padding: int = 0) -> Any:
        return functional.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=padding)

    def linear(self, x: Any, name: str) -> Any:
        return functional.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def pyramid(self, image: Any) -> list[Any]:
        """P2 to P6 of ``[1, 3, H, W]``, normalised."""
        merged = [self.conv(c, f"neck.lateral_convs.{i}.conv") for i, c in enumerate(self.backbone(image))]
        for i in (2, 1, 0):
            merged[i] = merged[i] + functional.interpolate(merged[i + 1], size=merged[i].shape[2:])
        maps = [self.conv(m, f"neck.fpn_convs.{i}.conv", 1) for i, m in enumerate(merged)]
        return [*maps, maps[-1][:, :, ::2, ::2]]

    def rpn(self, pyramid: list[Any]) -> list[tuple[Any, Any, Any]]:
        """Anchors, objectness and deltas of each level."""
        found = []
        for level, features in zip(self.net.rpn.places.levels, pyramid, strict=True):
            x = functional.relu(self.conv(features, "rpn_head.rpn_conv", 1))
            anchors = torch.from_numpy(self.net.rpn.places.grid(level, *x.shape[2:]))
            objectness, deltas = self.conv(x, "rpn_head.rpn_cls"), self.conv(x, "rpn_head.rpn_reg")
            rows = objectness.permute(0, 2, 3, 1).reshape(-1), deltas.permute(0, 2, 3, 1).reshape(-1, 4)
            found.append((anchors, *rows))
        return found

    def crops(self, pyramid: list[Any], boxes: Any, extractor: Any) -> Any:
        level = torch.log2((boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt() / extractor.finest + 1e-6).floor().clamp(0, 3)
        return roi_align(pyramid[:4], (4, 8, 16, 32), boxes, level, extractor.size, extractor.sampling_ratio)

    def boxes(self, pyramid: list[Any], boxes: Any) -> tuple[Any, Any]:
        """Logits ``[N, K + 1]`` and deltas ``[N, K, 4]``."""
        x = self.crops(pyramid, boxes, self.box_branch.extractor).flatten(1)
        for i in (0, 1):
            x = functional.relu(self.linear(x, f"roi_head.bbox_head.shared_fcs.{i}"))
        deltas = self.linear(x, "roi_head.bbox_head.fc_reg")
        return self.linear(x, "roi_head.bbox_head.fc_cls"), deltas.reshape(len(x), -1, 4)

    def masks(self, pyramid: list[Any], boxes: Any, labels: Any) -> Any:
        """Logits ``[N, 28, 28]`` of these classes."""
        x = self.crops(pyramid, boxes, self.mask_branch.extractor)
        for i in range(4):
            x = functional.relu(self.conv(x, f"roi_head.mask_head.convs.{i}.conv", 1))
        up = (self.weights[f"roi_head.mask_head.upsample.{part}"] for part in ("weight", "bias"))
        x = functional.relu(functional.conv_transpose2d(x, *up, stride=2))
        return self.conv(x, "roi_head.mask_head.conv_logits")[torch.arange(len(x)), labels]


def detect(twin: TorchMaskRCNN, image: Any, proposals: Any) -> list[Any]:
    """Boxes, scores, labels and mask probabilities of at most 100 detections; the RPN's proposals are made too."""
    net, hw = twin.net, image.shape[2:]
    suppression: Any = net.suppression
    with torch.no_grad():
        pyramid = twin.pyramid(image)
        _propose(net.rpn, twin.rpn(pyramid), hw)
        logits, deltas = twin.boxes(pyramid, proposals)
        boxes = _clip(_decode(twin.box_branch.coder, proposals[:, None], deltas), hw)
        scores = logits.softmax(1)[:, :-1]
        box, label = torch.nonzero(scores > suppression.score_threshold, as_tuple=True)
        boxes, scores = boxes[box, label], scores[box, label]
        kept = _nms_by_group(boxes, scores, label, suppression.iou_threshold, suppression.max_detections)
        boxes, labels = boxes[kept], label[kept]
        return [boxes, scores[kept], labels, twin.masks(pyramid, boxes, labels).sigmoid()]


def losses(twin: TorchMaskRCNN, image: Any, proposals: Any, truth: Any, labels: Any) -> dict[str, Any]:
    """The five terms by jaxdet's names; objects are full rectangles."""
    net, stage = twin.net, twin.net.stages[0]
    matcher, coder = net.rpn.matcher, net.rpn.coder
    assert net.rpn.sampler is not None
    assert isinstance(matcher, Matcher)
    assert isinstance(coder, DeltaCoder)
    pyramid = twin.pyramid(image)
    anchors, objectness, deltas = (torch.cat(parts) for parts in zip(*twin.rpn(pyramid), strict=True))
    chosen, positive, match = _sample(matcher, net.rpn.sampler, anchors, truth)
    target = _encode(coder, anchors[chosen[:positive]], truth[match[:positive]])
    is_positive = (torch.arange(len(chosen)) < positive).float()
    terms = {
        "rpn_cls": functional.binary_cross_entropy_with_logits(objectness[chosen], is_positive),
        "rpn_bbox": (deltas[chosen[:positive]] - target).abs().sum() / len(chosen),
    }

    candidates = torch.cat([truth, proposals])
    chosen, positive, match = _sample(stage.matcher, stage.sampler, candidates, truth)
    boxes, own = candidates[chosen], labels[match[:positive]]
    logits, deltas = twin.boxes(pyramid, boxes)
    classes = torch.cat([own, own.new_full((len(chosen) - positive,), net.num_classes)])
    objects = truth[match[:positive]]
    target = _encode(twin.box_branch.coder, boxes[:positive], objects)
    masks = twin.masks(pyramid, boxes[:positive], own)
    return terms | {
        "cls": functional.cross_entropy(logits, classes),
        "bbox": (deltas[torch.arange(positive), own] - target).abs().sum() / len(chosen),
        "mask": functional.binary_cross_entropy_with_logits(masks, _rectangles(boxes[:positive], objects)),
    }


def works(
    net: TwoStage, weights: Any, batch: Batch, proposals: Proposals, rate: float
) -> tuple[Callable[[], list[Any]], Callable[[], dict[str, Any]]]:
    """Inference, and a step of SGD, which gives the losses before it and goes on from the step before."""
    assert batch.targets is not None
    twin = TorchMaskRCNN(net, weights)
    pixels = (np.asarray(batch.image, np.float32) - net.normalization.mean) / net.normalization.std
    height, width = (int(side) for side in np.asarray(batch.true_hw)[0])
    pixels[:, height:], pixels[:, :, width:] = 0, 0
    image = torch.tensor(pixels.transpose(0, 3, 1, 2), dtype=torch.float32)
    given, truth = (torch.tensor(np.asarray(x.boxes)[0]) for x in (proposals, batch.targets))
    labels = torch.tensor(np.asarray(batch.targets.labels)[0]).long()
    optimizer = torch.optim.SGD(twin.trained, lr=rate, momentum=0.9, weight_decay=1e-4)

    def step() -> Any:
        optimizer.zero_grad(set_to_none=True)
        terms = losses(twin, image, given, truth, labels)
        sum(terms.values()).backward()
        optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    return lambda: detect(twin, image, given), step


def _propose(rpn: Any, levels: list[tuple[Any, Any, Any]], hw: tuple[int, int]) -> Any:
    boxes, scores, groups = [], [], []
    for level, (anchors, objectness, deltas) in enumerate(levels):
        best, index = objectness.sigmoid().topk(min(rpn.test.per_level, len(objectness)))
        boxes.append(_clip(_decode(rpn.coder, anchors[index], deltas[index]), hw))
        scores.append(best)
        groups.append(torch.full_like(index, level))
    found, best = torch.cat(boxes), torch.cat(scores)
    suppression = rpn.test.suppression
    kept = _nms_by_group(found, best, torch.cat(groups), suppression.iou_threshold, suppression.max_detections)
    return found[kept]


def _nms_by_group(boxes: Any, scores: Any, groups: Any, threshold: float, limit: int) -> Any:
    kept = [torch.zeros(0, dtype=torch.int64)]
    for group in groups.unique():
        index = torch.nonzero(groups == group)[:, 0]
        kept.append(index[nms(boxes[index], scores[index], threshold, limit)])
    joined = torch.cat(kept)
    return joined[scores[joined].argsort(descending=True, stable=True)][:limit]


def _sample(matcher: Matcher, sampler: Sampler, boxes: Any, truth: Any) -> tuple[Any, int, Any]:
    """Chosen boxes, positives first; how many these are; and the object of each."""
    assert sampler.order == "first"
    overlap = _iou(truth, boxes)
    best, match = overlap.max(0)
    positive, negative = best >= matcher.positive_iou, best < matcher.negative_iou
    if matcher.low_quality:
        for index, (row, most) in enumerate(zip(overlap, overlap.max(1).values, strict=True)):
            if most >= matcher.min_positive_iou:
                match[row == most] = index
                positive, negative = positive | (row == most), negative & (row != most)
    first = torch.nonzero(positive)[: sampler.max_positive, 0]
    chosen = torch.cat([first, torch.nonzero(negative)[: sampler.number - len(first), 0]])
    return chosen, len(first), match[chosen]


def _iou(a: Any, b: Any) -> Any:
    low, high = torch.maximum(a[:, None, :2], b[:, :2]), torch.minimum(a[:, None, 2:], b[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = [(x[:, 2:] - x[:, :2]).prod(1) for x in (a, b)]
    return shared / (area[0][:, None] + area[1] - shared).clamp(min=1e-6)


def _encode(coder: DeltaCoder, boxes: Any, targets: Any) -> Any:
    size, wanted = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    shift = (targets[:, :2] + targets[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2 / size
    return torch.cat([shift, torch.log(wanted / size)], 1) / torch.tensor(coder.stds)


def _decode(coder: DeltaCoder, boxes: Any, deltas: Any) -> Any:
    deltas, bound = deltas * torch.tensor(coder.stds), float(np.log(coder.max_ratio))
    size = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2 + size * deltas[..., :2]
    half = size * deltas[..., 2:].clamp(-bound, bound).exp() / 2
    return torch.cat([centre - half, centre + half], -1)


def _clip(boxes: Any, hw: tuple[int, int]) -> Any:
    limit = torch.tensor([hw[1], hw[0], hw[1], hw[0]])
    return torch.minimum(boxes.clamp(min=0), limit)


def _rectangles(boxes: Any, objects: Any) -> Any:
    """``[N, 28, 28]``: pixels of each box whose centre lies in its object."""
    cells = (torch.arange(LOGITS) + 0.5) / LOGITS
    inside = []
    for axis in (0, 1):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        centre = low + cells * (high - low)
        inside.append((centre >= objects[:, axis, None]) & (centre <= objects[:, axis + 2, None]))
    return (inside[1][:, :, None] & inside[0][:, None]).float()
