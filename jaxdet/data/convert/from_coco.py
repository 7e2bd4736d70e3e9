"""From COCO's format to others: polygons for YOLO, and a JSON for each image for labelme."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from jaxdet.data.convert.folder import check_apart, link
from jaxdet.data.convert.found import Tally
from jaxdet.data.convert.outlines import one_ring, outlines
from jaxdet.data.convert.shapes import Ring, cut
from jaxdet.data.masks import decode_mask, has_mask
from jaxdet.data.sources.coco import read_categories, read_json, stored_hw
from jaxdet.data.validation.entries import file_name_of
from jaxdet.messages import short
from jaxdet.runtime.files import write_json, write_text

FORMATS = ("yolo", "labelme")


@dataclass(frozen=True)
class _Drawn:
    """One object as outlines."""

    label: int  #: 0..K-1
    rings: list[Ring]  #: its parts
    number: int  #: its place in the image


def from_coco(
    annotations: str | os.PathLike[str], images: str | os.PathLike[str], out: str | os.PathLike[str], to: str
) -> Tally:
    """Write a COCO json in another format, beside links to its images.

    Masks of run lengths become outlines along the edges of their pixels.  A mask of several parts or with holes becomes
    one outline in YOLO, with paths of no width between them; in labelme parts are shapes of one ``group_id``.

    Args:
        annotations: the json.
        images: folder of its images.
        out: folder to write to.
        to: one of `FORMATS`.

    Returns:
        The account: crowd regions, objects without a mask, and what cannot be read are left out.

    Raises:
        ValueError: the json cannot be read, there is no such format, or ``out`` is where the images are.
    """
    if to not in FORMATS:
        raise ValueError(f"--to: expected one of {', '.join(FORMATS)}, got {to}")
    check_apart(Path(images), Path(out))
    data, tally, target = read_json(os.fspath(annotations)), Tally(), Path(out)
    categories = read_categories(data["categories"])
    labels = {category.id: label for label, category in enumerate(categories)}
    names = [category.name for category in categories]
    entries: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in data["annotations"]:
        if isinstance(entry, dict) and type(entry.get("image_id")) is int:
            entries.setdefault(entry["image_id"], []).append(entry)
        else:
            tally.skip("annotation without an image", short(entry))
    write: Callable[[Path, str, tuple[int, int], list[_Drawn], list[str]], None] = (
        _write_yolo if to == "yolo" else _write_labelme
    )
    described: set[PurePosixPath] = set()
    for image in data["images"]:
        name = file_name_of(image)
        stem = PurePosixPath(name).with_suffix("")
        if stem in described:
            tally.skip("image with the name of another but for its suffix, whose file of labels it would share", name)
            continue
        described.add(stem)
        hw = stored_hw(image, os.fspath(images))
        drawn = [
            found
            for number, entry in enumerate(entries.get(image.get("id"), ()))
            if (found := _drawn(entry, number, labels, hw, to, tally)) is not None
        ]
        write(target, name, hw, drawn, names)
        link(Path(images) / name, target / "images" / name)
        tally.took("images")
    if to == "yolo":
        # Ultralytics' programs want a validation set, and one json has no other.  Without a `path` they take the folder
        # of this file; "." would be that in which they are started.
        settings = {"train": "images", "val": "images", "names": dict(enumerate(names))}
        write_text(target / "data.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return tally


def _drawn(
    entry: Mapping[str, Any], number: int, labels: Mapping[int, int], hw: tuple[int, int], to: str, tally: Tally
) -> _Drawn | None:
    where = f"annotation {short(entry.get('id'))}"
    segmentation = entry.get("segmentation")
    if type(entry.get("category_id")) is not int or entry["category_id"] not in labels:
        tally.skip("class that the json does not list", where)
    elif entry.get("iscrowd"):
        tally.skip("crowd region, which the format does not have", where)
    elif not has_mask(segmentation):
        tally.skip("object without a mask", where)
    else:
        try:
            rings = _rings(segmentation, hw, to, tally, where)
        except ValueError:
            tally.skip("mask that cannot be read", where)
            return None
        if rings:
            tally.took("objects")
            return _Drawn(labels[entry["category_id"]], rings, number)
        tally.skip("mask without a pixel", where)
    return None


def _rings(segmentation: Any, hw: tuple[int, int], to: str, tally: Tally, where: str) -> list[Ring]:
    mask = decode_mask(segmentation, hw)  # checks it, too
    if isinstance(segmentation, list) and (len(segmentation) == 1 or to == "labelme"):
        rings = [cut(np.array(outline, np.float64).reshape(-1, 2), hw) for outline in segmentation if len(outline) >= 6]
        return [ring for ring in rings if len(ring) >= 3]
    # Polygons that overlap would be holes in one outline, so those of several parts go through pixels.
    parts, holes = outlines(mask)
    if not parts:
        return []
    if holes:
        tally.note("hole: joined to the outline by a path of no width", where)
        return [one_ring([*parts, *holes])]
    if len(parts) > 1 and to == "yolo":
        tally.note("several parts: one outline, with paths of no width between them", where)
        return [one_ring(parts)]
    return parts


def _write_yolo(folder: Path, name: str, hw: tuple[int, int], drawn: list[_Drawn], names: list[str]) -> None:
    # The last folder `images` of an image's path is where its labels are looked for.
    parts = [*PurePosixPath("images", name).with_suffix(".txt").parts]
    last = max(place for place, part in enumerate(parts[:-1]) if part.lower() == "images")
    parts[last] = "labels"
    lines = []
    for item in drawn:
        shares = (item.rings[0] / [hw[1], hw[0]]).ravel()
        # Eight digits are a thousandth of a pixel on the longest side.
        lines.append(" ".join([str(item.label), *(f"{value:.8f}".rstrip("0").rstrip(".") for value in shares)]))
    write_text(folder.joinpath(*parts), "\n".join([*lines, ""]) if lines else "")


def _write_labelme(folder: Path, name: str, hw: tuple[int, int], drawn: list[_Drawn], names: list[str]) -> None:
    shapes = [
        {
            "label": names[item.label],
            "points": ring.tolist(),
            "group_id": item.number if len(item.rings) > 1 else None,
            "shape_type": "polygon",
            "flags": {},
        }
        for item in drawn
        for ring in item.rings
    ]
    content: dict[str, Any] = {
        "version": "5.0.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": PurePosixPath(name).name,
        "imageData": None,
        "imageHeight": hw[0],
        "imageWidth": hw[1],
    }
    write_json(folder / PurePosixPath("images", name).with_suffix(".json"), content)
