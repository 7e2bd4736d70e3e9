"""What can be wrong with a COCO data set, its json and its files: each function examines one thing.

Training and evaluation stop at the first defect; here none does, so that one run of `jaxdet.data.check` lists them
all.  The json may hold any type anywhere, therefore every value is checked before it is compared or counted.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from jaxdet.data.images import load_image, load_map, read_header, suffixes
from jaxdet.data.masks import encode_mask, has_mask, has_masks
from jaxdet.data.settings import COCO_DETECTIONS, Data
from jaxdet.data.sources.coco import map_path
from jaxdet.data.validation.entries import (
    MAX_ANNOTATIONS,
    MAX_BOX_VALUE,
    check_categories,
    file_name_of,
    flag,
    is_number,
    text,
    whole,
)
from jaxdet.data.validation.names import missing_text
from jaxdet.messages import counted, short

#: Brightest value, of 255, below which an image of more than 8 bits counts as read dark: 14 bits of 16.
_DARK = 64

_Severity: TypeAlias = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One defect."""

    severity: _Severity  #: errors stop training or falsify evaluation, warnings are worked around, notes are harmless
    kind: str  #: the same text for all defects of a kind, which are counted together
    where: str  #: the entry or file, and the value found there


def entries_of(data: dict[str, Any], key: str, needed: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Separate the entries of a list that can be examined further from those that cannot.

    Args:
        data: the json.
        key: name of the list.
        needed: keys that an entry must have.  What ends in ``id`` must be a whole number, and what ends in ``name`` a
            string that can be printed, because other findings use them to say where they are.

    Returns:
        The good entries, and a finding for each of the others.
    """
    good, bad = [], []
    for place, entry in enumerate(data[key]):
        problem = _entry_problem(entry, needed)
        if problem:
            bad.append(Finding("error", f"malformed entry of {key}", f"{key}[{place}]: {problem}"))
        else:
            good.append(entry)
    return good, bad


def _entry_problem(entry: Any, needed: tuple[str, ...]) -> str:
    if not isinstance(entry, dict):
        return f"expected an object, got {type(entry).__name__}"
    # Keys that other findings examine, such as an area, are not needed here.
    missing = [key for key in needed if key not in entry]
    if missing:
        return f"no {', '.join(missing)}"
    try:
        for key in needed:
            if key.endswith("id"):
                whole(entry, key)
            elif key.endswith("name"):
                text(entry, key)
    except ValueError as error:
        return str(error)
    return ""


def repeated(entries: Iterable[dict[str, Any]], key: str, kind: str, severity: _Severity) -> Iterator[Finding]:
    """Find values of ``key`` that occur more than once; ``kind`` and ``severity`` are the findings'."""
    for value, count in Counter(entry[key] for entry in entries).items():  # ids 3 and 3.0 are one
        if count > 1:
            yield Finding(severity, kind, f"{value} ({count} times)")


def image_findings(entry: dict[str, Any], folder: Path, quick: bool) -> Iterator[Finding]:
    """Examine the file of an image: it must exist, be readable, have the json's size, and be upright.

    Args:
        entry: an entry of ``images``.
        folder: the folder that ``file_name`` is relative to.
        quick: read only the file's header, so that broken pixels go unnoticed.
    """
    try:
        name = file_name_of(entry)
    except ValueError as error:
        yield Finding("error", "file name not usable", str(error))
        return
    path = folder / name
    if not os.path.isfile(path):
        yield Finding("error", "image file missing", missing_text(folder, name))
        return
    try:
        header = read_header(path)
        brightest = None if quick else int(load_image(path).max())
    except ValueError as error:
        yield Finding("error", "image broken", f"{name}: {error}")
        return
    (height, width), expected = header.hw, (entry.get("width"), entry.get("height"))
    if None in expected:
        yield Finding("warning", "image without width or height in the json (its file is asked)", name)
    elif expected != (width, height):
        yield Finding(
            "error", "image size differs from the json", f"{name}: json {short(expected)}, file {width} x {height}"
        )
    if header.deep and brightest is not None and brightest < _DARK:
        kind = (
            "image of more than 8 bits that is read dark (its upper 8 bits; stretch all images alike, save as 8 bits)"
        )
        yield Finding("warning", kind, f"{name}: brightest value {brightest} of 255")
    if header.orientation not in (0, 1):  # 1: upright; 0: a tag that is no number
        yield Finding("warning", "image with EXIF rotation (not applied)", name)


def map_findings(entry: dict[str, Any], stuff: Path, hw: tuple[int, int] | None) -> Iterator[Finding]:
    """Examine the semantic map of an image of size ``hw``, which lies in the folder ``stuff``: as `image_findings`."""
    try:
        name = file_name_of(entry)
    except ValueError:
        return  # `image_findings` reports it
    path = map_path(str(stuff), name)
    if not os.path.isfile(path):
        yield Finding("error", "semantic map missing", missing_text(stuff, str(map_path("", name))))
        return
    try:
        height, width = load_map(path).shape
    except ValueError as error:
        yield Finding("error", "semantic map unreadable", f"{name}: {error}")
        return
    if hw not in (None, (height, width)):
        yield Finding("error", "semantic map of another size", f"{name}: image {hw}, map {(height, width)}")


def unreferenced(names: set[str], folder: Path) -> Iterator[Finding]:
    """Find image files under ``folder`` that are not among ``names``, which are relative to it."""
    # Through Path, since a json may write a//b.jpg or ./b.jpg.
    named = {str(Path(name)) for name in names}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in suffixes() and str(path.relative_to(folder)) not in named:
            yield Finding("note", "image file that no json names", str(path.relative_to(folder)))


def annotation_findings(
    entry: dict[str, Any],
    images: dict[int, dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    categories: set[int],
    masks: bool,
) -> Iterator[Finding]:
    """Examine the references, flags, box, area and segmentation of an annotation.

    Args:
        entry: an entry of ``annotations`` that `entries_of` found good.
        images: entries of ``images`` by id.
        sizes: height and width of the images by id, as far as they can be known.
        categories: ids of the categories.
        masks: whether the data set has masks at all.
    """
    if entry["category_id"] not in categories:
        yield Finding("error", "unknown category", f"annotation {entry['id']}: category {entry['category_id']}")
    image = images.get(entry["image_id"])
    if image is None:
        yield Finding("error", "annotation of an unknown image", f"annotation {entry['id']}: image {entry['image_id']}")
        return
    where = f"annotation {entry['id']} of {image['file_name']}"
    hw = sizes.get(entry["image_id"])
    if hw is None:
        return  # reported with the image
    yield from _flag_findings(entry, where)
    box_findings = list(_box_findings(entry["bbox"], hw, where))
    yield from box_findings
    yield from _area_findings(entry, where)
    # Without a usable box there is nothing that the mask could be compared with.
    broken_box = any(finding.kind == "box malformed" for finding in box_findings)
    if has_mask(entry.get("segmentation")):
        yield from _segmentation_findings(entry, hw, where, broken_box)
    elif masks:  # COCO's evaluation of masks needs one for every annotation, crowd or not
        yield Finding("error", "no segmentation (needs data.masks=false)", where)


def _numbers(values: Any) -> list[float] | None:
    """The values as floats, or None if they are no list of numbers."""
    if not isinstance(values, list) or not all(is_number(value, MAX_BOX_VALUE) for value in values):
        return None
    return [float(value) for value in values]


def _flag_findings(entry: dict[str, Any], where: str) -> Iterator[Finding]:
    for key in ("iscrowd", "ignore"):
        try:
            flag(entry, key)
        except ValueError as error:
            yield Finding("error", "flag malformed", f"{where}: {error}")
            return
    if entry.get("ignore") and not entry.get("iscrowd"):
        yield Finding("warning", "ignored annotation (not trained on, but scored; iscrowd=1 leaves out of both)", where)


def _box_findings(box: Any, hw: tuple[int, int], where: str) -> Iterator[Finding]:
    numbers = _numbers(box)
    if numbers is None or len(numbers) != 4:
        yield Finding("error", "box malformed", f"{where}: {short(box)}")
        return
    x, y, width, height = numbers
    if width <= 0 or height <= 0:
        yield Finding("error", "box empty", f"{where}: {numbers}")
    elif x >= hw[1] or y >= hw[0] or x + width <= 0 or y + height <= 0:
        yield Finding("error", "box outside the image", f"{where}: {numbers}, image {hw[1]} x {hw[0]}")
    # Annotation tools round in different ways: half a pixel outside is no defect.
    elif x < -0.5 or y < -0.5 or x + width > hw[1] + 0.5 or y + height > hw[0] + 0.5:
        yield Finding("warning", "box partly outside the image", f"{where}: {numbers}, image {hw[1]} x {hw[0]}")
    elif width < 1 or height < 1:
        yield Finding("warning", "box under one pixel (not trained on)", f"{where}: {numbers}")


def _area_findings(entry: dict[str, Any], where: str) -> Iterator[Finding]:
    area = entry.get("area")
    if area is None:
        yield Finding("warning", "no area (that of the box is used)", where)
    elif not is_number(area):
        yield Finding("error", "area malformed", f"{where}: {short(area)}")
    elif area <= 0:
        yield Finding("warning", "area not above 0 (not trained on)", f"{where}: {area}")


def _segmentation_findings(
    entry: dict[str, Any], hw: tuple[int, int], where: str, broken_box: bool
) -> Iterator[Finding]:
    segmentation = entry["segmentation"]
    if isinstance(segmentation, list):
        yield from _polygon_findings(segmentation, hw, where, bool(entry.get("iscrowd")))
    try:
        encoded = encode_mask(segmentation, hw)
    except ValueError as error:
        yield Finding("error", "segmentation unreadable", f"{where}: {error}")
        return
    if not coco_mask.area(encoded):
        yield Finding("warning", "mask empty", where)
    elif not broken_box:
        overlap = float(np.asarray(coco_mask.iou([coco_mask.toBbox(encoded)], [entry["bbox"]], [0]))[0, 0])
        if overlap < 0.5:  # boxes drawn by hand are rarely tight, so only gross disagreement counts
            yield Finding("warning", "box and mask disagree", f"{where}: IoU of the boxes {overlap:.2f}")


def _polygon_findings(polygons: list[Any], hw: tuple[int, int], where: str, crowd: bool) -> Iterator[Finding]:
    if crowd:
        yield Finding("warning", "crowd region as polygons", where)
    for polygon in polygons:
        numbers = _numbers(polygon)
        if numbers is None or len(numbers) % 2:
            continue  # the segmentation is unreadable and reported as such
        if len(numbers) < 6:
            yield Finding("warning", "polygon of fewer than 3 points (left out)", f"{where}: {numbers}")
        # A pixel of tolerance, since tools round polygons in different ways.
        elif min(numbers) < -1 or max(numbers[::2]) > hw[1] + 1 or max(numbers[1::2]) > hw[0] + 1:
            yield Finding("warning", "polygon reaches outside the image", where)


def usage_findings(
    images: list[dict[str, Any]],
    annotations: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    sizes: dict[int, tuple[int, int]],
    data: Data,
) -> Iterator[Finding]:
    """Find what training or evaluation leaves out, or what the data set as a whole has too many or none of.

    Args:
        images: good entries of ``images``.
        annotations: good entries of ``annotations``.
        categories: good entries of ``categories``.
        sizes: height and width of the images by id, as far as they can be known.
        data: settings that say what training leaves out, which is a note.
    """
    try:
        check_categories(len(categories))
    except ValueError as error:
        yield Finding("error", "too many categories", str(error))
    for entry in images:
        if min(sizes.get(entry["id"], (data.min_side,))) < data.min_side:
            kind = f"image with a side under {data.min_side} pixels (not trained on; data.min_side)"
            yield Finding("note", kind, f"{entry['file_name']}: height, width {sizes[entry['id']]}")
    if not annotations:
        use = "to be predicted: jaxdet eval --out; there is nothing to train on or to score by"
        kind = f"json without annotations ({use})"
        yield Finding("note", kind, counted(len(images), "image"))
        return
    if not has_masks(annotations):
        kind = "data set without masks (train with data.masks=false and a model without masks; scored by boxes)"
        yield Finding("note", kind, f"none of {len(annotations)} annotations has a segmentation")
    yield from _crowded_images(images, annotations, data.max_boxes)
    of_category = Counter(entry["category_id"] for entry in annotations)
    instances = Counter(entry["category_id"] for entry in annotations if not entry.get("iscrowd"))
    for entry in categories:
        if not of_category[entry["id"]]:
            yield Finding("note", "category without annotations", str(entry["name"]))
        elif not instances[entry["id"]]:
            kind = "category of crowd regions only (not learned, not scored; masks from a brush need iscrowd=0)"
            yield Finding("warning", kind, f"{entry['name']}: {of_category[entry['id']]} annotations with iscrowd=1")


def _crowded_images(images: list[dict[str, Any]], annotations: list[dict[str, Any]], slots: int) -> Iterator[Finding]:
    """Find images without annotations, and with more than training or evaluation counts."""
    per_image = Counter(entry["image_id"] for entry in annotations)
    pairs = Counter((entry["image_id"], entry["category_id"]) for entry in annotations if not entry.get("iscrowd"))
    most: Counter[int] = Counter()
    for (image, _), count in pairs.items():
        most[image] = max(most[image], count)
    for entry in images:
        count, name = per_image[entry["id"]], str(entry["file_name"])
        if not count:
            yield Finding("note", "image without annotations", name)
        elif count > MAX_ANNOTATIONS:
            yield Finding("error", f"image with more than {MAX_ANNOTATIONS} annotations", name)
        elif count > slots:
            yield Finding("note", f"image with more than {slots} annotations (data.max_boxes)", name)
        if most[entry["id"]] > COCO_DETECTIONS:
            kind = f"image with more than {COCO_DETECTIONS} instances of a class (evaluation counts as many; "
            yield Finding("note", f"{kind}run.eval_detections)", f"{name}: {most[entry['id']]}")
