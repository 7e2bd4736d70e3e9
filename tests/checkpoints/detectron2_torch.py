"""detectron2's GeneralizedRCNN and RetinaNet at test time, in plain torch: from image and state dict to detections.

Everything is written out for one image, so that it can be read beside the sources whose facts it renders
([detectron2/modeling](https://github.com/facebookresearch/detectron2/tree/main/detectron2/modeling) and
``layers/mask_ops.py``); functions name the file.  Nothing is shared with jaxdet.

Letters in shapes: N boxes, K classes, C channels, h w a map, H W an image, A anchors in a cell.  Levels are log2 of the
stride.  Boxes are x1, y1, x2, y2 in pixels.
"""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

State = dict[str, Any]
HW = tuple[int, int]

BLOCKS = (3, 4, 6, 3)
RATIOS = (0.5, 1.0, 2.0)
RCNN_SIZES = {level: (2.0 ** (level + 3),) for level in (2, 3, 4, 5, 6)}
RETINA_SIZES = {level: tuple(4 * 2**level * 2 ** (i / 3) for i in range(3)) for level in (3, 4, 5, 6, 7)}


@dataclass(frozen=True)
class Rendered:
    """Detections of one image, best first, in pixels of the stored image."""

    boxes: np.ndarray  #: ``[N, 4]``
    scores: np.ndarray  #: ``[N]``
    labels: np.ndarray  #: ``[N]``, 0 .. K - 1
    masks: np.ndarray | None = None  #: ``[N, H, W]`` bool


def prepared(image: np.ndarray) -> Any:
    """meta_arch/rcnn.py, preprocess_image, of RGB ``[H, W, 3]``: BGR without its mean, with zeros up to 32 pixels."""
    x = torch.from_numpy(image[..., ::-1].astype(np.float32)) - torch.tensor([103.53, 116.28, 123.675])
    height, width = image.shape[:2]
    return torch.nn.functional.pad(x.permute(2, 0, 1)[None], (0, -width % 32, 0, -height % 32))


def conv(state: State, name: str, x: Any, stride: int = 1) -> Any:
    """layers/wrappers.py, Conv2d: a FrozenBatchNorm2d (layers/batch_norm.py, eps 1e-5) may belong to it."""
    weight = state[f"{name}.weight"]
    y = torch.nn.functional.conv2d(x, weight, state.get(f"{name}.bias"), stride, weight.shape[-1] // 2)
    if f"{name}.norm.weight" not in state:
        return y
    parts = [state[f"{name}.norm.{part}"] for part in ("running_mean", "running_var", "weight", "bias")]
    return torch.nn.functional.batch_norm(y, *parts, eps=1e-5)


def pyramid(state: State, x: Any) -> dict[int, Any]:
    """backbone/resnet.py with STRIDE_IN_1X1, and backbone/fpn.py with whatever ``top_block`` the state has."""
    x = torch.relu(conv(state, "backbone.bottom_up.stem.conv1", x, 2))
    x, maps = torch.nn.functional.max_pool2d(x, 3, 2, 1), {}
    for stage, blocks in enumerate(BLOCKS, 2):
        for block in range(blocks):
            name, stride = f"backbone.bottom_up.res{stage}.{block}", 2 if stage > 2 and block == 0 else 1
            y = torch.relu(conv(state, f"{name}.conv1", x, stride))
            y = conv(state, f"{name}.conv3", torch.relu(conv(state, f"{name}.conv2", y)))
            x = torch.relu(y + (conv(state, f"{name}.shortcut", x, stride) if block == 0 else x))
        maps[stage] = x
    levels: dict[int, Any] = {}
    above = None
    for level in (5, 4, 3, 2):
        if f"backbone.fpn_lateral{level}.weight" in state:
            lateral = conv(state, f"backbone.fpn_lateral{level}", maps[level])
            above = lateral if above is None else lateral + torch.nn.functional.interpolate(above, scale_factor=2.0)
            levels[level] = conv(state, f"backbone.fpn_output{level}", above)
    if "backbone.top_block.p6.weight" in state:  # LastLevelP6P7, of res5 in build_retinanet_resnet_fpn_backbone
        levels[6] = conv(state, "backbone.top_block.p6", maps[5], 2)
        levels[7] = conv(state, "backbone.top_block.p7", torch.relu(levels[6]), 2)
    else:  # LastLevelMaxPool
        levels[6] = torch.nn.functional.max_pool2d(levels[5], 1, 2)
    return dict(sorted(levels.items()))


def anchors(hw: HW, stride: int, sizes: tuple[float, ...], offset: float = 0.0) -> Any:
    """anchor_generator.py, DefaultAnchorGenerator: ``[h * w * A, 4]``; a cell's are ordered by size, then by ratio."""
    sides = [(math.sqrt(size**2 / ratio), math.sqrt(size**2 * ratio)) for size in sizes for ratio in RATIOS]
    cell = torch.tensor([[-width / 2, -height / 2, width / 2, height / 2] for width, height in sides])
    centres = [((j + offset) * stride, (i + offset) * stride) for i, j in itertools.product(range(hw[0]), range(hw[1]))]
    return (torch.tensor(centres).repeat(1, 2)[:, None] + cell).reshape(-1, 4)


def decoded(boxes: Any, deltas: Any, weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)) -> Any:
    """box_regression.py, Box2BoxTransform.apply_deltas: sides grow by 1000 / 16 at most, and shrink as they like."""
    dx, dy, dw, dh = (deltas / torch.tensor(weights)).unbind(-1)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x = dx * width + boxes[..., 0] + 0.5 * width
    y = dy * height + boxes[..., 1] + 0.5 * height
    width, height = (torch.exp(d.clamp(max=math.log(1000 / 16))) * side for d, side in ((dw, width), (dh, height)))
    return torch.stack([x - 0.5 * width, y - 0.5 * height, x + 0.5 * width, y + 0.5 * height], -1)


