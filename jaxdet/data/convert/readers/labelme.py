"""labelme: a JSON for each image, with shapes in its pixels; ``group_id`` joins the parts of an instance."""

import base64
import binascii
import math
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from jaxdet.data.convert.folder import Folder
from jaxdet.data.convert.found import Contents, Found, Picture, Unusable, one_word, split_of
from jaxdet.data.convert.shapes import box, ellipse, joined, polygon, ring_of
from jaxdet.data.images import decode_image

_LOOKED_AT = 20  #: JSON files that are opened to see what they are


def signs(folder: Folder) -> tuple[bool, str]:
    """Whether the folder has this layout, and by what one sees it."""
    for name in list(folder.ending(".json"))[:_LOOKED_AT]:
        try:
            content = folder.json(name)
        except Unusable:
            continue
        if _is_labelme(content):
            return True, f"{name} has shapes and imagePath"
    return False, "no json with shapes and imagePath"


def read(folder: Folder) -> Contents:
    """Read the layout."""
    return None, _pictures(folder)


def _is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _pictures(folder: Folder) -> Iterator[Picture]:
    described = set()
    for name in folder.ending(".json"):
        with folder.tally.skipping(name):
            content = folder.json(name)
            if not _is_labelme(content):
                raise Unusable("json of another kind")
            image, hw, encoded = _image(folder, name, content)
            if image in described:
                raise Unusable("second json of an image")
            described.add(image)
            if hw != (given := (content.get("imageHeight"), content.get("imageWidth"))) and None not in given:
                raise Unusable("image of another size than annotated")
            yield Picture(image, hw, tuple(_objects(folder, name, content["shapes"], hw)), split_of(image), encoded)
    for image in folder.images:
        if image not in described:
            folder.tally.skip("image without a json", image)


def _image(folder: Folder, name: str, content: dict[str, Any]) -> tuple[str, tuple[int, int], bytes | None]:
    """Name and size of a json's image, and its file where only the json has it."""
    image = folder.inside(name, content["imagePath"])
    beside = folder.inside(name, PurePosixPath(image).name)
    for path in (image, beside):  # a json that was moved with its image has a path of another folder
        if folder.has(path):
            return path, folder.size(path), None
    if not isinstance(content.get("imageData"), str):
        raise Unusable("image file missing")
    if not folder.upright:
        raise Unusable("image that only its json holds (--images copy writes it)")
    try:
        encoded = base64.b64decode(content["imageData"], validate=False)
        pixels = decode_image(encoded, name, upright=True)
    except (ValueError, binascii.Error) as error:
        raise Unusable("image that cannot be read") from error
    return beside, (pixels.shape[0], pixels.shape[1]), encoded


def _objects(folder: Folder, name: str, shapes: list[Any], hw: tuple[int, int]) -> list[Found]:
    groups: dict[Any, list[Found]] = {}
    for place, shape in enumerate(shapes):
        where = f"{name}, shape {place}"
        with folder.tally.skipping(where):
            found = _shape(folder, shape, hw, where)
            group = shape.get("group_id")
            # Parts of one class with one number are one instance; those without a number are one each.
            key = (found.name, group) if type(group) in (int, str) else place
            groups.setdefault(key, []).append(found)
    return [_joined(folder, parts, hw, name) for parts in groups.values()]


def _joined(folder: Folder, parts: list[Found], hw: tuple[int, int], name: str) -> Found:
    if len(parts) == 1 or any(part.segmentation is None for part in parts):
        return parts[0]
    folder.tally.note("parts with one group_id: one instance", name)
    return joined(parts, hw)


def _shape(folder: Folder, shape: Any, hw: tuple[int, int], where: str) -> Found:
    if not isinstance(shape, dict):
        raise Unusable("shape that is no object")
    name, kind = one_word(shape.get("label")), shape.get("shape_type", "polygon")
    if kind not in ("polygon", "rectangle", "circle"):
        # labelme's others: line, linestrip and point enclose nothing, and mask holds pixels of a program's own.
        raise Unusable(f"shape of the kind {kind}" if str(kind).isalpha() else "shape of an unknown kind")
    points = ring_of(shape.get("points"))
    if kind != "polygon" and len(points) != 2:
        raise Unusable(f"{kind} that has not 2 points")
    if kind == "polygon":
        found = polygon(name, [points], hw)
    elif kind == "rectangle":
        if folder.boxes_as_masks:
            folder.tally.note("box: its rectangle counts as the mask", where)
        found = box(name, (*points[0], *points[1]), hw, folder.boxes_as_masks)
    else:
        radius = math.dist(points[0], points[1])
        found = polygon(name, [ellipse((points[0, 0], points[0, 1]), (radius, radius))], hw)
    folder.tally.took(f"{kind}s")
    return found
