"""Folders of instance masks: a PNG for each image whose values are the instances, or a PNG for each instance.

    images/a.jpg  masks/a.png             values 1, 2, ... are instances (Penn-Fudan: PNGImages/, PedMasks/a_mask.png)
    images/a.jpg  masks/a/1.png           a file for each, or masks/a_1.png
    a/images/a.jpg  a/masks/1.png         a folder for each image (Data Science Bowl 2018)

There is no class in them: all are of the one that ``--class-name`` gives.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.convert.folder import Folder
from jaxdet.data.convert.found import Contents, Found, Picture, Unusable, split_of
from jaxdet.data.convert.shapes import bitmap
from jaxdet.data.validation.entries import MAX_ANNOTATIONS, check_sides
from jaxdet.runtime.files import open_file

_IMAGES = ("images", "pngimages", "imgs", "img")  #: folders of images, in lower case
_MASKS = ("masks", "pedmasks", "mask", "instances", "instance_masks")  #: folders of masks
_FORMATS = ("PNG", "TIFF", "BMP")
_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  #: formats that lose nothing


def signs(folder: Folder) -> tuple[bool, str]:
    """Whether the folder has this layout, and by what one sees it."""
    masks = next((name for name in folder.images if _place(name, _MASKS) is not None), None)
    if masks is None or not any(_place(name, _IMAGES) is not None for name in folder.images):
        return False, f"no folder of images ({', '.join(_IMAGES)}) beside one of masks ({', '.join(_MASKS)})"
    return True, f"{masks} lies in a folder of masks"


def read(folder: Folder) -> Contents:
    """Read the layout."""
    return [folder.class_name], _pictures(folder)


def _place(name: str, wanted: tuple[str, ...]) -> int | None:
    """Which folder of a path has one of these names."""
    parts = PurePosixPath(name.lower()).parts[:-1]
    return next((place for place, part in enumerate(parts) if part in wanted), None)


def _key(name: str, wanted: tuple[str, ...]) -> str:
    """A path without its suffix and without the folder that says what it is, which image and mask have in common."""
    parts, place = PurePosixPath(name).with_suffix("").parts, _place(name, wanted)
    assert place is not None
    return "/".join((*parts[:place], *parts[place + 1 :]))


def _pictures(folder: Folder) -> Iterator[Picture]:
    masks = {
        _key(name, _MASKS): name
        for name in folder.images
        if _place(name, _MASKS) is not None and name.lower().endswith(_SUFFIXES)
    }
    images = [name for name in folder.images if _place(name, _IMAGES) is not None and _place(name, _MASKS) is None]
    keys = {_key(name, _IMAGES): name for name in images}
    owned = _owned(masks, set(keys))
    taken = {mask for found in owned.values() for mask in found}
    for key, image in keys.items():
        with folder.tally.skipping(image):
            if key not in owned:
                folder.tally.note("image without a mask: kept, without objects", image)
            hw = folder.size(image)
            yield Picture(image, hw, tuple(_objects(folder, owned.get(key, []), hw)), split_of(image))
    for name in masks.values():
        if name not in taken:
            folder.tally.skip("mask without an image", name)


def _owned(masks: dict[str, str], images: set[str]) -> dict[str, list[str]]:
    """The masks of each image, by the image's key."""
    owned: dict[str, list[str]] = {}
    within: dict[str, list[str]] = {}
    for image in images:
        within.setdefault(image.rpartition("/")[0], []).append(image)
    for key, mask in masks.items():
        above, _, _ = key.rpartition("/")
        if key in images:  # masks/a.png
            owner = key
        elif key.removesuffix("_mask") in images:
            owner = key.removesuffix("_mask")
        elif above in images:  # masks/a/1.png
            owner = above
        elif key.rpartition("_")[0] in images:  # masks/a_1.png
            owner = key.rpartition("_")[0]
        elif above and len(within.get(above, ())) == 1:  # a/masks/1.png
            owner = within[above][0]
        else:
            continue
        owned.setdefault(owner, []).append(mask)
    return owned


def _objects(folder: Folder, masks: list[str], hw: tuple[int, int]) -> Iterator[Found]:
    for name in masks:
        with folder.tally.skipping(name):
            values = _values(folder, name)
            if values.shape != hw:
                raise Unusable("mask of another size than its image")
            numbers = np.unique(values[values > 0]).tolist()
            if len(numbers) > MAX_ANNOTATIONS:  # a photograph, or a map of depths
                raise Unusable(f"mask with more than {MAX_ANNOTATIONS} instances")
            if len(masks) > 1 and len(numbers) > 1:
                raise Unusable("mask with several values, of an image with several masks")
            if not numbers:
                folder.tally.note("mask without a pixel", name)
            for number in numbers:
                folder.tally.took("masks")
                yield bitmap(folder.class_name, values == number, hw)


def _values(folder: Folder, name: str) -> NDArray[np.int64]:
    """The values of a mask, ``[H, W]``; of colours each is an instance."""
    try:
        with open_file(folder.root / name, "mask") as file, Image.open(file, formats=_FORMATS) as image:
            check_sides(image.height, image.width)
            if image.mode in ("1", "L", "P", "I", "I;16"):
                return np.asarray(image).astype(np.int64)
            red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int64), -1, 0)
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        raise Unusable("mask that cannot be read") from error
    return (red << 16) + (green << 8) + blue