def clipped(boxes: Any, hw: HW) -> Any:
    """structures/boxes.py, Boxes.clip."""
    limits = torch.tensor([hw[1], hw[0], hw[1], hw[0]], dtype=boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limits)


def nonempty(boxes: Any) -> Any:
    """structures/boxes.py, Boxes.nonempty: bool ``[N]``."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)


def suppressed(boxes: Any, scores: Any, groups: Any, threshold: float) -> Any:
    """layers/nms.py, batched_nms: the indices that stay, best first; groups do not see each other."""
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        rivals = [j for j in kept if groups[j] == groups[i]]
        size = torch.minimum(boxes[rivals, 2:], boxes[i, 2:]) - torch.maximum(boxes[rivals, :2], boxes[i, :2])
        shared = size.clamp(min=0).prod(1)
        if not (shared / (area[rivals] + area[i] - shared) > threshold).any():
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def proposals(state: State, levels: dict[int, Any], hw: HW, offset: float, per_level: int, limit: int) -> Any:
    """proposal_generator/rpn.py and find_top_rpn_proposals of proposal_utils.py: boxes ``[N, 4]``, best first.

    NMS_THRESH is 0.7, MIN_SIZE 0: a proposal needs some width and some height.
    """
    boxes, logits, groups = [], [], []
    for level, x in levels.items():
        y = torch.relu(conv(state, "proposal_generator.rpn_head.conv", x))
        scores = conv(state, "proposal_generator.rpn_head.objectness_logits", y)[0].permute(1, 2, 0).reshape(-1)
        deltas = conv(state, "proposal_generator.rpn_head.anchor_deltas", y)[0].permute(1, 2, 0).reshape(-1, 4)
        best, index = scores.topk(min(per_level, len(scores)))
        places = anchors((x.shape[2], x.shape[3]), 2**level, RCNN_SIZES[level], offset)
        boxes.append(decoded(places, deltas)[index])
        logits.append(best)
        groups.append(torch.full_like(index, level))
    found, scores, group = clipped(torch.cat(boxes), hw), torch.cat(logits), torch.cat(groups)
    keep = nonempty(found)
    found, scores, group = found[keep], scores[keep], group[keep]
    return found[suppressed(found, scores, group, 0.7)[:limit]]


def crops(levels: dict[int, Any], boxes: Any, size: int) -> Any:
    """poolers.py, ROIPooler over P2 to P5 with ROIAlignV2: ``[N, C, size, size]``."""
    side = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    level = torch.floor(4 + torch.log2(side / 224 + 1e-8)).clamp(2, 5)
    found = [roi_align(levels[int(i)][0], box, size, 0.5 ** int(i)) for i, box in zip(level, boxes, strict=True)]
    return torch.stack(found) if found else torch.zeros(0, next(iter(levels.values())).shape[1], size, size)


def roi_align(x: Any, box: Any, size: int, scale: float) -> Any:
    """layers/roi_align.py with ``aligned`` and a sampling ratio of 0: of ``[C, h, w]`` a crop ``[C, size, size]``.

    A bin is the mean of as many samples along an axis as it has pixels, rounded up.
    """
    means = []
    for axis, pixels in ((1, x.shape[1]), (0, x.shape[2])):
        low, high = (float(box[i]) * scale - 0.5 for i in (axis, axis + 2))
        number = math.ceil((high - low) / size)
        mean = torch.zeros(size, pixels)
        for i, k in itertools.product(range(size), range(number)):
            place = low + (i + (k + 0.5) / number) * (high - low) / size
            if -1 <= place <= pixels:
                place = min(max(place, 0.0), pixels - 1.0)
                mean[i, int(place)] += (1 - place % 1) / number
                mean[i, min(int(place) + 1, pixels - 1)] += place % 1 / number
        means.append(mean)
    return means[0] @ x @ means[1].T


def linear(state: State, name: str, x: Any) -> Any:
    return torch.nn.functional.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def rcnn(
    state: State, image: np.ndarray, stored: HW, *, offset: float = 0.0, per_level: int, limit: int, most: int
) -> Rendered:
    """meta_arch/rcnn.py and roi_heads/: of the resized ``image [H, W, 3]``, RGB, of an image of ``stored`` pixels.

    ``offset`` is ANCHOR_GENERATOR.OFFSET; ``per_level``, ``limit``, ``most`` are PRE_NMS_TOPK_TEST, POST_NMS_TOPK_TEST
    and DETECTIONS_PER_IMAGE.
    """
    levels, hw = pyramid(state, prepared(image)), (image.shape[0], image.shape[1])
    regions = proposals(state, levels, hw, offset, per_level, limit)
    # box_head.py, FastRCNNConvFCHead of two layers.
    x = crops(levels, regions, 7).flatten(1)
    for name in ("fc1", "fc2"):
        x = torch.relu(linear(state, f"roi_heads.box_head.{name}", x))
    # fast_rcnn.py: background is the last class; boxes may be the same for all classes.
    probabilities = torch.softmax(linear(state, "roi_heads.box_predictor.cls_score", x), 1)[:, :-1]
    deltas = linear(state, "roi_heads.box_predictor.bbox_pred", x).reshape(len(x), -1, 4)
    moved = clipped(decoded(regions[:, None], deltas, (10.0, 10.0, 5.0, 5.0)), hw)
    region, label = torch.nonzero(probabilities > 0.05, as_tuple=True)
    boxes = moved[region, label if moved.shape[1] > 1 else torch.zeros_like(label)]
    scores = probabilities[region, label]
    keep = suppressed(boxes, scores, label, 0.5)[:most]
    boxes, scores, label = boxes[keep], scores[keep], label[keep]
    masks = None
    if "roi_heads.mask_head.predictor.weight" in state:
        y = crops(levels, boxes, 14)
        for i in range(1, 5):
            y = torch.relu(conv(state, f"roi_heads.mask_head.mask_fcn{i}", y))
        weight, bias = (state[f"roi_heads.mask_head.deconv.{part}"] for part in ("weight", "bias"))
        y = torch.relu(torch.nn.functional.conv_transpose2d(y, weight, bias, 2))
        y = conv(state, "roi_heads.mask_head.predictor", y)
        # mask_head.py, mask_rcnn_inference: a mask of the label, or the one that there is.
        masks = y[torch.arange(len(y)), label if y.shape[1] > 1 else torch.zeros_like(label)].sigmoid()
    return postprocessed(boxes, scores, label, masks, hw, stored)


def retina_maps(state: State, levels: dict[int, Any]) -> list[tuple[Any, Any]]:
    """meta_arch/retinanet.py, RetinaNetHead: logits ``[h * w * A, K]`` and deltas ``[h * w * A, 4]`` of each level."""
    outputs = []
    for x in levels.values():
        found = []
        for tower, last in (("cls_subnet", "cls_score"), ("bbox_subnet", "bbox_pred")):
            y = x
            for i in (0, 2, 4, 6):
                y = torch.relu(conv(state, f"head.{tower}.{i}", y))
            y = conv(state, f"head.{last}", y)[0]
            # [A * K, h, w], anchor by anchor.
            y = y.reshape(9, -1, *y.shape[1:]).permute(2, 3, 0, 1)
            found.append(y.reshape(-1, y.shape[-1]))
        outputs.append((found[0], found[1]))
    return outputs


def retinanet(state: State, image: np.ndarray, stored: HW, *, per_level: int, most: int) -> Rendered:
    """meta_arch/retinanet.py and dense_detector.py: as `rcnn`; ``per_level`` is TOPK_CANDIDATES_TEST.

    Suppression sees boxes that reach beyond the image.
    """
    levels = pyramid(state, prepared(image))
    boxes, scores, labels = [], [], []
    for (level, x), (logits, deltas) in zip(levels.items(), retina_maps(state, levels), strict=True):
        probabilities = logits.sigmoid()
        place, label = torch.nonzero(probabilities > 0.05, as_tuple=True)
        best, index = probabilities[place, label].topk(min(per_level, len(place)))
        places = anchors((x.shape[2], x.shape[3]), 2**level, RETINA_SIZES[level])
        boxes.append(decoded(places[place[index]], deltas[place[index]]))
        scores.append(best)
        labels.append(label[index])
    found, score, label = torch.cat(boxes), torch.cat(scores), torch.cat(labels)
    keep = suppressed(found, score, label, 0.5)[:most]
    return postprocessed(found[keep], score[keep], label[keep], None, (image.shape[0], image.shape[1]), stored)


def postprocessed(boxes: Any, scores: Any, labels: Any, masks: Any, hw: HW, stored: HW) -> Rendered:
    """postprocessing.py, detector_postprocess: to the stored image; what is empty there goes."""
    factors = [stored[1] / hw[1], stored[0] / hw[0]] * 2
    boxes = clipped(boxes * torch.tensor(factors), stored)
    keep = nonempty(boxes)
    boxes, scores, labels = boxes[keep], scores[keep], labels[keep]
    painted = None
    if masks is not None:
        painted = np.zeros((len(boxes), *stored), bool)
        for i, (mask, box) in enumerate(zip(masks[keep], boxes, strict=True)):
            painted[i] = pasted(mask, box, stored).numpy()
    return Rendered(boxes.numpy(), scores.numpy(), labels.numpy(), painted)


def pasted(mask: Any, box: Any, hw: HW) -> Any:
    """layers/mask_ops.py, paste_masks_in_image, of one mask ``[28, 28]``: bool ``[H, W]``."""
    x = (torch.arange(hw[1]) + 0.5 - box[0]) / (box[2] - box[0]) * 2 - 1
    y = (torch.arange(hw[0]) + 0.5 - box[1]) / (box[3] - box[1]) * 2 - 1
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    values = torch.nn.functional.grid_sample(mask[None, None], grid[None], align_corners=False)
    return values[0, 0] >= 0.5
