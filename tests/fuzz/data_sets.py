"""Bad COCO folders: a good one, and the ways to spoil it."""

import functools
import io
import json
import math
import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from tests.fuzz.mutations import as_json, spoilt_bytes, spoilt_tree
from tests.fuzz.worker import Files

HW = (20, 30)
_FORMATS = {"a.png": "PNG", "b.jpg": "JPEG", "c.webp": "WEBP", "d.tif": "TIFF", "e.gif": "GIF", "f.bmp": "BMP"}
_FORMATS |= {"g.jp2": "JPEG2000", "h.ppm": "PPM"}
_RUNS = coco_mask.frPyObjects({"size": list(HW), "counts": [50, 10, 540]}, *HW)["counts"].decode()
_SQUARE = [[2, 3, 12, 3, 12, 11, 2, 11]]


@functools.cache
def _encoded(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def _truth(names: tuple[str, ...] = ("a.png", "b.jpg")) -> dict[str, Any]:
    images = [{"id": 7 + place, "file_name": name, "height": HW[0], "width": HW[1]} for place, name in enumerate(names)]
    common = {"category_id": 3, "bbox": [2, 3, 10, 8], "area": 80, "iscrowd": 0}
    annotations = [
        {"id": 1, "image_id": 7, **common, "segmentation": _SQUARE},
        {"id": 2, "image_id": 7, **common, "segmentation": {"size": list(HW), "counts": [50, 10, 540]}},
        {"id": 3, "image_id": 7 + len(names) - 1, **common, "segmentation": {"size": list(HW), "counts": _RUNS}},
    ]
    annotations.append({**annotations[1], "id": 4, "iscrowd": 1})
    categories = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def folder(truth: Any, files: Files | None = None) -> Files:
    """A data set; ``truth`` is a tree, or the bytes of the json."""
    images: Files = {f"images/{name}": _encoded(_FORMATS[name]) for name in ("a.png", "b.jpg")}
    text = truth if isinstance(truth, bytes) else as_json(truth)
    return images | (files or {}) | {"instances.json": text}


def valid() -> Files:
    """One without fault."""
    return folder(_truth())


def _with(**changes: Any) -> dict[str, Any]:
    """The json with keys of its first annotation changed."""
    truth = _truth()
    truth["annotations"][0].update(changes)
    return truth


_NUMBERS = st.one_of(
    st.floats(),
    st.integers(-(2**70), 2**70),
    st.integers(-40, 70),
    st.floats(-40, 70),
    st.sampled_from([1e7, -1e7, 2**24, 2**31 - 1, -(2**31), 4e8, 1e9, 1e300]),
)


def _numbers() -> st.SearchStrategy[Files]:
    return spoilt_tree(_truth(), st.one_of(_NUMBERS, st.booleans(), st.sampled_from(["3", "@digits", "@large"]))).map(
        folder
    )


#: Values of a json as tools write them, and wrong ones.  "absent" stands for no such key.
_VALUES: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "id": (
        (0, -1, 1, 3, 4.0, 2**31, -(2**40), 2**53 + 1, 2**63 - 1, -(2**63)),
        (2**63, 1.5, "3", True, None, "@large"),
    ),
    "flag": ((0, 0, 0, 1, 1.0, 0.0, True, False, None, "absent"), (2, -1, "1", [], "@large")),
    "area": ((80, 80.5, 0, -1, 1e-9, 1e10, 1e11, 1e300, None, "absent"), ("80", True, [], "@large")),
    "side": (("right", "absent", None, "as float"), (21, 0, -20, 1e9, "20", True)),
    "mask": ((None, [], {}, [[]], [[], []], "absent"), ([[None]], "", {"size": [20, 30]}, [[1, 2]], 0)),
}


