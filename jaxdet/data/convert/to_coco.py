"""From another format to COCO's: one json for each split, and images where COCO's source finds them."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from PIL import Image

from jaxdet.data.convert.folder import Folder, check_apart, link
from jaxdet.data.convert.found import SPLITS, Picture, Tally, Unusable
from jaxdet.data.convert.layouts import Recognised, named, recognise
from jaxdet.data.images import decode_image, read_header
from jaxdet.data.validation.entries import MAX_ANNOTATIONS, check_categories
from jaxdet.runtime.files import read_file, replacing, write_json

Placing: TypeAlias = Literal["leave", "link", "copy"]
PLACINGS: tuple[Placing, ...] = ("leave", "link", "copy")
_VAL_SHARE = 0.2


@dataclass(frozen=True)
class Outcome:
    """What a conversion wrote."""

    recognised: Recognised
    annotations: dict[str, Path]  #: the jsons by their splits
    images: Path  #: the folder that their ``file_name`` is relative to
    counts: dict[str, tuple[int, int]]  #: images and objects of each split
    categories: list[str]
    split_by: str  #: how images were split
    tally: Tally


def to_coco(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    layout: str | None = None,
    val_share: float | None = None,
    images: Placing = "leave",
    boxes: Literal["mask", "box"] = "mask",
    class_name: str = "object",
) -> Outcome:
    """Write a data set of another format as COCO's.

    Args:
        source: its folder, in which nothing is written.
        out: folder for ``instances_{split}.json``, and for ``images/`` if they are linked or copied.
        layout: one of ``layouts.NAMES``; None: the one that the folder has.
        val_share: share of the images for validation, chosen by a hash of their path below ``source``; None: the
            splits that the data set names, and .2 by hash where it names none.
        images: ``leave``: the json names them where they are; ``link``: links in ``out/images``; ``copy``: copies
            there, and images that EXIF turns are written upright.
        boxes: whether an object with a box alone gets its rectangle as a ``mask``, or stays a ``box``.
        class_name: the class of all objects in formats that have no names.

    Raises:
        ValueError: the folder has none of the layouts, nothing in it can be read, or ``out`` has a data set already.
        OSError: the outcome cannot be written.
    """
    root, target = Path(source), Path(out)
    if not root.is_dir():
        raise ValueError(f"{root}: expected the folder of a data set, got {'a file' if root.exists() else 'nothing'}")
    check_apart(root, target)
    if older := sorted(target.glob("instances_*.json")):
        raise ValueError(f"{target}: expected a folder without a data set, there is {older[0].name}: remove it first")
    if val_share is not None and not 0 <= val_share <= 1:
        raise ValueError(f"--val-share: expected a share from 0 to 1, got {val_share}")
    folder = Folder(root, upright=images == "copy", boxes_as_masks=boxes == "mask", class_name=class_name)
    recognised = named(folder, layout) if layout else recognise(folder)
    try:
        names, found = recognised.layout.read(folder)
        pictures = _usable(folder.tally, found)
    except Unusable as reason:  # of a file that all depends on
        raise ValueError(f"{root}: expected a data set as {recognised.layout.name}, got a {reason}") from reason
    if not pictures:
        raise ValueError(f"{root}: expected images with annotations, got none{_reasons(folder.tally)}")
    names = names or sorted({item.name for picture in pictures for item in picture.objects})
    check_categories(len(names))
    splits, split_by = _splits(pictures, val_share)
    placed = root if images == "leave" else target / "images"
    if images != "leave":
        for picture in pictures:
            _place(root, picture, placed, images)
    jsons, counts = {}, {}
    for split in SPLITS:
        chosen = [picture for picture in pictures if splits[picture.name] == split]
        if chosen:
            content = _content(chosen, names)
            jsons[split] = target / f"instances_{split}.json"
            jsons[split].parent.mkdir(parents=True, exist_ok=True)
            write_json(jsons[split], content, indent=None)
            counts[split] = len(content["images"]), len(content["annotations"])
    return Outcome(recognised, jsons, placed, counts, names, split_by, folder.tally)


def _usable(tally: Tally, found: Iterable[Picture]) -> list[Picture]:
    pictures = []
    for picture in found:
        if len(picture.objects) > MAX_ANNOTATIONS:
            tally.skip(f"image with more than {MAX_ANNOTATIONS} objects (JAXDET_MAX_ANNOTATIONS)", picture.name)
        else:
            pictures.append(picture)
            tally.took("images")
    return pictures


def _reasons(tally: Tally) -> str:
    said = [f"{kind}: {len(places)}, such as {places[0]}" for kind, places in tally.skipped.items()]
    return f" ({'; '.join(said)})" if said else ""


def _splits(pictures: list[Picture], val_share: float | None) -> tuple[dict[str, str], str]:
    own = [picture for picture in pictures if picture.split]
    share = _VAL_SHARE if val_share is None else val_share
    if val_share is None and own:
        rest = len(pictures) - len(own)
        text = f"the data set's own splits{f' ({rest} images without one: training)' if rest else ''}"
        return {picture.name: picture.split or "train" for picture in pictures}, text
    text = f"SHA-256 of the path below the folder: a share of {share:g} for validation"
    return {picture.name: "val" if share_of(picture.name) < share else "train" for picture in pictures}, text


def share_of(name: str) -> float:
    """A number from 0 up to 1 that depends on a name alone, so that an image keeps its split when others come."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48


def _place(root: Path, picture: Picture, folder: Path, images: Placing) -> None:
    """Link or copy one image; a file of its name is replaced."""
    path, target = root / picture.name, folder / picture.name
    if images == "link":
        link(path, target)
        return
    with replacing(target) as scratch:
        if picture.encoded is None and read_header(path).orientation in (0, 1):
            shutil.copyfile(path, scratch)
            return
        encoded = picture.encoded or read_file(path, "image")
        pixels = decode_image(encoded, picture.name, upright=True)
        # Pillow takes these for JPEG, and leaves them unread for formats that lose nothing.
        options: dict[str, Any] = {"quality": 95, "subsampling": 0}
        Image.fromarray(pixels).save(scratch, **options)


def _content(pictures: list[Picture], names: list[str]) -> dict[str, Any]:
    """The json of one split; ids count from 1."""
    numbers = {name: number for number, name in enumerate(names, 1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, picture in enumerate(pictures, 1):
        images.append({"id": number, "file_name": picture.name, "height": picture.hw[0], "width": picture.hw[1]})
        for item in picture.objects:
            entry = {
                "id": len(annotations) + 1,
                "image_id": number,
                "category_id": numbers[item.name],
                "bbox": list(item.bbox),
                "area": item.area,
                "iscrowd": 0,
            }
            # Absent and not null: a set of boxes alone has none at all.
            annotations.append(entry if item.segmentation is None else {**entry, "segmentation": item.segmentation})
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    return {"images": images, "annotations": annotations, "categories": categories}
