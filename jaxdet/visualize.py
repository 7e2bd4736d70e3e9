"""Pictures of detections: overlays on an image, and sheets of predictions beside the ground truth.

Objects are COCO's: dicts with ``bbox`` (x, y, width, height), ``category_id`` and, where there is one,
``segmentation``; a ``score`` marks a detection.  So annotations and results are drawn by the same functions.
"""

import colorsys
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from jaxdet.data import Category, Source
from jaxdet.data.masks import decode_mask, has_mask
from jaxdet.runtime.files import replacing

__all__ = ["overlay", "prediction_grid", "save_predictions"]

_Pixels: TypeAlias = NDArray[np.uint8]
_Objects: TypeAlias = Sequence[Mapping[str, Any]]
_Color: TypeAlias = tuple[int, int, int]
_Rectangle: TypeAlias = tuple[float, float, float, float]  #: x1, y1, x2, y2

_OPACITY = 0.45  #: opacity of masks
_CELL = 420  #: long side of a picture on a sheet, in pixels
_GAP = 8  #: pixels between pictures


def overlay(
    image: _Pixels, objects: _Objects, categories: Sequence[Category], *, score_threshold: float = 0.0, zoom: int = 1
) -> _Pixels:
    """Draw masks, boxes, names and scores over an image.

    Args:
        image: ``[H, W, 3]`` uint8 RGB; left as it is.
        objects: COCO results or annotations of this image, in its pixels.
        categories: the classes, for their names and colours.
        score_threshold: detections below it are not drawn; objects without a score always are.
        zoom: factor by which the picture is enlarged before drawing, so that names are readable on small images.

    Returns:
        ``[zoom H, zoom W, 3]`` uint8; without objects the image, enlarged.

    Raises:
        ValueError: a mask of another size than the image.
    """
    shown = [obj for obj in objects if obj.get("score", 1.0) >= score_threshold]
    shown = sorted(shown, key=lambda item: float(item.get("score", 1.0)))  # the best is drawn last, on top
    colors = _colors(shown, categories)  # after sorting: an instance's shade depends on those before it
    pixels = _enlarged(image, zoom)
    for item, color in zip(shown, colors, strict=True):
        if has_mask(item.get("segmentation")):
            mask = decode_mask(item["segmentation"], (image.shape[0], image.shape[1]))
            # Of a large image only what the instance covers; transposed, as decoded masks lie column by column.
            top, left, height, width = cv2.boundingRect(mask.T)
            near = mask[top : top + height, left : left + width].astype(bool)
            place = slice(zoom * top, zoom * (top + height)), slice(zoom * left, zoom * (left + width))
            # Enlarged by repetition, so that the pixels of the mask stay visible as such.
            _paint(pixels[place], near.repeat(zoom, axis=0).repeat(zoom, axis=1), color)
    canvas = Image.fromarray(pixels)
    draw = ImageDraw.Draw(canvas)
    unit = min(pixels.shape[:2]) / 400  # line widths and letters grow with the picture
    font = ImageFont.load_default(size=float(np.clip(11 * unit, 11, 40)))
    for item, color in zip(shown, colors, strict=True):
        draw.rectangle(_frame(item, zoom), outline=color, width=max(1, round(1.5 * unit)))
    # Names come after all boxes, which would cross them out, and the best detection has the first choice of place.
    taken: list[_Rectangle] = []
    names = {category.id: category.name for category in categories}
    for item, color in list(zip(shown, colors, strict=True))[::-1]:
        _label(draw, _text(item, names), _frame(item, zoom), color, font, canvas.size, taken)
    return np.array(canvas)


def _enlarged(image: _Pixels, zoom: int) -> _Pixels:
    if zoom == 1:
        return image.copy()
    size = (image.shape[1] * zoom, image.shape[0] * zoom)
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _paint(pixels: _Pixels, mask: NDArray[np.bool_], color: _Color) -> None:
    """Tint the pixels of a mask, and draw its outline opaque."""
    pixels[mask] = (pixels[mask] * (1 - _OPACITY) + np.asarray(color) * _OPACITY).astype(np.uint8)
    # Pixels whose four neighbours belong to the mask are not on its outline.
    inner = np.pad(mask, 1)
    inner = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    pixels[mask & ~inner] = color


def _colors(objects: _Objects, categories: Sequence[Category]) -> list[_Color]:
    """A hue for each category, a shade for each instance of it."""
    order = {category.id: place for place, category in enumerate(categories)}
    seen: dict[Any, int] = {}
    colors = []
    for item in objects:
        category = item["category_id"]
        shade = seen[category] = seen.get(category, -1) + 1
        hue = order.get(category, len(order)) * 0.618034 % 1  # the golden ratio keeps neighbours far apart
        rgb = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[shade % 3], (1.0, 1.0, 0.75)[shade % 3])
        colors.append((round(255 * rgb[0]), round(255 * rgb[1]), round(255 * rgb[2])))
    return colors


def _frame(item: Mapping[str, Any], zoom: int) -> _Rectangle:
    """Corners of an object's box as PIL counts them: of the first and of the last pixel inside."""
    x, y, width, height = (zoom * float(value) for value in item["bbox"])
    # At least one pixel, because PIL refuses a rectangle whose corners are exchanged.
    return x, y, max(x, x + width - 1), max(y, y + height - 1)


