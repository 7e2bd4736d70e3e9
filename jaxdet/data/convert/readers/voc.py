"""Pascal VOC: an XML with boxes for each image and, for some, the pixels of each object.

    Annotations/a.xml  JPEGImages/a.jpg  SegmentationObject/a.png  SegmentationClass/a.png  ImageSets/*/train.txt

Boxes count pixels from 1, the last one included (VOC2012 development kit, section 8).  In SegmentationObject the value
of a pixel is the number of its object, 0 is the ground and 255 no object's; SegmentationClass has its class there.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.convert.folder import Folder, by_stem
from jaxdet.data.convert.found import Contents, Found, Picture, Unusable, one_word, split_named, split_of
from jaxdet.data.convert.shapes import bitmap, box
from jaxdet.data.images import load_map

#: The challenge's classes in the order of their numbers in SegmentationClass, from 1.
_CLASSES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
_UNKNOWN = 255
_SAME = 0.5  #: IoU from which a box of the XML is that of some pixels


def signs(folder: Folder) -> tuple[bool, str]:
    """Whether the folder has this layout, and by what one sees it."""
    if any("SegmentationObject" in PurePosixPath(name).parts[:-1] for name in folder.ending(".png")):
        return True, "there is a folder SegmentationObject"
    name = next(folder.ending(".xml"), None)
    if name is None:
        return False, "no xml, and no folder SegmentationObject"
    try:
        root = folder.xml(name)
    except Unusable as reason:
        return False, f"{name}: {reason}"
    found = root.tag == "annotation"
    return found, f"{name} has {'an' if found else 'no'} annotation of one image"


def read(folder: Folder) -> Contents:
    """Read the layout."""
    return None, _pictures(folder)


def _pictures(folder: Folder) -> Iterator[Picture]:
    splits = _splits(folder)
    masks = {part: _in_folder(folder, part) for part in ("SegmentationObject", "SegmentationClass")}
    maps = {path for found in masks.values() for path in found.values()}
    described = {PurePosixPath(name).stem: name for name in folder.ending(".xml")}
    with_masks, names = bool(masks["SegmentationObject"]), _CLASSES
    if any(PurePosixPath(name).name == "labelmap.txt" for name in folder.files):
        names = []  # classes of its own, whose colours are in that file: names are those of the XML
    for stem, images in by_stem([name for name in folder.images if name not in maps]).items():
        for image in images:
            with folder.tally.skipping(image):
                if len(images) > 1:
                    raise Unusable("image whose name several files have, so that its annotation is not known")
                if stem not in described and stem not in masks["SegmentationObject"]:
                    raise Unusable("image without an annotation")
                hw = folder.size(image)
                boxes = list(_boxes(folder, described[stem], hw, with_masks)) if stem in described else []
                if with_masks:
                    objects = list(_masked(folder, stem, image, masks, boxes, hw, names))
                else:
                    objects = [found for found, _ in boxes]
                yield Picture(image, hw, tuple(objects), splits.get(stem) or split_of(image))


def _in_folder(folder: Folder, part: str) -> dict[str, str]:
    pngs = (PurePosixPath(name) for name in folder.ending(".png"))
    return {path.stem: path.as_posix() for path in pngs if part in path.parts[:-1]}


def _splits(folder: Folder) -> dict[str, str]:
    """The split of an image by its name, from the lists of ``ImageSets``; those for masks come before all others."""
    found: dict[str, str] = {}
    lists = [name for name in folder.ending(".txt") if "ImageSets" in PurePosixPath(name).parts]
    for name in sorted(lists, key=lambda path: "Segmentation" not in path):
        split = split_named(PurePosixPath(name).stem)
        if split:
            for line in folder.text(name).splitlines():
                if line.strip():
                    found.setdefault(line.split()[0], split)
    return found


def _boxes(folder: Folder, name: str, hw: tuple[int, int], with_masks: bool) -> Iterator[tuple[Found, str]]:
    """The objects of an XML as boxes, with their places; in a data set with masks they only say where these are."""
    root = folder.xml(name)
    size = [root.findtext(f"size/{side}") for side in ("height", "width")]
    if None not in size and size != [str(side) for side in hw]:
        raise Unusable("image of another size than annotated")
    for place, element in enumerate(root.iterfind("object")):
        where = f"{name}, object {place}"
        with folder.tally.skipping(where):
            found = box(
                one_word(element.findtext("name")), _corners(element), hw, folder.boxes_as_masks and not with_masks
            )
            if found.segmentation:
                folder.tally.note("box: its rectangle counts as the mask", where)
            if element.findtext("difficult", "0").strip() == "1":
                folder.tally.note("object that is marked as difficult: kept like any other", where)
            if not with_masks:
                folder.tally.took("boxes")
            yield found, where


def _corners(element: Element) -> tuple[float, float, float, float]:
    try:
        left, top, right, bottom = (
            float(element.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")
        )
    except ValueError as error:
        raise Unusable("coordinates that are no numbers") from error
    if right < left or bottom < top:
        raise Unusable("box whose corners are exchanged")
    return left - 1, top - 1, right, bottom


def _masked(
    folder: Folder,
    stem: str,
    image: str,
    masks: dict[str, dict[str, str]],
    boxes: list[tuple[Found, str]],
    hw: tuple[int, int],
    names: list[str],
) -> Iterator[Found]:
    """The objects of an image with pixels; boxes give names where there are no classes, and are left out otherwise."""
    if stem not in masks["SegmentationObject"]:
        raise Unusable("image with boxes alone, in a data set with masks")
    instances = _map(folder, masks["SegmentationObject"][stem], hw)
    classes = _map(folder, masks["SegmentationClass"][stem], hw) if stem in masks["SegmentationClass"] else None
    left = dict(enumerate(boxes))
    for number in np.unique(instances[(instances != 0) & (instances != _UNKNOWN)]).tolist():
        with folder.tally.skipping(f"{image}, object {number}"):
            mask = instances == number
            pixels = bitmap("", mask, hw)
            place = max(left, key=lambda key: _iou(left[key][0].bbox, pixels.bbox), default=None)
            matched = place is not None and _iou(left[place][0].bbox, pixels.bbox) >= _SAME
            name = left.pop(place)[0].name if matched and place is not None else None
            if classes is not None and names:
                value = int(np.bincount(classes[mask]).argmax())
                if not 1 <= value <= len(names):
                    raise Unusable("object whose class number has no name")
                name = names[value - 1]
            if name is None:
                raise Unusable("object without a class: no class map, and no box of the xml around it")
            folder.tally.took("masks")
            yield Found(name, pixels.segmentation, pixels.bbox, pixels.area)
    for found, where in left.values():
        folder.tally.skip(f"box without pixels ({found.name})", where)


def _map(folder: Folder, name: str, hw: tuple[int, int]) -> NDArray[np.uint8]:
    try:
        values = load_map(folder.root / name)
    except ValueError as error:
        raise Unusable("mask that is no image of one channel with 8 bits") from error
    if values.shape != hw:
        raise Unusable("mask of another size than its image")
    return values


def _iou(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