@st.composite
def _values(draw: st.DrawFn) -> Files:
    """Ids, sizes, areas, flags and masks that are not there, a few of them wrong; the boxes are good."""
    wrong = draw(st.sampled_from([0, 0, 1, 2]))

    def value(name: str) -> Any:
        good, bad = _VALUES[name]
        return draw(st.sampled_from(bad if draw(st.integers(1, 12)) <= wrong else good))

    def ids(count: int) -> list[Any]:
        return draw(st.permutations(_VALUES["id"][0]))[:count] if draw(st.integers(1, 6)) > wrong else [
            value("id") for _ in range(count)
        ]  # fmt: skip

    truth = _truth()
    for table, key in (("images", "image_id"), ("categories", "category_id")):
        new = dict(zip([entry["id"] for entry in truth[table]], ids(2), strict=True))
        for entry in truth[table]:
            entry["id"] = new[entry["id"]]
        for entry in truth["annotations"]:
            entry[key] = new[entry[key]]
    if draw(st.integers(1, 12)) <= wrong:  # one that nobody lists
        truth["annotations"][2][draw(st.sampled_from(["image_id", "category_id"]))] = 5
    without_masks = draw(st.booleans())
    for entry, name in zip(truth["annotations"], ids(4), strict=True):
        entry |= {"id": name, "iscrowd": value("flag"), "ignore": value("flag"), "area": value("area")}
        if without_masks or draw(st.integers(1, 12)) <= wrong:
            entry["segmentation"] = value("mask")
    for image in truth["images"]:
        for side, right in zip(("height", "width"), HW, strict=True):
            said = value("side")
            image[side] = right if said == "right" else float(right) if said == "as float" else said
    for entry in truth["annotations"] + truth["images"]:
        for key in [key for key, said in entry.items() if said == "absent"]:
            del entry[key]
    return folder(truth)


@st.composite
def _masks(draw: st.DrawFn) -> Files:
    points = st.lists(_NUMBERS, max_size=14)
    runs = st.one_of(
        st.lists(st.one_of(st.integers(-3, 620), _NUMBERS), max_size=12),
        st.text(st.characters(min_codepoint=40, max_codepoint=120), max_size=30),
        st.text(st.sampled_from("0?@_`oOPno"), max_size=30),
        st.binary(max_size=12).map(lambda content: content.decode("latin1")),
        st.none(),
    )
    sizes = st.one_of(st.just(list(HW)), st.lists(_NUMBERS, max_size=3), _NUMBERS)
    polygons = st.lists(st.one_of(points, _NUMBERS, st.just(_SQUARE[0])), max_size=4)
    lengths = st.fixed_dictionaries({}, optional={"size": sizes, "counts": runs})
    return folder(_with(segmentation=draw(st.one_of(polygons, lengths)), iscrowd=draw(st.sampled_from([0, 0, 1]))))


_NAMES = st.one_of(
    st.text(max_size=12),
    st.lists(st.sampled_from(["..", ".", "", "images", "a.png", "b.jpg", "~", "x", "\\"]), max_size=5).map("/".join),
    st.sampled_from(
        ["/", "/etc/passwd", "/dev/zero", "\x00", "a.png\x00.jpg", "\ud800.png", "\x1b]0;a.png", "x" * 300]
    ),
    st.sampled_from(["instances.json", "../instances.json", "../given/images/a.png", "a.png/", "./a.png", "//a.png"]),
)


@st.composite
def _names(draw: st.DrawFn) -> Files:
    truth = _truth()
    truth["images"][0]["file_name"] = draw(_NAMES)
    if draw(st.booleans()):
        del truth["images"][0]["width"]  # so that the file is asked
    truth["categories"][0]["name"] = draw(st.one_of(st.just("cat"), st.text(max_size=5), st.sampled_from(["\x1b[2J"])))
    return folder(truth)


