"""CVAT for images: one XML with all images, whose shapes are boxes, polygons, ellipses and run lengths of masks.

The meaning of the attributes is that of CVAT's documentation ("CVAT for image export").
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np

from jaxdet.data.convert.folder import Folder, by_stem
from jaxdet.data.convert.found import Contents, Found, Picture, Unusable, one_word, split_named, split_of
from jaxdet.data.convert.shapes import Ring, bitmap, box, ellipse, joined, polygon, ring_of, turned
from jaxdet.data.validation.entries import check_sides

_OTHERS = ("tag", "attribute")  #: elements of an image that are no shapes


def signs(folder: Folder) -> tuple[bool, str]:
    """Whether the folder has this layout, and by what one sees it."""
    # Large sets of VOC have an XML an image, and only the first tells.
    name = next(folder.ending(".xml"), None)
    if name is None:
        return False, "no xml"
    try:
        root = folder.xml(name)
    except Unusable as reason:
        return False, f"{name}: {reason}"
    found = root.tag == "annotations" and root.find("image") is not None
    return found, f"{name} has " + ("annotations of images" if found else "no annotations with images in them")


def read(folder: Folder) -> Contents:
    """Read the layout."""
    roots = {}
    for name in folder.ending(".xml"):
        with folder.tally.skipping(name):
            roots[name] = folder.xml(name)
    labels = [one_word(label.text) for root in roots.values() for label in root.iterfind("meta//labels/label/name")]
    return list(dict.fromkeys(labels)) or None, _pictures(folder, roots, set(labels))


def _pictures(folder: Folder, roots: dict[str, Element], labels: set[str]) -> Iterator[Picture]:
    described = set()
    files = by_stem(folder.images)
    for name, root in roots.items():
        for element in root.iterfind("image"):
            where = f"{name}, image {element.get('id')}"
            with folder.tally.skipping(where):
                image = _image(folder, element.get("name"), files)
                if image in described:
                    raise Unusable("image annotated twice")
                described.add(image)
                hw = folder.size(image)
                if (element.get("height"), element.get("width")) != (str(hw[0]), str(hw[1])):
                    raise Unusable("image of another size than annotated")
                subset = split_named(element.get("subset") or "")
                objects = _objects(folder, element, hw, labels, where)
                yield Picture(image, hw, tuple(objects), subset or split_of(image))
    for image in folder.images:
        if image not in described:
            folder.tally.skip("image that no xml names", image)


def _image(folder: Folder, name: str | None, files: dict[str, list[str]]) -> str:
    """The file of an image: at the path of its name, below ``images``, or the only one of that name."""
    plain = folder.inside("", name)
    beginnings = ("", "images/", "images/default/")
    at = next((start + plain for start in beginnings if folder.has(start + plain)), None)
    if at is not None:
        return at
    alike = [path for path in files.get(PurePosixPath(plain).stem, ()) if path.endswith(f"/{plain}")]
    if len(alike) != 1:
        raise Unusable("image file missing" if not alike else "image name that several files have")
    return alike[0]


def _objects(folder: Folder, image: Element, hw: tuple[int, int], labels: set[str], where: str) -> list[Found]:
    groups: dict[object, list[Found]] = {}
    for place, shape in enumerate(element for element in image if element.tag not in _OTHERS):
        with folder.tally.skipping(f"{where}, shape {place}"):
            name = one_word(shape.get("label"))
            if labels and name not in labels:
                raise Unusable("class that the data set does not list")
            found = _shape(folder, shape, name, hw, f"{where}, shape {place}")
            folder.tally.took(f"{shape.tag}s")
            group = shape.get("group_id", "0")
            key = place if group == "0" or found.segmentation is None else (name, group)
            groups.setdefault(key, []).append(found)
    for parts in groups.values():
        if len(parts) > 1:
            folder.tally.note("parts with one group_id: one instance", where)
    return [joined(parts, hw) for parts in groups.values()]


def _shape(folder: Folder, shape: Element, name: str, hw: tuple[int, int], where: str) -> Found:
    match shape.tag:
        case "box":
            left, top, right, bottom = _numbers(shape, "xtl", "ytl", "xbr", "ybr")
            if folder.boxes_as_masks:
                folder.tally.note("box: its rectangle counts as the mask", where)
            angle = _number(shape.get("rotation", "0"))
            if not angle:
                return box(name, (left, top, right, bottom), hw, folder.boxes_as_masks)
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
            ring = turned(corners - corners.mean(axis=0), angle) + corners.mean(axis=0)
            if folder.boxes_as_masks:
                return polygon(name, [ring], hw)
            return box(name, (*ring.min(axis=0), *ring.max(axis=0)), hw, as_mask=False)
        case "polygon":
            return polygon(name, [_points(shape)], hw)
        case "ellipse":
            x, y, width, height = _numbers(shape, "cx", "cy", "rx", "ry")
            if min(width, height) < 0:
                raise Unusable("ellipse with a radius under 0")
            return polygon(name, [ellipse((x, y), (width, height), _number(shape.get("rotation", "0")))], hw)
        case "mask":
            return _mask(shape, name, hw)
        case kind:  # polyline, points, cuboid, skeleton
            raise Unusable(f"shape of the kind {kind}" if kind.isalpha() else "shape of an unknown kind")


def _mask(shape: Element, name: str, hw: tuple[int, int]) -> Found:
    """Run lengths row by row inside of the mask's box, pixels outside first."""
    left, top, width, height = (int(value) for value in _numbers(shape, "left", "top", "width", "height"))
    try:
        check_sides(height, width)
        runs = np.array((shape.get("rle") or "").split(","), np.int64)
    except (ValueError, OverflowError) as error:
        raise Unusable("mask whose size or run lengths cannot be read") from error
    # The last run may be left out where it is outside.
    if runs.min() < 0 or runs.max() > height * width or not 0 < runs.sum() <= height * width:
        raise Unusable("mask whose run lengths do not fit its size")
    flat = np.zeros(height * width, np.bool_)
    inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    flat[: len(inside)] = inside
    return bitmap(name, flat.reshape(height, width), hw, left, top)


def _points(shape: Element) -> Ring:
    pairs = [pair.split(",") for pair in (shape.get("points") or "").split(";")]
    return ring_of([[_number(value) for value in pair] for pair in pairs])


def _numbers(shape: Element, *names: str) -> list[float]:
    values = [_number(shape.get(name)) for name in names]
    ring_of([[value, 0] for value in values])  # within the limits
    return values


def _number(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError as error:
        raise Unusable("coordinates that are no numbers") from error
