"""RoIAlign on torch's side: torchvision's compiled operator where it can be had, else plain torch, vectorised."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.peers.twins import torchvision_ops


def roi_align(maps: list[Any], strides: Sequence[int], boxes: Any, level: Any, size: int, ratio: int) -> Any:
    """``[N, C, size, size]``."""
    of_level = _plain if torchvision_ops() is None else _compiled
    out = torch.zeros(len(boxes), maps[0].shape[1], size, size)
    for index, (features, stride) in enumerate(zip(maps, strides, strict=True)):
        on_level = torch.nonzero(level == index)[:, 0]
        out = out.index_copy(0, on_level, of_level(features, stride, boxes[on_level], size, ratio))
    return out


def _compiled(features: Any, stride: int, boxes: Any, size: int, ratio: int) -> Any:
    """Crops of a level by torchvision's operator."""
    ops: Any = torchvision_ops()
    return ops.roi_align(features, [boxes], size, 1 / stride, sampling_ratio=ratio or -1, aligned=True)


def _plain(features: Any, stride: int, boxes: Any, size: int, ratio: int) -> Any:
    """Crops of a level: one ``grid_sample`` for the boxes that take equally many samples a bin."""
    out = torch.zeros(len(boxes), features.shape[1], size, size)
    scaled = boxes / stride - 0.5
    bins = (scaled[:, 2:] - scaled[:, :2]) / size
    count = torch.ceil(bins).int().clamp(min=1) if ratio == 0 else torch.full_like(bins, ratio, dtype=torch.int32)
    for nx, ny in torch.unique(count, dim=0).tolist():
        chosen = torch.nonzero((count == torch.tensor([nx, ny])).all(1))[:, 0]
        crops = _sampled(features, scaled[chosen], bins[chosen], (nx, ny), size)
        out = out.index_copy(0, chosen, crops)
    return out


def _sampled(features: Any, boxes: Any, bins: Any, count: tuple[int, int], size: int) -> Any:
    """Means over ``count`` (x, y) samples a bin of ``boxes``, which are in pixels of ``features [1, C, H, W]``."""
    limits = features.shape[3], features.shape[2]
    axes = []
    for axis in (0, 1):
        cells = (torch.arange(size * count[axis]) + 0.5) / count[axis]
        axes.append(boxes[:, axis, None] + cells * bins[:, axis, None])
    x, y = (p.clamp(0, limit - 1) * 2 / (limit - 1) - 1 for p, limit in zip(axes, limits, strict=True))
    inside = [((p >= -1) & (p <= limit)).float() for p, limit in zip(axes, limits, strict=True)]
    n, rows, columns = len(boxes), y.shape[1], x.shape[1]
    grid = torch.stack([x[:, None].expand(n, rows, columns), y[:, :, None].expand(n, rows, columns)], -1)
    samples = functional.grid_sample(features, grid.reshape(1, n * rows, columns, 2), align_corners=True)
    samples = samples[0].reshape(-1, n, rows, columns) * (inside[1][:, :, None] * inside[0][:, None])
    crops = samples.reshape(-1, n, size, count[1], size, count[0]).mean((3, 5))
    return crops.transpose(0, 1)


def works(
    pyramid: Sequence[np.ndarray],
    strides: Sequence[int],
    boxes: np.ndarray,
    level: np.ndarray,
    cotangent: np.ndarray,
    ratio: int,
) -> list[Callable[[], Any]]:
    """Crops ``[N, C, s, s]``; and the gradients of the maps, for that of the crops."""
    maps = [torch.from_numpy(m.transpose(0, 3, 1, 2).copy()).requires_grad_() for m in pyramid]
    given = maps, strides, torch.from_numpy(boxes), torch.from_numpy(level.astype(np.int64)), cotangent.shape[1], ratio
    weights = torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy())

    def forward() -> Any:
        with torch.no_grad():
            return roi_align(*given)

    def both() -> Any:
        return torch.autograd.grad((roi_align(*given) * weights).sum(), maps, materialize_grads=True)

    return [forward, both]
