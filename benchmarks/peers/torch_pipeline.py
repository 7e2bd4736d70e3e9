"""The input pipeline as torch's detectors have it: a ``DataLoader`` of images and whole masks, resized by torch.

Images are read by jaxdet's source, so that decoding is the same; what comes after is torch.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from jaxdet.data import Data, Source
from jaxdet.data.masks import decode_mask
from jaxdet.data.pipeline.plans import train_plan
from jaxdet.data.pipeline.transforms import view_of


class Examples(Dataset):
    """Image and masks on the canvas."""

    def __init__(self, source: Source, data: Data) -> None:
        self.source, self.data = source, data

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, Any, Any]:
        record = self.source[index]
        view = view_of(record.image.shape[:2], self.data, flip=index % 2 == 0)
        used = [a for a in record.annotations if not a.crowd and not a.ignore]
        masks = np.stack([decode_mask(a.segmentation, view.original_hw) for a in used])
        image = torch.from_numpy(record.image).permute(2, 0, 1)[None].float()
        image = functional.interpolate(image, view.hw, mode="bilinear", align_corners=False)[0].byte()
        masks = functional.interpolate(torch.from_numpy(masks)[None], view.hw, mode="nearest")[0]
        if view.flip:
            image, masks = image.flip(-1), masks.flip(-1)
        boxes = torch.tensor([a.bbox for a in used])
        return self._on_canvas(image, view), self._on_canvas(masks, view), boxes

    def _on_canvas(self, pixels: Any, view: Any) -> Any:
        height, width = view.canvas
        return functional.pad(pixels, (0, width - pixels.shape[2], 0, height - pixels.shape[1]))


def together(examples: list[tuple[Any, Any, Any]]) -> tuple[Any, ...]:
    """Images stacked; masks and boxes, whose number varies, as lists."""
    images, masks, boxes = zip(*examples, strict=True)
    return torch.stack(images), masks, boxes


def one_thread(worker: int) -> None:
    """As jaxdet's workers."""
    torch.set_num_threads(1)


def batches(source: Source, data: Data) -> Iterator[Any]:
    """Batches in the order of `jaxdet.data.train_batches`, for some epochs."""
    plan = train_plan(source, data, seed=0)
    order = [[index for index in plan.batch(step).tolist() if index >= 0] for step in range(200)]
    options = {"prefetch_factor": data.prefetch, "multiprocessing_context": "spawn"} if data.workers else {}
    loader = DataLoader(
        Examples(source, data),
        batch_sampler=order,
        num_workers=data.workers,
        collate_fn=together,
        worker_init_fn=one_thread,
        **options,
    )
    yield from loader
