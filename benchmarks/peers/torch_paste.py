"""Mask paste in torch: one ``grid_sample`` an instance onto the pixels of its box, then pycocotools' run lengths."""

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch.nn import functional


def paste_masks(masks: np.ndarray, boxes: np.ndarray, hw: tuple[int, int]) -> list[dict[str, Any]]:
    """Run lengths of ``masks [D, m, m]`` in ``boxes [D, 4]`` of an image of size ``hw``."""
    return [_paste(mask, box, hw) for mask, box in zip(torch.from_numpy(masks), torch.from_numpy(boxes), strict=True)]


def _paste(mask: Any, box: Any, hw: tuple[int, int]) -> dict[str, Any]:
    low, high = box[:2], box[2:]
    reach = (high - low) / mask.shape[0]
    limit = torch.tensor([hw[1], hw[0]])
    first = torch.minimum(torch.floor(low - reach).clamp(min=0), limit).int().tolist()
    last = torch.minimum(torch.ceil(high + reach).clamp(min=0), limit).int().tolist()
    x, y = ((torch.arange(first[i], last[i]) + 0.5 - low[i]) / (high[i] - low[i]) * 2 - 1 for i in (0, 1))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    values = functional.grid_sample(mask[None, None], grid[None], align_corners=False)[0, 0]
    image = np.zeros(hw, np.uint8, order="F")
    image[first[1] : last[1], first[0] : last[0]] = (values >= 0.5).numpy()
    rle = coco_mask.encode(image)
    return {"size": list(hw), "counts": rle["counts"].decode("ascii")}
