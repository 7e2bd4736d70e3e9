"""Predictions beside the ground truth, many images on one sheet."""

from collections.abc import Sequence
from os import PathLike

from PIL import Image, ImageDraw, ImageFont

from jaxdet.data import Category, Source
from jaxdet.runtime.files import replacing
from jaxdet.visualize.overlay import Objects, Pixels, overlay

_CELL = 420  #: long side of a picture, pixels
_GAP = 8


def prediction_grid(
    images: Sequence[Pixels],
    detections: Sequence[Objects],
    truths: Sequence[Objects],
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
        categories: names.
        path: of the picture; folders are made where they are missing.
        score_threshold: detections below it are not drawn.
        columns: pairs in a row.

    Raises:
        ValueError: no images, or not one list of detections and of truths for each.
    """
    if not images or not len(images) == len(detections) == len(truths):
        counts = f"{len(images)} images, {len(detections)} detections, {len(truths)} truths"
        raise ValueError(f"prediction_grid: expected one list of detections and truths for each image, got {counts}")
    cells = []
    for image, found, there in zip(images, detections, truths, strict=True):
        zoom = max(1, round(_CELL / max(image.shape[:2])))
        pair = [overlay(image, each, categories, score_threshold=score_threshold, zoom=zoom) for each in (there, found)]
        cells.append([_fitted(picture) for picture in pair])
    with replacing(path) as scratch:
        _sheet(cells, min(columns, len(cells))).save(scratch)


def save_predictions(
    source: Source,
    results: Objects,
    path: str | PathLike[str],
    *,
    count: int = 8,
    score_threshold: float = 0.5,
    masks: bool = True,
) -> None:
    """``prediction_grid`` of the first ``count`` images of a source, given the results of all of them.

    Without ``masks`` those of the ground truth, which may be broken then, are not drawn.
    """
    chosen = range(min(count, len(source)))
    annotations = source.ground_truth()["annotations"]
    if not masks:
        annotations = [{**each, "segmentation": None} for each in annotations]
    prediction_grid(
        [source[i].image for i in chosen],
        [_of_image(results, int(source.image_ids[i])) for i in chosen],
        [_of_image(annotations, int(source.image_ids[i])) for i in chosen],
        source.categories,
        path,
        score_threshold=score_threshold,
    )


def _of_image(objects: Objects, image_id: int) -> Objects:
    return [each for each in objects if each["image_id"] == image_id]


def _fitted(picture: Pixels) -> Image.Image:
    fitted = Image.fromarray(picture)
    if max(fitted.size) > _CELL:
        fitted.thumbnail((_CELL, _CELL))
    return fitted


def _sheet(pairs: Sequence[Sequence[Image.Image]], columns: int) -> Image.Image:
    """Pairs side by side under their headings, on white."""
    rows = [pairs[i : i + columns] for i in range(0, len(pairs), columns)]
    font = ImageFont.load_default(size=18)
    cell = max(picture.width for pair in pairs for picture in pair)
    heights = [max(picture.height for pair in row for picture in pair) for row in rows]
    head = 30
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
