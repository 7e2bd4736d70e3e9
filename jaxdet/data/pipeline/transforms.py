"""From a record to arrays of fixed shapes: resize, flip, pad, and the ground truth along with the image.

A `View` is the geometry of it; `image_arrays` and `target_arrays` apply it.  Interpolation and rounding are those of
the reference (mmdetection with cv2), since a pixel's difference would show in its golden numbers.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from jaxdet.data.masks import crop_mask, decode_mask, nearest_lines, resize_mask
from jaxdet.data.records import Annotation, Record, usable_boxes
from jaxdet.data.settings import Data

IGNORED = 255  #: in semantic maps: the class of the pixel is unknown
_SEMANTIC_STRIDE = 8  #: image pixels to one of a semantic target; level 3, where the semantic branch works


def resized_hw(hw: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """Compute the size of an image after the largest resize that keeps its ratio and fits both limits.

    Args:
        hw: height and width as stored.
        short_side: limit of the shorter side, in pixels.
        long_side: limit of the longer side, in pixels.

    Returns:
        Height and width, rounded half up as in the reference, at least 1.
    """
    # The larger of both scales would let one side exceed its limit.
    scale = min(long_side / max(hw), short_side / min(hw))
    return max(int(hw[0] * scale + 0.5), 1), max(int(hw[1] * scale + 0.5), 1)


def canvas_hw(hw: tuple[int, int], data: Data) -> tuple[int, int]:
    """Height and width of the canvas for an image of size ``hw``: landscape if it is wider than high, else portrait."""
    short, long = (-(-side // data.pad_multiple) * data.pad_multiple for side in (data.short_side, data.long_side))
    return (short, long) if hw[1] > hw[0] else (long, short)


def resize_image(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize ``[H, W, 3]`` uint8 bilinearly by ``cv2.INTER_LINEAR``, without antialiasing, as the reference does."""
    return np.asarray(cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


@dataclass(frozen=True)
class View:
    """How a stored image is seen: resized, then perhaps mirrored, and laid on a canvas at the top left."""

    original_hw: tuple[int, int]  #: size of the stored image
    hw: tuple[int, int]  #: size of the resized image
    canvas: tuple[int, int]  #: height and width
    flip: bool = False  #: mirrored left to right

    @property
    def scale(self) -> tuple[float, float]:
        """Resized size / stored size, (y, x)."""
        return self.hw[0] / self.original_hw[0], self.hw[1] / self.original_hw[1]

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W, 3]`` as stored -> ``[*canvas, 3]``, zero beyond the image."""
        return self._on_canvas(resize_image(image, self.hw))

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """``[A, 4]`` x, y, width, height as stored -> ``[A, 4]`` x1, y1, x2, y2 in the view, clipped to the image."""
        height, width = self.hw
        # float32 before the product, as in the reference: its rounding decides matches at an IoU threshold.
        scale = np.array([*self.scale[::-1]] * 2, np.float32)
        corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32) * scale
        corners = np.clip(corners, 0, np.array([width, height] * 2, np.float32))
        return self.mirrored(corners)

    def mirrored(self, corners: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mirror boxes ``[..., 4]`` x1, y1, x2, y2 of the resized image if the view is mirrored."""
        if not self.flip:
            return corners
        x1, y1, x2, y2 = np.moveaxis(corners, -1, 0)
        width = np.float32(self.hw[1])
        return np.stack([width - x2, y1, width - x1, y2], axis=-1)

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W]`` as stored -> ``[*canvas]``, zero beyond the image."""
        return self._on_canvas(resize_mask(mask, self.hw))

    def cropped_mask(self, mask: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """``[H, W]`` as stored -> bitmap ``[size, size]`` and frame ``[4]`` in the view (see ``masks.crop_mask``).

        An enlarged image gives the pixels that a crop of `mask` would, but only those near the instance are resized,
        which takes a fraction of the time.  An image made smaller gives the stored pixels: nearest neighbours of
        them would lose parts of a small instance, and shift it.
        """
        if self.hw[0] < self.original_hw[0]:  # made smaller
            bitmap, frame = crop_mask(mask, size)
            frame = frame * np.array([*self.scale[::-1]] * 2, np.float32)
        else:
            rows, columns = self._lines()
            y, x, height, width = cv2.boundingRect(mask.T)  # transposed, as decoded masks lie column by column
            # Which rows and columns of the resized image repeat a stored one inside the instance's box.
            top, bottom = np.searchsorted(rows, [y, y + height])
            left, right = np.searchsorted(columns, [x, x + width])
            inside = mask.T[x : x + width, y : y + height]
            near = inside.take(columns[left:right] - x, axis=0).take(rows[top:bottom] - y, axis=1).T
            bitmap, frame = crop_mask(near, size)
            frame = frame + np.array([left, top, left, top], np.float32)
        return (bitmap[:, ::-1] if self.flip else bitmap), self.mirrored(frame)

    def semantic(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W]`` classes as stored -> every eighth pixel of the canvas, `IGNORED` beyond the image."""
        rows, columns = self._lines()
        # The stored image is indexed directly: a resize of the whole map would be thrown away but for 1/64 of it.
        seen = classes[np.ix_(rows[::_SEMANTIC_STRIDE], columns[:: -1 if self.flip else 1][::_SEMANTIC_STRIDE])]
        whole = np.full([-(-side // _SEMANTIC_STRIDE) for side in self.canvas], IGNORED, np.uint8)
        whole[: seen.shape[0], : seen.shape[1]] = seen
        return whole

    def _lines(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which stored row (column) each row (column) of the resized image shows, by nearest neighbours."""
        return nearest_lines(self.original_hw[0], self.hw[0]), nearest_lines(self.original_hw[1], self.hw[1])

    def _on_canvas(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        canvas = np.zeros((*self.canvas, *pixels.shape[2:]), np.uint8)
        canvas[: self.hw[0], : self.hw[1]] = cv2.flip(pixels, 1) if self.flip else pixels
        return canvas


def view_of(hw: tuple[int, int], data: Data, flip: bool = False) -> View:
    """Make the view of a stored image of size ``hw`` (height, width) under the settings ``data``."""
    return View(hw, resized_hw(hw, data.short_side, data.long_side), canvas_hw(hw, data), flip)


def image_arrays(image: NDArray[np.uint8], view: View, index: int) -> dict[str, Any]:
    """Make the image's part of a batch.

    Args:
        image: ``[H, W, 3]`` as stored.
        view: how it is seen.
        index: its position in the source.

    Returns:
        Names and shapes as in ``structures.Batch``, without the leading B.
    """
    return {
        "image": view.image(image),
        "true_hw": np.array(view.hw, np.float32),
        "scale": np.array(view.scale, np.float32),
        "original_hw": np.array(view.original_hw, np.int32),
        "index": np.int32(index),
        "valid": np.bool_(True),
    }


def target_arrays(record: Record, view: View, data: Data) -> dict[str, Any]:
    """Make the ground truth's part of a batch.

    Slots hold the usable annotations in the data set's order, crowd regions after all others, so that it is these
    which have no slot where there are more than ``data.max_boxes``.  A crowd region's bitmap stays zero, as it is
    never a positive.

    Returns:
        Names and shapes as in ``structures.Targets``, without the leading B, with ``semantic`` if the record has a
        semantic map; and ``dropped``, the number of annotations without a slot.

    Raises:
        ValueError: a segmentation cannot be read.
    """
    chosen = _usable(record, view)  # `sorted` below is stable, so the data set's order stays
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
    """The annotations to train on.  A box must keep an area after clipping, or its regression targets are infinite."""
    boxes = np.array([annotation.bbox for annotation in record.annotations], np.float64).reshape(-1, 4)
    areas = np.array([annotation.area for annotation in record.annotations], np.float64)
    usable = usable_boxes(boxes, areas, np.array(view.original_hw, np.int32))
    corners = view.boxes(boxes)
    usable &= (corners[:, 2:] > corners[:, :2]).all(axis=1)
    return [a for a, use in zip(record.annotations, usable, strict=True) if use and not a.ignore]


def _empty_targets(view: View, data: Data) -> dict[str, Any]:
    """Targets of which no slot is valid."""
    slots = data.max_boxes
    side = view.canvas if data.whole_masks else (data.mask_size, data.mask_size)
    frames = np.zeros((slots, 4), np.float32)
    frames[:, 2:] = view.canvas[::-1]  # any op can divide by the sides of such a frame
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
    """Bitmap and frame of an annotation's mask, as small as the settings say."""
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
