"""NMS on torch's side: torchvision's compiled operator where it can be had, else plain torch."""

from typing import Any

import torch

from benchmarks.peers.twins import torchvision_ops


def nms(boxes: Any, scores: Any, threshold: float, limit: int) -> list[int]:
    """Positions of the first ``limit`` boxes that stay, best first."""
    ops: Any = torchvision_ops()
    if ops is not None:
        kept: list[int] = ops.nms(boxes, scores, threshold)[:limit].tolist()
        return kept
    return _plain(boxes, scores, threshold, limit)


def _plain(boxes: Any, scores: Any, threshold: float, limit: int) -> list[int]:
    """The sequential rule: the whole matrix of overlaps at once, then a walk down the scores."""
    order = torch.argsort(scores, descending=True, stable=True)
    ranked = boxes[order]
    size = (ranked[:, 2:] - ranked[:, :2]).clamp(min=0)
    area = size[:, 0] * size[:, 1]
    low = torch.maximum(ranked[:, None, :2], ranked[None, :, :2])
    shared = (torch.minimum(ranked[:, None, 2:], ranked[None, :, 2:]) - low).clamp(min=0).prod(-1)
    over = shared > threshold * (area[:, None] + area[None] - shared)
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not gone[i]:
            kept.append(i)
            gone |= over[i]
        if len(kept) == limit:
            break
    return order[kept].tolist()