@st.composite
def _odd_files(draw: st.DrawFn) -> Files:
    """Pipes, links and folders in the place of files."""
    things = st.one_of(
        st.none(),
        st.sampled_from(["/dev/zero", "/etc/passwd", "a.png", "b.jpg", "nowhere", "..", "/proc/self/mem", "../images"]),
        st.sampled_from([b"", b"\x00", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n", _encoded("GIF")]),
        st.binary(max_size=30),
    )
    where = draw(st.sampled_from(["images/a.png", "images/b.jpg", "images/b.jpg/x", "instances.json", "more.json"]))
    files = valid()
    files.pop(where, None)
    if where.endswith("/x"):
        del files["images/b.jpg"]
    return files | {where: draw(things)}


@st.composite
def _image_bytes(draw: st.DrawFn) -> Files:
    name = draw(st.sampled_from(sorted(_FORMATS)))
    return folder(_truth((name,)), {f"images/{name}": draw(spoilt_bytes(_encoded(_FORMATS[name])))})


@st.composite
def _png_chunks(draw: st.DrawFn) -> Files:
    """A png whose check sums are right: sizes, colours and compressed data of all kinds."""
    sides = st.one_of(st.sampled_from([0, 1, 20, 30, 2048, 4096, 65535, 65536, 2**31 - 1]), st.integers(0, 2**32 - 1))
    width, height = draw(sides), draw(sides)
    depth, colour = draw(st.sampled_from([1, 2, 4, 8, 16, 3])), draw(st.sampled_from([0, 2, 3, 4, 6, 7]))
    rows = draw(st.sampled_from([0, 100, 1 << 16, 1 << 22])) * b"\x00"
    more = draw(st.sampled_from([b"IDAT", b"zTXt", b"iCCP", b"eXIf", b"tRNS", b"PLTE", b"acTL", b"gAMA"]))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, draw(st.sampled_from([0, 1, 2])))),
        (more, draw(st.one_of(st.binary(max_size=40), st.just(b"x\x00\x00" + zlib.compress(rows))))),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    content = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    truth = _truth(("a.png",))
    if draw(st.booleans()):
        truth["images"][0] |= {"width": width, "height": height}
    else:
        del truth["images"][0]["width"]
    return folder(truth, {"images/a.png": content})


def _circle(points: int, radius: float) -> list[float]:
    turns = [2 * math.pi * place / points for place in range(points)]
    return [value for turn in turns for value in (15 + radius * math.cos(turn), 10 + radius * math.sin(turn))]


@st.composite
def _many(draw: st.DrawFn) -> Files:
    """A lot of everything."""
    truth = _truth()
    count = draw(st.integers(1, 3).flatmap(lambda digits: st.integers(10**digits, 10 ** (digits + 1))))
    what = draw(st.sampled_from(["annotations", "images", "categories", "polygons", "points", "zigzag", "runs"]))
    first = truth["annotations"][0]
    if what in ("annotations", "images", "categories"):
        key = draw(st.sampled_from(["id", "name", "file_name"]))
        truth[what] += [{**truth[what][0], key: place + 100} for place in range(count)]
    elif what == "polygons":
        first["segmentation"] = [[x := place % 28, 3, x + 1, 3, x + 1, 5] for place in range(count)]
    elif what == "runs":
        first["segmentation"] = {"size": list(HW), "counts": [0, 0] * count + [600]}
    else:
        far = draw(st.sampled_from([9.0, 1e3, 1e6])) if what == "zigzag" else 9.0
        first["segmentation"] = [[*(0, 0, far, 9) * count]] if what == "zigzag" else [_circle(count, far)]
    return folder(truth)


def results(text: Any) -> Files:
    """A results json beside the ground truth that it is to be scored by."""
    return {"instances.json": as_json(_truth()), "results.json": text if isinstance(text, bytes) else as_json(text)}


_RESULTS = [
    {"image_id": 7, "category_id": 3, "bbox": [2, 3, 10, 8], "score": 0.9, "segmentation": _SQUARE},
    {"image_id": 8, "category_id": 90, "bbox": [2, 3, 10, 8], "score": 0.5, "mask_score": 0.4}
    | {"segmentation": {"size": list(HW), "counts": _RUNS}},
]


def valid_results() -> Files:
    """One without fault."""
    return results(_RESULTS)


KINDS: dict[str, st.SearchStrategy[Files]] = {
    "json: structure": spoilt_tree(_truth()).map(folder),
    "json: numbers": _numbers(),
    "json: values": _values(),
    "json: bytes": spoilt_bytes(json.dumps(_truth()).encode()).map(folder),
    "masks": _masks(),
    "names": _names(),
    "links and pipes": _odd_files(),
    "image: bytes": _image_bytes(),
    "image: png chunks": _png_chunks(),
    "many": _many(),
}
RESULT_KINDS: dict[str, st.SearchStrategy[Files]] = {
    "results: structure": spoilt_tree(_RESULTS).map(results),
    "results: bytes": spoilt_bytes(json.dumps(_RESULTS).encode()).map(results),
}
