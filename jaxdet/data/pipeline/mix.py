"""Images that are made of several of the training set (``data.augment``): copy-paste and mosaic.

They are records like those of a source, made before anything is drawn for their view.  A mixed image has the size of
the one that it replaces, so that it has its canvas too.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.data.masks import decode_mask, has_mask
from jaxdet.data.pipeline.transforms import View, boxes_of, usable_annotations
from jaxdet.data.records import Annotation, Record
from jaxdet.data.settings import CopyPaste, Data, Mosaic


def mix(record: Record, another: Callable[[], Record], data: Data, rng: np.random.Generator) -> Record:
    """Mix an image with others, as ``data.augment`` says; without such a setting it is returned as it is.

    Args:
        record: the image.
        another: draws another image of the training set, which may be the same one.
        data: settings.
        rng: for all draws; ``another`` may use it too.

    Raises:
        ValueError: a segmentation cannot be read.
    """
    for augmentation in data.augment:
        match augmentation:
            case CopyPaste() if rng.random() < augmentation.probability:
                record = _pasted(record, another(), augmentation, rng)
            case Mosaic() if rng.random() < augmentation.probability:
                record = _tiled([record, *(another() for _ in range(3))], data.masks, rng)
    return record


def _pasted(record: Record, other: Record, paste: CopyPaste, rng: np.random.Generator) -> Record:
    """``record`` with instances of ``other`` in front of its own."""
    hw = _hw(record)
    fitting = min(size / stored for size, stored in zip(hw, _hw(other), strict=True))
    resized = _scaled(_hw(other), fitting * rng.uniform(paste.least, paste.most))
    # Anywhere inside of the image, or, of a larger one, any part.
    offset = tuple(int(place) for place in np.rint(rng.random(2) * (np.array(hw) - resized)))
    view = View(_hw(other), resized, hw, bool(rng.random() < 0.5), (offset[0], offset[1]), hw)
    candidates = [annotation for annotation in _in_view(other, view, masks=True) if not annotation.crowd]
    chosen = rng.random(len(candidates)) < 0.5
    if not candidates:
        return record
    chosen[rng.integers(len(candidates))] = True
    pasted = [annotation for annotation, use in zip(candidates, chosen, strict=True) if use]
    front = np.any([decode_mask(annotation.segmentation, hw) for annotation in pasted], axis=0)
    behind = [_behind(annotation, front, paste.visible) for annotation in usable_annotations(record)]
    image = np.where(front[..., None], view.image(other.image), record.image)
    semantic = record.semantic
    if semantic is not None and other.semantic is not None:
        semantic = np.where(front, view.mask(other.semantic), semantic)
    annotations = (*(annotation for annotation in behind if annotation is not None), *pasted)
    return dataclasses.replace(record, image=image, annotations=annotations, semantic=semantic)


def _behind(annotation: Annotation, front: NDArray[np.bool_], visible: float) -> Annotation | None:
    """What is left of an annotation behind pixels in front of it; None: too little."""
    if not has_mask(annotation.segmentation):
        return annotation
    mask = decode_mask(annotation.segmentation, (front.shape[0], front.shape[1]))
    seen = mask * ~front
    if seen.sum() == mask.sum():
        return annotation
    if not seen.any() or seen.sum() < visible * mask.sum():
        return None
    return _with_mask(annotation, seen, box=None)


def _tiled(records: Sequence[Record], masks: bool, rng: np.random.Generator) -> Record:
    """Four images in the corners of one of the first one's size, from the top left on in reading order."""
    height, width = hw = _hw(records[0])
    y, x = (round(side * rng.uniform(0.25, 0.75)) for side in hw)
    y, x = min(max(y, 1), height - 1), min(max(x, 1), width - 1)
    image = np.zeros((height, width, 3), np.uint8)
    semantic = np.zeros(hw, np.uint8) if all(record.semantic is not None for record in records) else None
    annotations: list[Annotation] = []
    corners = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
    for record, (top, left, bottom, right) in zip(records, corners, strict=True):
        view = _covering(record, (bottom - top, right - left), hw, rng)
        image[top:bottom, left:right] = view.image(record.image)
        if semantic is not None and record.semantic is not None:
            semantic[top:bottom, left:right] = view.mask(record.semantic)
        annotations += [_moved(a, (top, left), view.canvas, hw) for a in _in_view(record, view, masks=masks)]
    return dataclasses.replace(records[0], image=image, annotations=tuple(annotations), semantic=semantic)


def _covering(record: Record, tile: tuple[int, int], whole: tuple[int, int], rng: np.random.Generator) -> View:
    """A view of a part of an image that covers a tile."""
    stored = np.array(_hw(record))
    covering, fitting = (np.array(tile) / stored).max(), (np.array(whole) / stored).min()
    resized = _scaled(_hw(record), rng.uniform(covering, max(covering, fitting)))
    resized = max(resized[0], tile[0]), max(resized[1], tile[1])  # rounding must not leave a line empty
    y, x = (-int(rng.integers(size - side + 1)) for size, side in zip(resized, tile, strict=True))
    return View(_hw(record), resized, tile, offset=(y, x), seen_hw=tile)


def _in_view(record: Record, view: View, *, masks: bool) -> list[Annotation]:
    """The annotations whose centre is seen, and crowd regions of which anything is, in pixels of the view."""
    annotations = usable_annotations(record)
    boxes = boxes_of(annotations)
    corners = view.boxes(boxes).astype(np.float64)
    centred = view.has_centre(boxes)
    seen = []
    for annotation, (x1, y1, x2, y2), has_centre in zip(annotations, corners, centred, strict=True):
        if x2 <= x1 or y2 <= y1 or not (has_centre or annotation.crowd):
            continue
        box = (float(x1), float(y1), float(x2 - x1), float(y2 - y1))
        if not (masks and has_mask(annotation.segmentation)):
            seen.append(dataclasses.replace(annotation, bbox=box, area=box[2] * box[3], segmentation=None))
            continue
        mask = view.mask(decode_mask(annotation.segmentation, view.original_hw))
        if mask.any():
            seen.append(_with_mask(annotation, mask, box))
    return seen


def _moved(annotation: Annotation, by: tuple[int, int], tile: tuple[int, int], hw: tuple[int, int]) -> Annotation:
    """An annotation of a tile as one of the whole image, where the tile begins at ``by`` (y, x)."""
    x, y, *sides = annotation.bbox
    box = (x + by[1], y + by[0], sides[0], sides[1])
    if annotation.segmentation is None:
        return dataclasses.replace(annotation, bbox=box)
    mask = np.zeros(hw, np.uint8)
    mask[by[0] : by[0] + tile[0], by[1] : by[1] + tile[1]] = decode_mask(annotation.segmentation, tile)
    return _with_mask(annotation, mask, box)


def _with_mask(
    annotation: Annotation, mask: NDArray[np.uint8], box: tuple[float, float, float, float] | None
) -> Annotation:
    """The annotation with another mask, which has pixels, and its area; ``box`` None: the smallest one around it."""
    encoded = coco_mask.encode(np.asfortranarray(mask))
    if box is None:
        x, y, width, height = (float(value) for value in coco_mask.toBbox(encoded))
        box = (x, y, width, height)
    return dataclasses.replace(annotation, bbox=box, area=float(mask.sum()), segmentation=encoded)


def _scaled(hw: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(int(hw[0] * scale + 0.5), 1), max(int(hw[1] * scale + 0.5), 1)


def _hw(record: Record) -> tuple[int, int]:
    return record.image.shape[0], record.image.shape[1]