def _text(item: Mapping[str, Any], names: Mapping[int, str]) -> str:
    name = names.get(item["category_id"], str(item["category_id"]))
    if item.get("iscrowd"):
        return f"{name} (crowd)"
    return f"{name} {item['score']:.2f}" if "score" in item else name


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    frame: _Rectangle,
    color: _Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    size: tuple[int, int],
    taken: list[_Rectangle],
) -> None:
    """Write ``text`` on a patch at one of the box's corners, so that it hides no other label if possible.

    Args:
        draw: the picture.
        text: the label.
        frame: the object's box.
        color: the object's colour, which the patch gets.
        font: letters.
        size: width and height of the picture, beyond which no patch reaches.
        taken: the patches so far; the new one is added.
    """
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 4
    places = [(frame[0], y) for y in (frame[1] - height, frame[1], frame[3] - height, frame[3])]
    # First above or below the left corners, then the same at the right.
    places += [(frame[2] - width, y) for _, y in places[:3]]
    patches = [_inside((x, y, x + width, y + height), size) for x, y in places]
    patch = next((place for place in patches if not any(_overlap(place, other) for other in taken)), patches[0])
    taken.append(patch)
    draw.rectangle(patch, fill=color)
    # Luma as in ITU-R BT.601, to choose between black and white letters.
    bright = np.dot(color, (0.299, 0.587, 0.114)) > 140
    draw.text((patch[0] + 3 - left, patch[1] + 2 - top), text, fill=(0, 0, 0) if bright else (255, 255, 255), font=font)


def _inside(patch: _Rectangle, size: tuple[int, int]) -> _Rectangle:
    """Move a patch into a picture of that size."""
    x = max(0.0, min(patch[0], size[0] - (patch[2] - patch[0])))
    y = max(0.0, min(patch[1], size[1] - (patch[3] - patch[1])))
    return x, y, x + patch[2] - patch[0], y + patch[3] - patch[1]


def _overlap(a: _Rectangle, b: _Rectangle) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def prediction_grid(
    images: Sequence[_Pixels],
    detections: Sequence[_Objects],
    truths: Sequence[_Objects],
    categories: Sequence[Category],
    path: str | PathLike[str],
    *,
    score_threshold: float = 0.5,
    columns: int = 2,
) -> None:
    """Write a picture: for each image its ground truth and, to the right of it, what was predicted.

    Args:
        images: ``[H, W, 3]`` uint8 RGB each, of any size.
        detections: COCO results of each image.
        truths: COCO annotations of each image.
        categories: the classes, for their names and colours.
        path: where to write; folders are made where they are missing, and the suffix decides the format.
        score_threshold: detections below it are not drawn.
        columns: pairs of pictures in a row.

    Raises:
        ValueError: there are no images, or not one list of detections and of truths for each.
    """
    if not images or not len(images) == len(detections) == len(truths):
        counts = f"{len(images)} images, {len(detections)} detections, {len(truths)} truths"
        raise ValueError(f"prediction_grid: expected one list of detections and truths for each image, got {counts}")
    cells = []
    for image, found, there in zip(images, detections, truths, strict=True):
        zoom = max(1, round(_CELL / max(image.shape[:2])))  # enlarged before drawing, so that names stay readable
        pair = [overlay(image, side, categories, score_threshold=score_threshold, zoom=zoom) for side in (there, found)]
        cells.append([_fitted(picture) for picture in pair])
    with replacing(path) as scratch:
        _sheet(cells, min(columns, len(cells))).save(scratch)


def save_predictions(
    source: Source,
    results: _Objects,
    path: str | PathLike[str],
    *,
    count: int = 8,
    score_threshold: float = 0.5,
    masks: bool = True,
) -> None:
    """Write a `prediction_grid` of the first images of a source.

    Args:
        source: the images and their ground truth.
        results: COCO results, of these images and perhaps others.
        path: where to write.
        count: number of images.
        score_threshold: detections below it are not drawn.
        masks: False: draw no masks of the ground truth, which may be broken where the model has none.
    """
    chosen = range(min(count, len(source)))
    annotations = source.ground_truth()["annotations"]
    if not masks:
        annotations = [{**item, "segmentation": None} for item in annotations]
    prediction_grid(
        [source[i].image for i in chosen],
        [_of_image(results, int(source.image_ids[i])) for i in chosen],
        [_of_image(annotations, int(source.image_ids[i])) for i in chosen],
        source.categories,
        path,
        score_threshold=score_threshold,
    )


def _of_image(objects: _Objects, image_id: int) -> _Objects:
    return [item for item in objects if item["image_id"] == image_id]


def _fitted(picture: _Pixels) -> Image.Image:
    """A picture that is not larger than a cell of the sheet."""
    fitted = Image.fromarray(picture)
    if max(fitted.size) > _CELL:
        fitted.thumbnail((_CELL, _CELL))
    return fitted


def _sheet(pairs: Sequence[Sequence[Image.Image]], columns: int) -> Image.Image:
    """Lay out pairs of pictures on white, so many ``columns`` of pairs, under headings."""
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    font = ImageFont.load_default(size=18)
    cell = max(picture.width for pair in pairs for picture in pair)
    heights = [max(picture.height for pair in row for picture in pair) for row in rows]
    head = 30  # pixels above the pictures, for the headings
    width = columns * (2 * cell + 3 * _GAP) - _GAP
    sheet = Image.new("RGB", (width, head + sum(heights) + _GAP * len(rows)), "white")
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        x = column * (2 * cell + 3 * _GAP)
        draw.text((x + 2, 5), "ground truth", fill="black", font=font)
        draw.text((x + cell + _GAP + 2, 5), "prediction", fill="black", font=font)
    y = head
    for row, height in zip(rows, heights, strict=True):
        for column, pair in enumerate(row):
            for side, picture in enumerate(pair):
                sheet.paste(picture, (column * (2 * cell + 3 * _GAP) + side * (cell + _GAP), y))
        y += height + _GAP
    return sheet
