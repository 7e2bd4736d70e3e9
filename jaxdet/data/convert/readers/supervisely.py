"""Supervisely: a JSON for each image, named as the image with ``.json`` behind it, and meta.json with the classes.

    meta.json  train/img/a.jpg  train/ann/a.jpg.json

A bitmap is a PNG, compressed by zlib, in base64, with the pixel of the image at which it begins ("origin", x and y).
"""

import base64
import io
import zlib
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.convert.folder import Folder
from jaxdet.data.convert.found import Contents, Found, Picture, Unusable, one_word, split_of
from jaxdet.data.convert.shapes import bitmap, box, polygon, ring_of
from jaxdet.data.validation.entries import check_sides

_LARGEST_PNG = 1 << 26  #: bytes of a bitmap's file, which a few of zlib's could expand to any number


def signs(folder: Folder) -> tuple[bool, str]:
    """Whether the folder has this layout, and by what one sees it."""
    found = next((name for name in folder.ending(".json") if _is_annotation(name)), None)
    if found is None or _meta(folder) is None:
        return False, "no meta.json with classes above folders ann with a json for each image"
    return True, f"{_meta(folder)} has classes, and {found} lies in a folder ann"


def read(folder: Folder) -> Contents:
    """Read the layout."""
    meta = _meta(folder)
    classes = folder.json(meta)["classes"] if meta else []
    names = [one_word(entry.get("title")) for entry in classes if isinstance(entry, dict)]
    return names, _pictures(folder, set(names))


def _is_annotation(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.lower().endswith(".json") and len(parts) > 1 and parts[-2] == "ann"


def _meta(folder: Folder) -> str | None:
    for name in folder.ending(".json"):
        if PurePosixPath(name).name == "meta.json":
            try:
                content = folder.json(name)
            except Unusable:
                continue
            if isinstance(content, dict) and isinstance(content.get("classes"), list):
                return name
    return None


def _pictures(folder: Folder, names: set[str]) -> Iterator[Picture]:
    described = set()
    for name in folder.ending(".json"):
        if not _is_annotation(name):
            continue
        with folder.tally.skipping(name):
            path = PurePosixPath(name)
            image = (path.parent.parent / "img" / path.name.removesuffix(".json")).as_posix()
            described.add(image)
            hw = folder.size(image)
            content = folder.json(name)
            objects = content.get("objects") if isinstance(content, dict) else None
            size = content.get("size") if isinstance(content, dict) else None
            if not isinstance(objects, list):
                raise Unusable("json of another kind")
            if isinstance(size, dict) and (size.get("height"), size.get("width")) != hw:
                raise Unusable("image of another size than annotated")
            found = []
            for place, entry in enumerate(objects):
                with folder.tally.skipping(f"{name}, object {place}"):
                    found.append(_object(folder, entry, names, hw, f"{name}, object {place}"))
            yield Picture(image, hw, tuple(found), split_of(image))
    for image in folder.images:
        if image not in described:
            folder.tally.skip("image without a json", image)


def _object(folder: Folder, entry: Any, names: set[str], hw: tuple[int, int], where: str) -> Found:
    if not isinstance(entry, dict):
        raise Unusable("object that is none")
    name, kind = one_word(entry.get("classTitle")), entry.get("geometryType")
    if name not in names:
        raise Unusable("class that the data set does not list")
    points = entry.get("points") if isinstance(entry.get("points"), dict) else {}
    assert isinstance(points, dict)
    match kind:
        case "bitmap":
            pixels, left, top = _bitmap(entry.get("bitmap"))
            found = bitmap(name, pixels, hw, left, top)
        case "polygon":
            holes = points.get("interior") or []
            if not isinstance(holes, list):
                raise Unusable("points that are no pairs of numbers")
            found = polygon(name, [ring_of(points.get("exterior"))], hw, [ring_of(hole) for hole in holes])
        case "rectangle":
            corners = ring_of(points.get("exterior"))
            if len(corners) != 2:
                raise Unusable("rectangle that has not 2 points")
            if folder.boxes_as_masks:
                folder.tally.note("box: its rectangle counts as the mask", where)
            found = box(name, (*corners[0], *corners[1]), hw, folder.boxes_as_masks)
        case _:
            raise Unusable(f"shape of the kind {kind}" if str(kind).isalpha() else "shape of an unknown kind")
    folder.tally.took(f"{kind}s")
    return found


def _bitmap(entry: Any) -> tuple[NDArray[np.bool_], int, int]:
    """The pixels of a bitmap, and the column and row at which they begin."""
    try:
        left, top = entry["origin"]
        inflate = zlib.decompressobj()
        encoded = inflate.decompress(base64.b64decode(entry["data"]), _LARGEST_PNG)
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
            check_sides(image.height, image.width)
            # Drawn pixels are opaque; without an alpha channel they are those that are not black.
            pixels = np.asarray(image.convert("RGBA").getchannel("A") if _has_alpha(image) else image.convert("L")) > 0
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        raise Unusable("bitmap that cannot be read") from error
    if type(left) is not int or type(top) is not int:
        raise Unusable("bitmap whose origin is no pixel")
    return pixels, left, top


def _has_alpha(image: Image.Image) -> bool:
    return "A" in image.mode or "transparency" in image.info
