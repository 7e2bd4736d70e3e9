"""From a record to arrays of fixed shapes: resize, flip, pad, and the ground truth along with it."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from jaxdet.data.masks import crop_mask, decode_mask, nearest_lines, resize_mask
from jaxdet.data.records import Annotation, Record, usable_boxes
from jaxdet.data.settings import Data

IGNORED = 255
"""In semantic maps: the class of this pixel is not known."""
_STRIDE = 8  # pixels of the image to one of a semantic target: that of level 3, where the semantic branch works


def resized_hw(hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Size of an image after the largest resize that keeps its ratio and fits; sides are rounded half up.

    Args:
        hw: height and width as stored.
        short_side: limit of the shorter side.
        long_side: limit of the longer side.
    """
    scale = min(long_side / max(hw), short_side / min(hw))
    return max(int(hw[0] * scale + 0.5), 1), max(int(hw[1] * scale + 0.5), 1)


def canvas_hw(hw: tuple[int, int], data: Data) -> tuple[int, int]:
    """Canvas of an image of size ``hw``: landscape where it is wider than high, else portrait."""
    short, long = (-(-side // data.pad_multiple) * data.pad_multiple for side in (data.short_side, data.long_side))
    return (short, long) if hw[1] > hw[0] else (long, short)


def resize_image(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear resize of ``[H, W, 3]`` uint8 by ``cv2.INTER_LINEAR`` (no antialiasing; the reference's choice)."""
    return np.asarray(cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


@dataclass(frozen=True)
class View:
    """How a stored image is seen: resized to ``hw``, then perhaps mirrored, on a canvas at the top left."""

    original_hw: tuple[int, int]
    hw: tuple[int, int]
    canvas: tuple[int, int]
    flip: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Resized size / stored size, (y, x)."""
        return self.hw[0] / self.original_hw[0], self.hw[1] / self.original_hw[1]

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W, 3]`` as stored -> the canvas, zero beyond the image."""
        return self._on_canvas(resize_image(image, self.hw))

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """``[A, 4]`` x, y, width, height as stored -> x1, y1, x2, y2 in the view, clipped to the image."""
        height, width = self.hw
        scale = np.array([*self.scale[::-1]] * 2, np.float32)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32) * scale
        corners = np.clip(corners, 0, np.array([width, height] * 2, np.float32))
        return self.mirrored(corners)

    def mirrored(self, corners: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[..., 4]`` x1, y1, x2, y2 of the resized image, mirrored if the view is."""
        if not self.flip:
            return corners
        x1, y1, x2, y2 = np.moveaxis(corners, -1, 0)
        width = np.float32(self.hw[1])
        return np.stack([width - x2, y1, width - x1, y2], axis=-1)

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W]`` as stored -> the canvas."""
        return self._on_canvas(resize_mask(mask, self.hw))

    def cropped_mask(self, mask: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """``[H, W]`` as stored -> bitmap ``[size, size]`` and frame in the view (see ``masks.crop_mask``).

        Of an enlarged image the same pixels as a crop of ``mask``, but only those near the instance are resized.  Of
        an image made smaller the stored pixels: their nearest neighbours would lose what a small instance has, and
        shift it.
        """
        if self.hw[0] < self.original_hw[0]:
            bitmap, frame = crop_mask(mask, size)
            frame = frame * np.array([*self.scale[::-1]] * 2, np.float32)
        else:
            rows, columns = self._lines()
            y, x, height, width = cv2.boundingRect(mask.T)  # transposed, as decoded masks lie column by column
            top, bottom = np.searchsorted(rows, [y, y + height])
            left, right = np.searchsorted(columns, [x, x + width])
            inside = mask.T[x : x + width, y : y + height]
            near = inside.take(columns[left:right] - x, axis=0).take(rows[top:bottom] - y, axis=1).T
            bitmap, frame = crop_mask(near, size)
            frame = frame + np.array([left, top, left, top], np.float32)
        return (bitmap[:, ::-1] if self.flip else bitmap), self.mirrored(frame)

    def semantic(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W]`` as stored -> every eighth pixel of the canvas ``[H / 8, W / 8]``, ``IGNORED`` beyond the image."""
        rows, columns = self._lines()
        seen = classes[np.ix_(rows[::_STRIDE], columns[:: -1 if self.flip else 1][::_STRIDE])]
        whole = np.full([-(-side // _STRIDE) for side in self.canvas], IGNORED, np.uint8)
        whole[: seen.shape[0], : seen.shape[1]] = seen
        return whole

    def _lines(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which stored rows and columns the resized image shows, where it takes nearest neighbours."""
        return nearest_lines(self.original_hw[0], self.hw[0]), nearest_lines(self.original_hw[1], self.hw[1])

    def _on_canvas(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        canvas = np.zeros((*self.canvas, *pixels.shape[2:]), np.uint8)
        canvas[: self.hw[0], : self.hw[1]] = cv2.flip(pixels, 1) if self.flip else pixels
        return canvas


def view_of(hw: tuple[int, int], data: Data, flip: bool = False) -> View:
    """The view of a stored image of size ``hw`` under the settings ``data``."""
    return View(hw, resized_hw(hw, data.short_side, data.long_side), canvas_hw(hw, data), flip)


def image_arrays(image: NDArray[np.uint8], view: View, index: int) -> dict[str, Any]:
    """The image's part of a batch; names and shapes as in ``structures.Batch``, without the leading B."""
    return {
        "image": view.image(image),
        "true_hw": np.array(view.hw, np.float32),
        "scale": np.array(view.scale, np.float32),
        "original_hw": np.array(view.original_hw, np.int32),
        "index": np.int32(index),
        "valid": np.bool_(True),
    }


def target_arrays(record: Record, view: View, data: Data) -> dict[str, Any]:
    """The ground truth's part of a batch, as in ``structures.Targets``, without the leading B; and ``dropped``.

    Slots hold the usable annotations in the data set's order, crowd regions after all others, at most
    ``data.max_boxes``; ``dropped`` counts the rest.  A crowd region's bitmap stays zero: it is never a positive.
    ``semantic`` is there if the record has a semantic map.

    Raises:
        ValueError: a segmentation that cannot be read.
    """
    chosen = _usable(record, view)
    kept = sorted(chosen, key=lambda annotation: annotation.crowd)[: data.max_boxes]
    targets = _empty_targets(view, data)
    for slot, annotation in enumerate(kept):
        targets["labels"][slot] = annotation.label
        targets["crowd"][slot] = annotation.crowd
        if data.masks and not annotation.crowd:
            targets["masks"][slot], targets["frames"][slot] = _mask(record, annotation, view, data)
    boxes = np.array([annotation.bbox for annotation in kept], np.float64).reshape(-1, 4)
    targets["boxes"][: len(kept)] = view.boxes(boxes)
    targets["valid"][: len(kept)] = True
    if record.semantic is not None:
        targets["semantic"] = view.semantic(record.semantic)
    return targets | {"dropped": np.int32(len(chosen) - len(kept))}


def _usable(record: Record, view: View) -> list[Annotation]:
    """The annotations to train on; a box must also keep an area after clipping, or its targets are infinite."""
    boxes = np.array([annotation.bbox for annotation in record.annotations], np.float64).reshape(-1, 4)
    areas = np.array([annotation.area for annotation in record.annotations], np.float64)
    usable = usable_boxes(boxes, areas, np.array(view.original_hw, np.int32))
    corners = view.boxes(boxes)
    usable &= (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return [a for a, use in zip(record.annotations, usable, strict=True) if use and not a.ignore]


def _empty_targets(view: View, data: Data) -> dict[str, Any]:
    slots = data.max_boxes
    side = view.canvas if data.whole_masks else (data.mask_size, data.mask_size)
    frames = np.zeros((slots, 4), np.float32)
    frames[:, 2:] = view.canvas[::-1]  # a frame that any op can divide by
    return {
        "boxes": np.zeros((slots, 4), np.float32),
        "labels": np.zeros(slots, np.int32),
        "masks": np.zeros((slots, *(side if data.masks else (0, 0))), np.uint8),
        "frames": frames,
        "crowd": np.zeros(slots, np.bool_),
        "valid": np.zeros(slots, np.bool_),
    }


def _mask(
    record: Record, annotation: Annotation, view: View, data: Data
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    try:
        mask = decode_mask(annotation.segmentation, view.original_hw)
    except ValueError as error:
        raise ValueError(
            f"annotation {annotation.id} of image {record.name}: {error}; run `python -m jaxdet.data.check`, "
            "or set data.masks=False for a model without masks"
        ) from error
    if data.whole_masks:
        return view.mask(mask), np.array([0, 0, view.canvas[1], view.canvas[0]], np.float32)
    return view.cropped_mask(mask, data.mask_size)
