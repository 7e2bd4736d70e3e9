"""What is drawn for a training image: its view, and its colours (``data.augment``).

All geometry is one view.  A draw changes the window of the stored image that is seen, or the limit of its size, and the
view follows from both (`view_of`), so that nothing is resized twice and pixels, boxes and masks cannot part.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from jaxdet.data.pipeline.transforms import View, Window, boxes_of, limits_hw, usable_annotations, view_of
from jaxdet.data.records import Record
from jaxdet.data.settings import (
    CopyPaste,
    Data,
    Expand,
    LargeScaleJitter,
    MinIoUCrop,
    Mosaic,
    PhotometricDistortion,
    ShortSide,
)

_TRIES = 50  #: parts that are drawn for a minimal IoU before another one is drawn, as in the reference
_MOST_RATIO = 2.0  #: of the sides of a part, longer to shorter


def check_augment(data: Data) -> None:
    """Make sure that the draws fit the sizes.  Evaluation draws nothing, so there any sizes will do.

    Raises:
        ValueError: names the settings that disagree.
    """
    largest, name = data.in_training().short_side, "data.train_sides.0" if data.train_sides else "data.short_side"
    for place, augmentation in enumerate(data.augment):
        if isinstance(augmentation, ShortSide) and augmentation.least > largest:
            raise ValueError(
                f"data.augment.{place}.least: expected at most {name}={largest}, the largest side "
                f"that is drawn, got {augmentation.least}; set data.augment.{place}.least={largest * 4 // 5}, "
                "or data.augment=() for no draws at all"
            )
        if isinstance(augmentation, CopyPaste) and not data.masks:
            raise ValueError(
                f"data.augment.{place}: expected data.masks=True with CopyPaste, which cuts instances out by their "
                "masks, got data.masks=False; leave it out, or set data.masks=True"
            )


def draw_view(record: Record, data: Data, rng: np.random.Generator) -> View:
    """Draw how a training image is seen; the canvas is that of its own size, whatever is drawn."""
    data = data.in_training()
    hw = (record.image.shape[0], record.image.shape[1])
    flip = bool(rng.random() < data.flip_probability)
    window, short_side, fill = Window(0, 0, *hw), data.short_side, (0, 0, 0)
    for augmentation in data.augment:
        match augmentation:
            case ShortSide(least, step):
                short_side = int(rng.choice(np.arange(least, data.short_side + 1, step)))
            case Expand():
                window = _expanded(window, augmentation, rng)
                fill = _rounded(augmentation.colour)
            case MinIoUCrop():
                window = _cropped(window, _instances(record), augmentation, rng)
            case LargeScaleJitter():
                limits = limits_hw(hw, data, short_side)
                window = _jittered(window, limits, augmentation, data.keep_ratio, rng)
                fill = _rounded(augmentation.colour)
            case CopyPaste() | Mosaic() | PhotometricDistortion():  # `mix` comes before the view, `distort` after it
                pass
    return view_of(hw, data, flip, window=window, short_side=short_side, fill=fill)


def _expanded(window: Window, expand: Expand, rng: np.random.Generator) -> Window:
    if rng.random() >= expand.probability:
        return window
    top, left, height, width = window
    factor = rng.uniform(1, expand.most)
    before = rng.random(2) * (factor - 1)  # what is added above and on the left
    return Window(top - before[0] * height, left - before[1] * width, height * factor, width * factor)


def _jittered(
    window: Window, limits: tuple[int, int], jitter: LargeScaleJitter, keep_ratio: bool, rng: np.random.Generator
) -> Window:
    """The window that fills the limits at a drawn scale; it begins with what there is, or somewhere inside."""
    begin, size = np.array(window[:2]), np.array(window[2:])
    fitting = np.array(limits) / size
    scale = (fitting.min() if keep_ratio else fitting) * rng.uniform(jitter.least, jitter.most)
    sides = np.array(limits) / scale
    top, left = (begin + rng.random(2) * np.maximum(size - sides, 0)).tolist()
    height, width = sides.tolist()
    return Window(top, left, height, width)


def _rounded(colour: tuple[float, float, float]) -> tuple[int, int, int]:
    red, green, blue = (round(value) for value in colour)
    return red, green, blue


def _cropped(window: Window, boxes: NDArray[np.float64], crop: MinIoUCrop, rng: np.random.Generator) -> Window:
    """A part of the window; ``boxes`` ``[A, 4]`` are y1, x1, y2, x2 of the instances in the stored image."""
    least_ious = (0.0, *crop.ious)
    begin, size = np.array(window[:2]), np.array(window[2:])
    while True:  # the whole window ends it sooner or later
        choice = int(rng.integers(len(least_ious) + 1))
        if choice == len(least_ious):
            return window
        sides = size * rng.uniform(crop.least, 1, (_TRIES, 2))
        corners = begin + rng.random((_TRIES, 2)) * (size - sides)
        ratios = sides[:, 0] / sides[:, 1]
        will_do = (ratios <= _MOST_RATIO) & (ratios >= 1 / _MOST_RATIO)
        if len(boxes):
            parts = np.concatenate([corners, corners + sides], axis=1)
            centres = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((centres > corners[:, None]) & (centres < parts[:, None, 2:])).all(axis=2)
            will_do &= np.any(inside, axis=1) & (_iou(parts, boxes).min(axis=1) >= least_ious[choice])
        if will_do.any():
            first = int(will_do.argmax())
            top, left = corners[first].tolist()
            height, width = sides[first].tolist()
            return Window(top, left, height, width)


def _iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU ``[P, A]`` of boxes ``[P, 4]`` and ``[A, 4]``, all of which have an area."""
    low = np.maximum(first[:, None, :2], second[:, :2])
    high = np.minimum(first[:, None, 2:], second[:, 2:])
    common = np.maximum(high - low, 0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    iou: NDArray[np.float64] = common / (areas[0][:, None] + areas[1] - common)
    return iou


def _instances(record: Record) -> NDArray[np.float64]:
    """``[A, 4]`` y1, x1, y2, x2 of the instances of an image, clipped to it; crowd regions may be cut as they come."""
    boxes = boxes_of([annotation for annotation in usable_annotations(record) if not annotation.crowd])
    corners = np.stack([boxes[:, 1], boxes[:, 0], boxes[:, 1] + boxes[:, 3], boxes[:, 0] + boxes[:, 2]], axis=1)
    return np.clip(corners, 0, [*record.image.shape[:2]] * 2)


def distort(pixels: NDArray[np.uint8], data: Data, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw and apply the changes of colour to ``[H, W, 3]`` RGB, of which there are none without such a setting."""
    for augmentation in data.augment:
        if isinstance(augmentation, PhotometricDistortion):
            pixels = _draw_colours(augmentation, rng)(pixels)
    return pixels


def _draw_colours(settings: PhotometricDistortion, rng: np.random.Generator) -> "Colours":
    def perhaps(least: float, largest: float, otherwise: float) -> float:
        drawn = float(rng.uniform(least, largest))
        return drawn if rng.random() < 0.5 else otherwise

    return Colours(
        brightness=perhaps(-settings.brightness, settings.brightness, 0),
        contrast=perhaps(*settings.contrast, 1),
        contrast_last=bool(rng.random() < 0.5),
        saturation=perhaps(*settings.saturation, 1),
        hue=perhaps(-settings.hue, settings.hue, 0),
    )


@dataclass(frozen=True)
class Colours:
    """A change of colours, as drawn; the default changes nothing."""

    brightness: float = 0.0  #: added to all values
    contrast: float = 1.0  #: factor of all values
    contrast_last: bool = False  #: after saturation and hue, not before them
    saturation: float = 1.0  #: factor, in HSV
    hue: float = 0.0  #: degrees

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``[H, W, 3]`` RGB -> the same with changed colours; values in between are not rounded."""
        values = pixels.astype(np.float32) + np.float32(self.brightness)
        if not self.contrast_last:
            values *= np.float32(self.contrast)
        if self.saturation != 1 or self.hue != 0:
            # Only values from 0 on have a hue; those above 255 stay until contrast has had its turn.
            hsv = cv2.cvtColor(np.maximum(values, 0), cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + np.float32(self.hue)) % 360
            hsv[..., 1] *= np.float32(self.saturation)
            values = np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), np.float32)
        if self.contrast_last:
            values *= np.float32(self.contrast)
        return np.clip(np.rint(values), 0, 255).astype(np.uint8)
