"""From a record to arrays of fixed shapes: resize, cut, flip, pad, and the ground truth along with the image.

A `View` is all geometry of it; `image_arrays` and `target_arrays` apply it.  Interpolation and rounding are those of
the reference (mmdetection with cv2), since a pixel's difference would show in its golden numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from jaxdet.data.masks import (
    crop_mask,
    crop_polygons,
    decode_mask,
    nearest_lines,
    rasterised,
    read_polygons,
    resize_mask,
)
from jaxdet.data.records import Annotation, Record, usable_boxes
from jaxdet.data.settings import Data

IGNORED = 255  #: in semantic maps: the class of the pixel is unknown
_SEMANTIC_STRIDE = 8  #: image pixels to one of a semantic target; level 3, where the semantic branch works


class Window(NamedTuple):
    """What is seen of a stored image, in its pixels: a rectangle, which may reach beyond the image on all sides."""

    top: float
    left: float
    height: float
    width: float


def resized_hw(hw: tuple[float, float], limits: tuple[int, int]) -> tuple[int, int]:
    """Compute the size of an image, or of a window of it, after the largest resize that keeps its ratio and fits.

    Args:
        hw: height and width as stored.
        limits: the largest height and width after it, in pixels.

    Returns:
        Height and width, rounded half up as in the reference, at least 1.
    """
    # The larger of both scales would let one side exceed its limit.
    scale = min(limits[0] / hw[0], limits[1] / hw[1])
    return max(int(hw[0] * scale + 0.5), 1), max(int(hw[1] * scale + 0.5), 1)


def oriented(hw: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """Height and width with these sides, for an image of size ``hw``: landscape if it is wider than high."""
    return (short, long) if hw[1] > hw[0] else (long, short)


def canvas_sides(data: Data) -> tuple[int, tuple[int, ...]]:
    """The shorter side of all canvases, and their longer sides, the narrowest canvas first."""
    short, long = (_padded(side, data) for side in (data.short_side, data.long_side))
    further = {_padded(int(data.short_side * ratio + 0.5), data) for ratio in data.canvas_ratios}
    return short, (*sorted(side for side in further if side < long), long)


def _padded(side: int, data: Data) -> int:
    return -(-side // data.pad_multiple) * data.pad_multiple


def canvas_hw(hw: tuple[int, int], data: Data) -> tuple[int, int]:
    """Height and width of the canvas for an image of size ``hw``, the narrowest that has room for it.

    It is landscape if the image is wider than high, else portrait.
    """
    short, longs = canvas_sides(data)
    limits = oriented(hw, data.short_side, data.long_side)
    longest = max(resized_hw(hw, limits)) if data.keep_ratio else data.long_side
    return oriented(hw, short, next(long for long in longs if long >= longest))


def limits_hw(hw: tuple[int, int], data: Data, short_side: int | None = None) -> tuple[int, int]:
    """The largest height and width at which an image of size ``hw``, or a part of it, lies on its canvas.

    ``short_side`` stands in the place of that of ``data``; None: it is that.
    """
    return oriented(hw, short_side or data.short_side, min(data.long_side, max(canvas_hw(hw, data))))


def resize_image(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize ``[H, W, 3]`` uint8 bilinearly by ``cv2.INTER_LINEAR``, without antialiasing, as the reference does."""
    return np.asarray(cv2.resize(image, (hw[1], hw[0]), interpolation=cv2.INTER_LINEAR), np.uint8)


