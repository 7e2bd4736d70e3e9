"""Look before you train: pictures of the truth, of what augmentation makes of an image, and of the batch of a step.

    jaxdet data show --config demo --out look [--step 0] [KEY=VALUE ...]
    jaxdet data show --truth JSON --images FOLDER --out look

A batch is drawn from the arrays that the loss gets: boxes after resize, flip and clipping, masks as bitmaps in their
frames, and the canvas around the image, hatched.
"""

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from jaxdet.config import load_config, override
from jaxdet.data import Category, CocoFolder, Data, Source, open_source
from jaxdet.data.pipeline.batches import TrainBatches
from jaxdet.data.pipeline.plans import Share, TrainPlan, train_plan, trainable
from jaxdet.experiment import as_experiment
from jaxdet.messages import counted
from jaxdet.runtime.files import replacing
from jaxdet.visualize import overlay

__all__ = ["save_batch", "save_draws", "save_truth"]

_CELL = 560  #: long side of a picture on a sheet, in pixels
_GAP = 8  #: pixels between pictures
_LINE = 20  #: pixels of a line of text below each
_HATCH = 8  #: width of the stripes beyond the image, in pixels


def save_truth(source: Source, path: str | PathLike[str], *, count: int = 8, masks: bool = True) -> None:
    """Draw the first images of a source with their annotations as stored, before any transform.

    Args:
        source: the data.
        path: the picture to write.
        count: number of images.
        masks: False: draw boxes alone.

    Raises:
        ValueError: an image or a mask cannot be read.
    """
    pictures = []
    for index in range(min(count, len(source))):
        record = source[index]
        objects = [
            {
                "bbox": annotation.bbox,
                "category_id": source.categories[annotation.label].id,
                "segmentation": annotation.segmentation if masks else None,
                "iscrowd": annotation.crowd,
            }
            for annotation in record.annotations
        ]
        pixels = overlay(record.image, objects, source.categories, zoom=_zoom(record.image))
        pictures.append((pixels, f"{record.name}: {counted(len(objects), 'object')}"))
    _save(pictures, path)


def save_draws(source: Source, data: Data, path: str | PathLike[str], *, seed: int, index: int, count: int = 6) -> None:
    """Draw one image of a source under several draws of the augmentation of ``data``.

    Args:
        source: the data.
        data: settings; ``flip_probability`` and ``augment`` say what is drawn.
        path: the picture to write.
        seed: seed of the draws.
        index: position of the image in the source.
        count: number of draws.
    """
    alone = dataclasses.replace(data, batch_size=1)
    plan = TrainPlan((np.array([index]),), 1, seed)
    batches = TrainBatches(source, alone, plan, Share(0, 1, 1), 0, count)
    pictures = [(_drawn(batches[draw], 0, source.categories), f"draw {draw}") for draw in range(count)]
    _save(pictures, path)


def save_batch(source: Source, data: Data, path: str | PathLike[str], *, seed: int, step: int) -> None:
    """Draw the batch of one training step, from the arrays that a run with this seed gets in it.

    Args:
        source: the training data.
        data: settings of the run.
        path: the picture to write.
        seed: ``run.seed``.
        step: number of the step, from 0.

    Raises:
        ValueError: there is nothing to train on, or an image cannot be read.
    """
    share = Share(0, 1, data.batch_size)
    arrays = TrainBatches(source, data, train_plan(source, data, seed), share, step, 1)[0]
    pictures = []
    for slot in range(data.batch_size):
        index = int(arrays["index"][slot])
        text = f"image id {source.image_ids[index]}: {int(arrays['targets']['valid'][slot].sum())} targets"
        pictures.append((_drawn(arrays, slot, source.categories), text if index >= 0 else "fills the batch: no loss"))
    _save(pictures, path)


