"""The built-in data set: generated scenes in COCO format.

Textured shapes of eight classes huddle and hide each other on textured ground.  Masks are the visible parts, so some
have several pieces and some have holes; a few images hold a crowd region, and a few no objects.  A scene is a function
of (seed, split, number, size, aspects, huddled) alone.

    python -m jaxdet.data.scenes OUT --train 1000 --val 200 --size 160 --seed 0
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from jaxdet.data.scenes.drawing import Scene, draw_scene, tight_box
from jaxdet.data.scenes.shapes import KINDS
from jaxdet.data.settings import Scenes
from jaxdet.data.sources.coco import map_path

_VERSION = 3  #: raised when scenes change; part of the cache folder's name, so that no older scenes are read
_STREAM = {"train": 0, "val": 1}  #: part of a scene's seed: no scene is in both splits


def make_scene(settings: Scenes, number: int) -> Scene:
    """Make scene ``number`` of the split that ``settings`` describe; any number may be asked for, in any order."""
    rng = np.random.default_rng([settings.seed, _STREAM[settings.split], number])
    aspect = settings.aspects[int(rng.integers(len(settings.aspects)))]
    # The long side is `size`, whatever the aspect.
    long, short = settings.size, max(round(settings.size * min(aspect, 1 / aspect)), 1)
    return draw_scene(rng, (short, long) if aspect >= 1 else (long, short), settings.huddled)


def write_scenes(
    folder: str | os.PathLike[str],
    *,
    train: int = 1000,
    val: int = 200,
    size: int = 160,
    seed: int = 0,
    aspects: Sequence[float] = (1.0,),
    semantic: bool = False,
    huddled: float = 0.0,
) -> None:
    """Write a COCO folder: ``images/``, ``instances_train.json``, ``instances_val.json``.

    Args:
        folder: where to write; it is made where it is missing, and files of the same names are overwritten.
        train: number of training images; 0 writes no training json.
        val: number of validation images; 0 writes no validation json.
        size: long side in pixels.
        seed: seed of all scenes.
        aspects: ratios width / height, one of which is drawn for each image.
        semantic: write semantic maps too, into ``semantic/``.
        huddled: share of objects that are placed onto another one.
    """
    for split, count in (("train", train), ("val", val)):
        if count:
            settings = Scenes(split, count, size, seed, tuple(aspects), semantic=semantic, huddled=huddled)
            _write_split(Path(folder), settings)


def folder_of(settings: Scenes) -> Path:
    """Path of the folder for the scenes of these settings, in ``settings.directory`` or the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdet"
    aspects = "-".join(f"{aspect:.17g}" for aspect in settings.aspects)  # 17 digits tell any two floats apart
    name = f"scenes-v{_VERSION}-{settings.split}-{settings.count}-{settings.size}-{settings.seed}-{aspects}"
    name += f"-huddled{settings.huddled:.17g}" if settings.huddled else ""
    return Path(settings.directory or home) / (f"{name}-semantic" if settings.semantic else name)


def cached_scenes(settings: Scenes) -> Path:
    """Write the scenes of these settings unless they are there already; returns their folder (`folder_of`)."""
    folder = folder_of(settings)
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, because a rename between file systems is a copy.
        with tempfile.TemporaryDirectory(prefix=".scenes-", dir=folder.parent) as scratch:
            _write_split(Path(scratch) / "new", settings)
            _publish(Path(scratch) / "new", folder)
    return folder


def _publish(written: Path, folder: Path) -> None:
    """Rename a written folder into its place, so that it is whole or not there; the first of two writers wins."""
    try:
        written.rename(folder)
    except OSError:
        if not folder.exists():  # the error had another cause than a second writer
            raise


def _write_split(folder: Path, settings: Scenes) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(settings.count):
        scene = make_scene(settings, number)
        # Ids have gaps and an offset, so that readers that take ids for positions fail.
        image_id = 10 + 3 * number + 1_000_000 * _STREAM[settings.split]
        name = f"{settings.split}_{number:06d}.jpg"
        _save(scene.image, folder / "images" / name, quality=95, subsampling=0)
        if settings.semantic:
            _save(scene.semantic, map_path(str(folder / "semantic"), name))
        height, width = scene.image.shape[:2]
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        annotations += _annotations(scene, image_id, first_id=len(annotations) + 1)
    data = {
        "info": {"description": f"jaxdet scenes v{_VERSION}, seed {settings.seed}, {settings.split}"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": kind.id, "name": kind.name, "supercategory": "shape"} for kind in KINDS],
    }
    (folder / f"instances_{settings.split}.json").write_text(json.dumps(data))


def _save(pixels: NDArray[np.uint8], path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def _annotations(scene: Scene, image_id: int, first_id: int) -> list[dict[str, Any]]:
    return [
        {
            "id": first_id + offset,
            "image_id": image_id,
            "category_id": KINDS[instance.kind].id,
            "bbox": _box(instance.mask),
            "area": int(instance.mask.sum()),
            "iscrowd": int(instance.crowd),
            # COCO has plain run lengths for crowd regions, as here, and polygons for all else; but they have no holes.
            "segmentation": _run_lengths(instance.mask) if instance.crowd else _compressed(instance.mask),
        }
        for offset, instance in enumerate(scene.instances)
    ]


def _box(mask: NDArray[np.bool_]) -> list[int]:
    """The tight box of a mask: x, y, width, height."""
    left, top, right, bottom = tight_box(mask)
    return [left, top, right - left, bottom - top]


def _compressed(mask: NDArray[np.bool_]) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a mask as COCO's crowd regions are: plain run lengths, column by column, zeros first."""
    flat = mask.ravel(order="F")
    borders = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of the module."""
    parser = argparse.ArgumentParser(prog="python -m jaxdet.data.scenes", description="Write generated COCO data.")
    parser.add_argument("folder", metavar="OUT")
    parser.add_argument("--train", type=int, default=1000, help="training images (default 1000)")
    parser.add_argument("--val", type=int, default=200, help="validation images (default 200)")
    parser.add_argument("--size", type=int, default=160, help="long side in pixels (default 160)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--aspects", type=float, nargs="+", default=[1.0], help="width / height to draw from")
    parser.add_argument("--semantic", action="store_true", help="write semantic maps too")
    parser.add_argument("--huddled", type=float, default=0.0, help="share of objects placed onto another (default 0)")
    options = parser.parse_args(arguments)
    write_scenes(
        options.folder,
        train=options.train,
        val=options.val,
        size=options.size,
        seed=options.seed,
        aspects=options.aspects,
        semantic=options.semantic,
        huddled=options.huddled,
    )
    print(f"wrote {options.train} training and {options.val} validation images to {options.folder}")