@dataclass(frozen=True)
class View:
    """How a stored image is seen: a scale for each axis, an offset and a flip.

    The image is resized, moved by the offset, cut to what is seen, perhaps mirrored, and laid on a canvas at the top
    left.  Offsets are whole pixels of the resized image, so that pixels, boxes and masks move by exactly the same.
    """

    original_hw: tuple[int, int]  #: size of the stored image
    resized_hw: tuple[int, int]  #: size of the whole image after the resize
    canvas: tuple[int, int]  #: height and width
    flip: bool = False  #: mirrored left to right
    offset: tuple[int, int] = (0, 0)  #: (y, x) at which the resized image begins; below 0 its beginning is cut off
    seen_hw: tuple[int, int] | None = None  #: size of what is seen; None: that of the resized image
    fill: tuple[int, int, int] = (0, 0, 0)  #: colour of what is seen beyond the image

    @property
    def hw(self) -> tuple[int, int]:
        """Size of what is seen, which counts as the image from here on."""
        return self.seen_hw or self.resized_hw

    @property
    def scale(self) -> tuple[float, float]:
        """Resized size / stored size, (y, x)."""
        return self.resized_hw[0] / self.original_hw[0], self.resized_hw[1] / self.original_hw[1]

    def image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W, 3]`` as stored -> ``[*canvas, 3]``, zero beyond what is seen."""
        return self._on_canvas(resize_image(image, self.resized_hw), self.fill)

    def boxes(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """``[A, 4]`` x, y, width, height as stored -> ``[A, 4]`` x1, y1, x2, y2, clipped to what is seen of the image.

        A box of which nothing is seen has no area.
        """
        (top, bottom), (left, right) = self._shown()
        limits = np.array([[left, top] * 2, [right, bottom] * 2], np.float32)
        return self.mirrored(np.clip(self._corners(boxes), *limits))

    def has_centre(self, boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """``[A]``: whether the centre of a stored box, as far as it lies in the image, is seen."""
        begin, size = (np.array([*pair[::-1]] * 2, np.float32) for pair in (self.offset, self.resized_hw))
        corners = np.clip(self._corners(boxes), begin, begin + size)
        centres = (corners[:, :2] + corners[:, 2:]) / 2
        return np.asarray(((centres >= 0) & (centres <= self.hw[::-1])).all(axis=1), np.bool_)

    def mirrored(self, corners: NDArray[np.float32]) -> NDArray[np.float32]:
        """Mirror boxes ``[..., 4]`` x1, y1, x2, y2 of what is seen if the view is mirrored."""
        if not self.flip:
            return corners
        x1, y1, x2, y2 = np.moveaxis(corners, -1, 0)
        width = np.float32(self.hw[1])
        return np.stack([width - x2, y1, width - x1, y2], axis=-1)

    def mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W]`` as stored -> ``[*canvas]``, zero beyond the image."""
        return self._on_canvas(resize_mask(mask, self.resized_hw))

    def cropped_mask(self, mask: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """``[H, W]`` as stored -> bitmap ``[size, size]`` and frame ``[4]`` in the view (see ``masks.crop_mask``).

        An enlarged image gives the pixels that a crop of `mask` would, but only those near the instance are resized,
        which takes a fraction of the time.  An image made smaller, along one axis at least, gives the stored pixels:
        nearest neighbours of them would lose parts of a small instance, and shift it.
        """
        (top, bottom), (left, right) = (
            np.array(ends) - begin for ends, begin in zip(self._shown(), self.offset, strict=True)
        )
        begin = np.array([*self.offset[::-1]] * 2, np.float32)
        if self.resized_hw[0] < self.original_hw[0] or self.resized_hw[1] < self.original_hw[1]:
            # The stored pixels whose centres are seen.
            top, bottom = np.ceil(np.array([top, bottom]) / self.scale[0] - 0.5).astype(int)
            left, right = np.ceil(np.array([left, right]) / self.scale[1] - 0.5).astype(int)
            bitmap, frame = crop_mask(mask[top:bottom, left:right], size)
            frame = (frame + np.array([left, top] * 2, np.float32)) * np.array([*self.scale[::-1]] * 2, np.float32)
        else:
            rows, columns = self._lines()
            y, x, height, width = cv2.boundingRect(mask.T)  # transposed, as decoded masks lie column by column
            # Which rows and columns of the resized image repeat a stored one inside the instance's box, and are seen.
            top, bottom = np.clip(np.searchsorted(rows, [y, y + height]), top, bottom)
            left, right = np.clip(np.searchsorted(columns, [x, x + width]), left, right)
            inside = mask.T[x : x + width, y : y + height]
            near = inside.take(columns[left:right] - x, axis=0).take(rows[top:bottom] - y, axis=1).T
            bitmap, frame = crop_mask(near, size)
            frame = frame + np.array([left, top, left, top], np.float32)
        return (bitmap[:, ::-1] if self.flip else bitmap), self.mirrored(frame + begin)

    def cropped_polygons(
        self, polygons: Sequence[NDArray[np.float64]], size: int
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Polygons as stored -> bitmap ``[size, size]`` and frame ``[4]`` in the view (see ``masks.crop_polygons``).

        A cell is a pixel of the view or, where the image is made smaller, a stored one.  Unlike `cropped_mask`, the
        outline is drawn at that scale, and not the steps of the stored pixels that lie inside of it.
        """
        scale, begin = np.array(self.scale[::-1]), np.array(self.offset[::-1])
        moved = [points * scale + begin for points in polygons]
        found = crop_polygons(moved, self._shown(), (min(self.scale[0], 1), min(self.scale[1], 1)), size)
        if found is None:
            return self.cropped_mask(np.asarray(coco_mask.decode(rasterised(polygons, self.original_hw))), size)
        bitmap, frame = found
        return (bitmap[:, ::-1] if self.flip else bitmap), self.mirrored(frame)

    def semantic(self, classes: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W]`` classes as stored -> every eighth pixel of the canvas, `IGNORED` beyond the image."""
        seen_rows, seen_columns = (np.arange(0, side, _SEMANTIC_STRIDE) for side in self.hw)
        (top, bottom), (left, right) = self._shown()
        if self.flip:
            seen_columns = self.hw[1] - 1 - seen_columns
        whole = np.full([-(-side // _SEMANTIC_STRIDE) for side in self.canvas], IGNORED, np.uint8)
        at_rows = np.flatnonzero((seen_rows >= top) & (seen_rows < bottom))
        at_columns = np.flatnonzero((seen_columns >= left) & (seen_columns < right))
        rows, columns = self._lines()
        # The stored image is indexed directly: a resize of the whole map would be thrown away but for 1/64 of it.
        rows, columns = rows[seen_rows[at_rows] - self.offset[0]], columns[seen_columns[at_columns] - self.offset[1]]
        whole[np.ix_(at_rows, at_columns)] = classes[np.ix_(rows, columns)]
        return whole

    def _corners(self, boxes: NDArray[np.float64]) -> NDArray[np.float32]:
        """``[A, 4]`` x, y, width, height as stored -> ``[A, 4]`` x1, y1, x2, y2 before any flip, not clipped."""
        # float32 before the product, as in the reference: its rounding decides matches at an IoU threshold.
        scale, begin = (np.array([*pair[::-1]] * 2, np.float32) for pair in (self.scale, self.offset))
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1).astype(np.float32) * scale + begin

    def _shown(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where the image is in what is seen, before any flip: first row and the one after the last; and columns."""
        ends = [
            (min(max(begin, 0), seen), max(min(begin + size, seen), 0))
            for begin, size, seen in zip(self.offset, self.resized_hw, self.hw, strict=True)
        ]
        return ends[0], ends[1]

    def _lines(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which stored row (column) each row (column) of the resized image shows, by nearest neighbours."""
        (stored_rows, stored_columns), (rows, columns) = self.original_hw, self.resized_hw
        return nearest_lines(stored_rows, rows), nearest_lines(stored_columns, columns)

    def _on_canvas(self, pixels: NDArray[np.uint8], fill: tuple[int, ...] = (0,)) -> NDArray[np.uint8]:
        """The resized image, moved, cut, mirrored and laid on the canvas; ``fill``: what is seen beyond it."""
        canvas = np.zeros((*self.canvas, *pixels.shape[2:]), np.uint8)
        seen = canvas[: self.hw[0], : self.hw[1]]
        (top, bottom), (left, right) = self._shown()
        if any(fill):
            seen[:] = fill
        y, x = self.offset
        part = pixels[top - y : bottom - y, left - x : right - x]
        if part.size:
            if self.flip:
                part = np.asarray(cv2.flip(part, 1), np.uint8)
                left, right = self.hw[1] - right, self.hw[1] - left
            seen[top:bottom, left:right] = part
        return canvas


def view_of(
    hw: tuple[int, int],
    data: Data,
    flip: bool = False,
    *,
    window: Window | None = None,
    short_side: int | None = None,
    fill: tuple[int, int, int] = (0, 0, 0),
) -> View:
    """Make the view of a stored image under the settings ``data``; evaluation and prediction set nothing else.

    Args:
        hw: height and width of the stored image, which decide about the canvas.
        data: settings of resize and canvas.
        flip: whether it is mirrored.
        window: the part that is seen; None: the image as it is.
        short_side: limit of the shorter side on this canvas, in pixels; None: that of ``data``.
        fill: RGB of what the window has beyond the image.
    """
    top, left, height, width = window or Window(0, 0, *hw)
    limits = limits_hw(hw, data, short_side)
    seen = resized_hw((height, width), limits) if data.keep_ratio else limits
    # The window's scale makes the whole image a whole number of pixels, from which the view's scale follows.
    scale_y, scale_x = seen[0] / height, seen[1] / width
    resized = max(int(hw[0] * scale_y + 0.5), 1), max(int(hw[1] * scale_x + 0.5), 1)
    offset = round(-top * scale_y), round(-left * scale_x)
    return View(hw, resized, canvas_hw(hw, data), flip, offset, seen, fill)


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
        semantic map; ``dropped``, the number of annotations without a slot; and ``small``, of those with a side under
        ``data.min_box``.

    Raises:
        ValueError: a segmentation cannot be read.
    """
    seen = _seen(record, view)
    sides = np.diff(view.boxes(boxes_of(seen)).reshape(-1, 2, 2), axis=1)[:, 0]
    chosen = [annotation for annotation, side in zip(seen, sides.min(axis=1), strict=True) if side >= data.min_box]
    kept = sorted(chosen, key=lambda annotation: annotation.crowd)[: data.max_boxes]  # stable: the data set's order
    targets = _empty_targets(view, data)
    for slot, annotation in enumerate(kept):
        targets["labels"][slot] = annotation.label
        targets["crowd"][slot] = annotation.crowd
        if data.masks and not annotation.crowd:
            targets["masks"][slot], targets["frames"][slot] = _mask(record, annotation, view, data)
    targets["boxes"][: len(kept)] = view.boxes(boxes_of(kept))
    targets["valid"][: len(kept)] = True
    if record.semantic is not None:
        targets["semantic"] = view.semantic(record.semantic)
    return targets | {"dropped": np.int32(len(chosen) - len(kept)), "small": np.int32(len(seen) - len(chosen))}


def usable_annotations(record: Record) -> list[Annotation]:
    """The annotations of a record that can be learned from, crowd regions too, wherever one looks."""
    areas = np.array([annotation.area for annotation in record.annotations], np.float64)
    usable = usable_boxes(boxes_of(record.annotations), areas, np.array(record.image.shape[:2], np.int32))
    return [a for a, use in zip(record.annotations, usable, strict=True) if use and not a.ignore]


def boxes_of(annotations: Sequence[Annotation]) -> NDArray[np.float64]:
    """``[A, 4]`` x, y, width, height as stored."""
    return np.array([annotation.bbox for annotation in annotations], np.float64).reshape(-1, 4)


def _seen(record: Record, view: View) -> list[Annotation]:
    """The annotations to train on: of a crowd region anything is seen, of an instance the centre of its box."""
    annotations = usable_annotations(record)
    boxes = boxes_of(annotations)
    corners = view.boxes(boxes)
    # A box must keep an area after clipping, or its regression targets are infinite.
    seen = (corners[:, 2:] > corners[:, :2]).all(axis=1)
    seen &= view.has_centre(boxes) | np.array([annotation.crowd for annotation in annotations], np.bool_)
    return [annotation for annotation, is_seen in zip(annotations, seen, strict=True) if is_seen]


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
        if isinstance(annotation.segmentation, list) and not data.whole_masks:
            return view.cropped_polygons(read_polygons(annotation.segmentation), data.mask_size)
        mask = decode_mask(annotation.segmentation, view.original_hw)
    except ValueError as error:
        raise ValueError(
            f"annotation {annotation.id} of image {record.name}: {error}; run `jaxdet data check`, "
            "or set data.masks=False for a model without masks"
        ) from error
    if data.whole_masks:
        return view.mask(mask), np.array([0, 0, view.canvas[1], view.canvas[0]], np.float32)
    return view.cropped_mask(mask, data.mask_size)