def _drawn(arrays: Mapping[str, Any], slot: int, categories: Sequence[Category]) -> NDArray[np.uint8]:
    """One slot of a batch: its canvas, with all valid targets."""
    pixels, targets = arrays["image"][slot].copy(), arrays["targets"]
    objects = []
    for place in np.flatnonzero(targets["valid"][slot]):
        x1, y1, x2, y2 = (float(value) for value in targets["boxes"][slot, place])
        item: dict[str, Any] = {
            "bbox": (x1, y1, x2 - x1, y2 - y1),
            "category_id": categories[int(targets["labels"][slot, place])].id,
            "iscrowd": bool(targets["crowd"][slot, place]),
        }
        bitmap = targets["masks"][slot, place]
        if bitmap.any():  # a crowd region has none, nor has any object with data.masks=false
            mask = pasted(bitmap, targets["frames"][slot, place], pixels.shape[:2])
            encoded = coco_mask.encode(np.asfortranarray(mask))
            item["segmentation"] = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
        objects.append(item)
    height, width = (int(side) for side in arrays["true_hw"][slot])
    rows, columns = np.indices(pixels.shape[:2])
    beyond = (rows >= height) | (columns >= width)
    # Grey stripes, which no image has at the border of its canvas by chance.
    stripes = ((rows + columns) // _HATCH % 2 * 90 + 80).astype(np.uint8)
    pixels[beyond] = stripes[beyond, None]
    return overlay(pixels, objects, categories, zoom=_zoom(pixels))


def pasted(bitmap: NDArray[np.uint8], frame: NDArray[np.float32], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Lay a bitmap over an image: each pixel has the value of the cell in which its centre lies.

    Args:
        bitmap: ``[h, w]``, 0 or 1.
        frame: ``[4]`` x1, y1, x2, y2 of what it covers, which may reach beyond the image.
        hw: size of the image.

    Returns:
        ``[*hw]`` uint8, 0 beyond the frame.
    """
    whole = np.zeros(hw, np.uint8)
    cells, inside = [], []
    for axis, (side, begin, end) in enumerate(zip(hw, frame[1::-1], frame[:1:-1], strict=True)):
        cell = np.floor((np.arange(side) + 0.5 - begin) * (bitmap.shape[axis] / (end - begin))).astype(int)
        inside.append(np.flatnonzero((cell >= 0) & (cell < bitmap.shape[axis])))
        cells.append(cell[inside[-1]])
    whole[np.ix_(*inside)] = bitmap[np.ix_(*cells)]
    return whole


def _zoom(pixels: NDArray[np.uint8]) -> int:
    """Small images are enlarged before drawing, so that names stay readable."""
    return max(1, round(_CELL / max(pixels.shape[:2])))


def _save(pictures: Sequence[tuple[NDArray[np.uint8], str]], path: str | PathLike[str]) -> None:
    """Lay out pictures on white, each with a line of text below it."""
    columns = math.ceil(math.sqrt(len(pictures)))
    cells = []
    for pixels, text in pictures:
        cell = Image.fromarray(pixels)
        cell.thumbnail((_CELL, _CELL))
        cells.append((cell, text))
    width, height = (max(cell.size[axis] for cell, _ in cells) + _GAP for axis in (0, 1))
    rows = math.ceil(len(cells) / columns)
    sheet = Image.new("RGB", (columns * width + _GAP, rows * (height + _LINE) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for place, (cell, text) in enumerate(cells):
        x, y = place % columns * width + _GAP, place // columns * (height + _LINE) + _GAP
        sheet.paste(cell, (x, y))
        # Names of files may hold anything, and the font has no more than Latin letters.
        draw.text((x, y + cell.height + 2), ascii(text)[1:-1], fill="black", font=font)
    with replacing(path) as scratch:
        sheet.save(scratch)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser, whose outcome `show` takes."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="a Python file with get_config(), or FILE.py:ROW: truth, draws and a batch")
    what.add_argument("--truth", metavar="JSON", help="COCO's annotations: truth alone")
    parser.add_argument("--images", metavar="FOLDER", help="with --truth: folder of the images (default: the json's)")
    parser.add_argument("--out", required=True, help="folder of the pictures")
    parser.add_argument("--step", type=int, default=0, metavar="N", help="step whose batch is drawn (default 0)")
    parser.add_argument("--count", type=int, default=9, metavar="N", help="images of the truth, and draws (default 9)")
    parser.add_argument("--index", type=int, metavar="I", help="image that is drawn several times (default: the first)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, by dotted name")


def show(options: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit status."""
    out = Path(options.out)
    try:
        if options.step < 0 or options.count < 1:
            raise ValueError(
                f"--step, --count: expected 0 and 1 or more, got --step {options.step} --count {options.count}"
            )
        if options.truth:
            source = open_source(CocoFolder(options.images or str(Path(options.truth).parent), options.truth))
            save_truth(source, out / "truth.png", count=options.count)
            print(f"wrote {out / 'truth.png'}")
            return 0
        experiment = as_experiment(override(load_config(options.config), options.overrides))
        source, data, seed = open_source(experiment.data.train), experiment.data, experiment.run.seed
        chosen = trainable(source, data)
        index = int(chosen[0]) if options.index is None else options.index
        if not 0 <= index < len(source):
            raise ValueError(f"--index: expected 0 to {len(source) - 1}, got {index}")
        save_truth(source, out / "truth.png", count=options.count, masks=data.masks)
        save_draws(source, data, out / "draws.png", seed=seed, index=index, count=options.count)
        save_batch(source, data, out / f"step_{options.step}.png", seed=seed, step=options.step)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote truth.png, draws.png and step_{options.step}.png to {out}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="jaxdet data show", description=str(__doc__).partition("\n")[0])
    add_arguments(parser)
    return show(parser.parse_intermixed_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
