"""What can be wrong with a COCO data set.  Each function looks at one thing and yields what it finds.

Nothing here stops at the first defect, and nothing trusts a type: the json may hold anything.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from jaxdet.data.coco import map_path
from jaxdet.data.images import load_image, load_map
from jaxdet.data.masks import encode_mask

Severity: TypeAlias = Literal["error", "warning", "note"]
_ORIENTATION = 0x112  # EXIF tag; 1 means upright
_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif"}


@dataclass(frozen=True)
class Finding:
    """One defect: how bad, of what kind, and where."""

    severity: Severity
    kind: str
    where: str


def entries_of(data: dict[str, Any], key: str, needed: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[Finding]]:
    """The entries of a list of the json that are objects with the ``needed`` keys, and findings on the others.

    Ids, of the entry or of what it refers to, must be whole numbers.
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
    wrong = [key for key in needed if key.endswith("id") and type(entry[key]) is not int]
    return f"{', '.join(wrong)} not a whole number" if wrong else ""


def repeated(entries: Iterable[dict[str, Any]], key: str, kind: str, severity: Severity) -> Iterator[Finding]:
    """Values of ``key`` that occur more than once."""
    for value, count in Counter(str(entry[key]) for entry in entries).items():
        if count > 1:
            yield Finding(severity, kind, f"{value} ({count} times)")


def image_findings(entry: dict[str, Any], folder: Path, quick: bool) -> Iterator[Finding]:
    """The file of an image entry: there, readable, of the size that the json says, upright.

    Args:
        entry: of ``images``.
        folder: that ``file_name`` is relative to.
        quick: read only the file's header.
    """
    name = str(entry["file_name"])
    path = folder / name
    if not path.is_file():
        yield Finding("error", "image file missing", name)
        return
    try:
        with Image.open(path) as image:
            size, orientation = image.size, image.getexif().get(_ORIENTATION, 1)
        if not quick:
            load_image(path)
    except (ValueError, OSError, SyntaxError) as error:
        yield Finding("error", "image broken", f"{name}: {error}")
        return
    expected = entry.get("width"), entry.get("height")
    if expected == (None, None):
        yield Finding("warning", "image without width and height in the json", name)
    elif expected != size:
        yield Finding("error", "image size differs from the json", f"{name}: json {expected}, file {size}")
    if orientation not in (0, 1):
        yield Finding("warning", "image with EXIF rotation (not applied)", name)


def map_findings(entry: dict[str, Any], stuff: Path) -> Iterator[Finding]:
    """The semantic map of an image entry: there, readable, of the size that the json says; ``stuff`` is its folder."""
    name = str(entry["file_name"])
    path = map_path(str(stuff), name)
    if not path.is_file():
        yield Finding("error", "semantic map missing", name)
        return
    try:
        size = load_map(path).shape[::-1]
    except ValueError as error:
        yield Finding("error", "semantic map unreadable", f"{name}: {error}")
        return
    expected = entry.get("width"), entry.get("height")
    if expected not in ((None, None), size):
        yield Finding("error", "semantic map of another size", f"{name}: json {expected}, map {size}")


def unreferenced(names: set[str], folder: Path) -> Iterator[Finding]:
    """Image files under the folder that are not among ``names``."""
    named = {str(Path(name)) for name in names}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in _IMAGE_SUFFIXES and str(path.relative_to(folder)) not in named:
            yield Finding("note", "image file that no json names", str(path.relative_to(folder)))


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
    hw = image.get("height"), image.get("width")
    if not all(type(side) is int and side > 0 for side in hw):
        return  # reported with the image
    box_findings = list(_box_findings(entry["bbox"], hw, where))
    yield from box_findings
    yield from _area_findings(entry, where)
    broken_box = any(finding.kind == "box malformed" for finding in box_findings)
    yield from _segmentation_findings(entry, hw, where, broken_box)


def _numbers(values: Any) -> list[float] | None:
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    return [float(value) for value in values] if all(math.isfinite(value) for value in values) else None


def _box_findings(box: Any, hw: tuple[Any, ...], where: str) -> Iterator[Finding]:
    numbers = _numbers(box)
    if numbers is None or len(numbers) != 4:
        yield Finding("error", "box malformed", f"{where}: {box!r:.60}")
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
    elif type(area) not in (int, float) or not area > 0:
        yield Finding("warning", "area not above 0 (not trained on)", f"{where}: {area!r:.60}")


def _segmentation_findings(
    entry: dict[str, Any], hw: tuple[Any, ...], where: str, broken_box: bool
) -> Iterator[Finding]:
    segmentation = entry.get("segmentation")
    if segmentation is None or segmentation in ([], {}):
        yield Finding("error", "no segmentation (needs data.masks=False)", where)
        return
    if isinstance(segmentation, list):
        yield from _polygon_findings(segmentation, hw, where, bool(entry.get("iscrowd")))
    try:
        encoded = encode_mask(segmentation, (hw[0], hw[1]))
    except (ValueError, TypeError, OverflowError) as error:
        yield Finding("error", "segmentation unreadable", f"{where}: {error}")
        return
    if not coco_mask.area(encoded):
        yield Finding("warning", "mask empty", where)
    elif not broken_box:
        overlap = float(np.asarray(coco_mask.iou([coco_mask.toBbox(encoded)], [entry["bbox"]], [0]))[0, 0])
        if overlap < 0.5:
            yield Finding("warning", "box and mask disagree", f"{where}: IoU of the boxes {overlap:.2f}")


def _polygon_findings(polygons: list[Any], hw: tuple[Any, ...], where: str, crowd: bool) -> Iterator[Finding]:
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
    """No defects, but good to know: empty images, unused categories, images with more than ``slots`` annotations."""
    per_image = Counter(entry["image_id"] for entry in annotations)
    used = {entry["category_id"] for entry in annotations}
    notes: tuple[tuple[str, list[dict[str, Any]], Callable[[dict[str, Any]], bool], str], ...] = (
        ("image without annotations", images, lambda entry: not per_image[entry["id"]], "file_name"),
        (
            f"image with more than {slots} annotations",
            images,
            lambda entry: per_image[entry["id"]] > slots,
            "file_name",
        ),
        ("category without annotations", categories, lambda entry: entry["id"] not in used, "name"),
    )
    for kind, entries, concerns, name in notes:
        for entry in entries:
            if concerns(entry):
                yield Finding("note", kind, str(entry[name]))
