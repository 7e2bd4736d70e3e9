"""Detections or annotations drawn over their image."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jaxdet.data import Category
from jaxdet.data.masks import decode_mask

Pixels: TypeAlias = NDArray[np.uint8]
Objects: TypeAlias = Sequence[Mapping[str, Any]]
Color: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[float, float, float, float]

_OPACITY = 0.45  #: of masks


def overlay(
    image: Pixels, objects: Objects, categories: Sequence[Category], *, score_threshold: float = 0.0, zoom: int = 1
) -> Pixels:
    """Draw masks, boxes, names and scores over an image.

    Args:
        image: ``[H, W, 3]`` uint8 RGB; left as it is.
        objects: COCO results or annotations of this image, in its pixels.
        categories: their names.
        score_threshold: detections below it are not drawn; objects without a score always are.
        zoom: enlarges the picture before drawing, so that names stay readable on small images.

    Returns:
        ``[zoom H, zoom W, 3]`` uint8.  Without objects, the image unchanged.

    Raises:
        ValueError: a mask of another size than the image.
    """
    shown = [each for each in objects if each.get("score", 1.0) >= score_threshold]
    shown = sorted(shown, key=lambda each: float(each.get("score", 1.0)))  # the surest on top
    colors = _colors(shown, categories)
    pixels = _enlarged(image, zoom)
    for each, color in zip(shown, colors, strict=True):
        if each.get("segmentation"):
            mask = decode_mask(each["segmentation"], (image.shape[0], image.shape[1])).astype(bool)
            _paint(pixels, mask.repeat(zoom, axis=0).repeat(zoom, axis=1), color)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    unit = min(pixels.shape[:2]) / 400  # line widths and letters grow with the picture
    font = ImageFont.load_default(size=float(np.clip(11 * unit, 11, 40)))
    for each, color in zip(shown, colors, strict=True):
        draw.rectangle(_frame(each, zoom), outline=color, width=max(1, round(1.5 * unit)))
    taken: list[Rectangle] = []
    names = {category.id: category.name for category in categories}
    for each, color in list(zip(shown, colors, strict=True))[::-1]:
        _label(draw, _text(each, names), _frame(each, zoom), color, font, canvas.size, taken)
    return np.array(canvas)


def _enlarged(image: Pixels, zoom: int) -> Pixels:
    if zoom == 1:
        return image.copy()
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _paint(pixels: Pixels, mask: NDArray[np.bool_], color: Color) -> None:
    """Tint what is inside, and draw the outline opaque."""
    pixels[mask] = (pixels[mask] * (1 - _OPACITY) + np.asarray(color) * _OPACITY).astype(np.uint8)
    inner = np.pad(mask, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    pixels[mask & ~inner] = color


def _colors(objects: Objects, categories: Sequence[Category]) -> list[Color]:
    """A hue for each category, a shade for each instance of it."""
    order = {category.id: place for place, category in enumerate(categories)}
    seen: dict[Any, int] = {}
    colors = []
    for each in objects:
        category = each["category_id"]
        shade = seen[category] = seen.get(category, -1) + 1
        hue = order.get(category, len(order)) * 0.618034 % 1  # the golden ratio keeps neighbours far apart
        rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[shade % 3], (1.0, 1.0, 0.75)[shade % 3])
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colors


def _frame(each: Mapping[str, Any], zoom: int) -> Rectangle:
    """Corners of the box, the last pixel included."""
    x, y, width, height = (zoom * float(value) for value in each["bbox"])
    return x, y, max(x, x + width - 1), max(y, y + height - 1)


def _text(each: Mapping[str, Any], names: Mapping[int, str]) -> str:
    name = names.get(each["category_id"], str(each["category_id"]))
    if each.get("iscrowd"):
        return f"{name} (crowd)"
    return f"{name} {each['score']:.2f}" if "score" in each else name


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    frame: Rectangle,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    taken: list[Rectangle],
) -> None:
    """Write ``text`` on a patch at the box, where it hides no other label if there is such a place."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    places = [(frame[0], y) for y in (frame[1] - height, frame[1], frame[3] - height, frame[3])]
    places += [(frame[2] - width, y) for _, y in places[:3]]
    patches = [_inside((x, y, x + width, y + height), size) for x, y in places]
    patch = next((each for each in patches if not any(_overlap(each, other) for other in taken)), patches[0])
    taken.append(patch)
    draw.rectangle(patch, fill=color)
    dark = np.dot(color, (0.299, 0.587, 0.114)) > 140
    draw.text((patch[0] + 3 - left, patch[1] + 2 - top), text, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)


def _inside(patch: Rectangle, size: tuple[int, int]) -> Rectangle:
    """The patch, moved so that the picture holds it."""
    x = max(0.0, min(patch[0], size[0] - (patch[2] - patch[0])))
    y = max(0.0, min(patch[1], size[1] - (patch[3] - patch[1])))
    return x, y, x + patch[2] - patch[0], y + patch[3] - patch[1]


def _overlap(a: Rectangle, b: Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
