"""What can be wrong with a COCO data set.  Each function looks at one thing and yields what it finds.

Nothing here stops at the first defect, and nothing trusts a type: the json may hold anything.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from pycocotools import mask as coco_mask

from jaxdet.data.masks import encode_mask
from jaxdet.data.validation.entries import hw_of
from jaxdet.data.validation.limits import ANNOTATIONS, BOX, check_categories
from jaxdet.data.validation.values import flag, is_number, short, text, whole

Severity: TypeAlias = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One defect: how bad, of what kind, and where."""

    severity: Severity
    kind: str
    where: str


def entries_of(data: dict[str, Any], key: str, needed: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The entries of a list of the json that are objects with the ``needed`` keys, and findings on the others.

    Ids, of the entry or of what it refers to, must be whole numbers, and names must be strings that can be printed.
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


def repeated(entries: Iterable[dict[str, Any]], key: str, kind: str, severity: Severity) -> Iterator[Finding]:
    """Values of ``key`` that occur more than once."""
    for value, count in Counter(str(entry[key]) for entry in entries).items():
        if count > 1:
            yield Finding(severity, kind, f"{value} ({count} times)")


def annotation_findings(
    entry: dict[str, Any], images: dict[int, dict[str, Any]], categories: set[int]
) -> Iterator[Finding]:
    """References, box and segmentation of one annotation."""
    if entry["category_id"] not in categories:
        yield Finding("error", "unknown category", f"annotation {entry['id']}: category {entry['category_id']}")
    image = images.get(entry["image_id"])
    if image is None:
        yield Finding("error", "annotation of an unknown image", f"annotation {entry['id']}: image {entry['image_id']}")
        return
    where = f"annotation {entry['id']} of {image['file_name']}"
    try:
        hw = hw_of(image)
    except ValueError:
        return  # reported with the image
    yield from _flag_findings(entry, where)
    box_findings = list(_box_findings(entry["bbox"], hw, where))
    yield from box_findings
    yield from _area_findings(entry, where)
    broken_box = any(finding.kind == "box malformed" for finding in box_findings)
    yield from _segmentation_findings(entry, hw, where, broken_box)


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list) or not all(is_number(value, BOX) for value in values):
        return None
    return [float(value) for value in values]


def _flag_findings(entry: dict[str, Any], where: str) -> Iterator[Finding]:
    for key in ("iscrowd", "ignore"):
        try:
            flag(entry, key)
        except ValueError as error:
            yield Finding("error", "flag malformed", f"{where}: {error}")


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
    segmentation = entry.get("segmentation")
    if segmentation is None or segmentation in ([], {}):
        yield Finding("error", "no segmentation (needs data.masks=False)", where)
        return
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
        if overlap < 0.5:
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
        elif min(numbers) < -1 or max(numbers[::2]) > hw[1] + 1 or max(numbers[1::2]) > hw[0] + 1:
            yield Finding("warning", "polygon reaches outside the image", where)


def usage_findings(
    images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: list[dict[str, Any]], slots: int
) -> Iterator[Finding]:
    """How often things are used: no defects, as long as no image has more annotations than are read.

    Empty images, unused categories, images with more than ``slots`` annotations.
    """
    per_image = Counter(entry["image_id"] for entry in annotations)
    used = {entry["category_id"] for entry in annotations}
    for entry in images:
        count, name = per_image[entry["id"]], str(entry["file_name"])
        if not count:
            yield Finding("note", "image without annotations", name)
        elif count > ANNOTATIONS:
            yield Finding("error", f"image with more than {ANNOTATIONS} annotations", name)
        elif count > slots:
            yield Finding("note", f"image with more than {slots} annotations", name)
    try:
        check_categories(len(categories))
    except ValueError as error:
        yield Finding("error", "too many categories", str(error))
    for entry in categories:
        if entry["id"] not in used:
            yield Finding("note", "category without annotations", str(entry["name"]))
