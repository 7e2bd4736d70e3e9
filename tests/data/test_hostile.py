"""Data sets made to do harm: each is refused by a ValueError that names the file, at once and within bounds."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from jaxdet.data import load_image, open_source
from jaxdet.data.check import check, main
from jaxdet.data.images import decode_image
from jaxdet.data.masks import decode_mask, encode_mask, read_counts
from jaxdet.data.validation.entries import MAX_ANNOTATIONS, MAX_OUTLINE, MAX_PIXELS
from jaxdet.evaluation import score

HW = (20, 30)


def refused(settings, reason):
    """The data set is refused, and the check tells why, too."""
    with pytest.raises(ValueError, match=reason) as caught:
        open_source(settings)[0]
    assert len(str(caught.value)) < 1000
    findings = check(settings.annotations, settings.images).findings
    assert any(finding.severity == "error" for finding in findings)


def png(width: int, height: int) -> bytes:
    """The beginning of a png that says so, with the data of a few pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize(("sides", "reason"), [
    ((20_000, 20_000), r"at most 134217728 pixels, got 20000 x 20000; set .* JAXDET_MAX_PIXELS=400000000"),
    ((70_000, 10), "sides of 1 to 65535 pixels, got height 10, width 70000"),
    ((2**31 - 1, 2**31 - 1), "got"),
])  # fmt: skip
def test_decompression_bombs(coco, one_box, sides, reason):
    (coco.folder / "images" / "a.png").write_bytes(png(*sides))
    one_box["images"][0] |= {"width": sides[0], "height": sides[1]}
    refused(coco.write(one_box), reason)
    with pytest.raises(ValueError, match=r"a\.png: expected a whole image file"):
        load_image(coco.folder / "images" / "a.png")
    del one_box["images"][0]["height"]  # so that the file is asked
    refused(coco.write(one_box), r"a\.png")


def test_limits_are_raised_by_the_environment():
    lines = "from jaxdet.data.validation.entries import MAX_ANNOTATIONS, MAX_PIXELS; print(MAX_PIXELS, MAX_ANNOTATIONS)"

    def told(**environment):
        command = [sys.executable, "-c", lines]
        return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)

    assert told().stdout.split() == [str(MAX_PIXELS), str(MAX_ANNOTATIONS)]
    raised = told(JAXDET_MAX_PIXELS="400000000", JAXDET_MAX_ANNOTATIONS="1000000")
    assert raised.stdout.split() == ["400000000", "1000000"]
    assert "JAXDET_MAX_PIXELS: expected a whole number from 1, got 'all'" in told(JAXDET_MAX_PIXELS="all").stderr


def test_formats_that_run_other_programs_are_not_read():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\n(touched) (w) file\n"
    with pytest.raises(ValueError, match=r"x\.eps: expected a whole image file, got none of JPEG, PNG"):
        decode_image(eps, "x.eps")


def test_deep_grey_of_no_numbers():
    buffer = io.BytesIO()
    values = np.array([[np.nan, np.inf, -np.inf, 3.0]], np.float32)
    Image.fromarray(values).save(buffer, "TIFF")
    with pytest.raises(ValueError, match="x: expected a whole image file, got floating-point pixels"):
        decode_image(buffer.getvalue(), "x")


@pytest.mark.parametrize("name", [
    "../secret.png", "x/../../secret.png", "/etc/passwd", "", ".", "a\x00.png", "\ud800.png", "\x1b[2J.png", 3, None, []
])  # fmt: skip
def test_file_names_that_leave_the_folder_or_are_none(coco, one_box, name):
    coco.image("../secret.png")
    one_box["images"][0]["file_name"] = name
    refused(coco.write(one_box), r"instances\.json: images\[0\] \(id 7\): file_name: expected")


def test_links_are_followed(coco, one_box):
    coco.image("../elsewhere.png")
    path = coco.folder / "images" / "a.png"
    path.unlink()
    path.symlink_to("../elsewhere.png")
    assert open_source(coco.write(one_box))[0].image.shape == (*HW, 3)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/zero", path)])
def test_what_is_no_regular_file(coco, one_box, make):
    settings = coco.write(one_box)
    path = coco.folder / "images" / "a.png"
    path.unlink()
    make(path)
    refused(settings, r"a\.png: expected a regular file")
    os.unlink(settings.annotations)
    make(settings.annotations)
    refused(settings, r"instances\.json: expected a regular file")
    assert main([str(coco.folder)]) == 1


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000 + "1" + "}" * 100_000])
def test_deep_nesting(coco, text):
    refused(coco.write(text), r"instances\.json: expected JSON")


def test_nesting_that_json_reads_and_does_not_write(coco, one_box):
    for depth in (50, 900, 950, 970, 980, 990, 1000):
        one_box["annotations"][0]["segmentation"] = "@"
        settings = coco.write(json.dumps(one_box).replace('"@"', "[" * depth + "]" * depth))
        check(settings.annotations, settings.images)
        try:
            annotations = open_source(settings)[0].annotations
        except ValueError as error:
            assert "nested too deep" in str(error)  # noqa: PT017 - depends on how deep the caller is
            continue
        with pytest.raises(ValueError, match="segmentation: expected a polygon"):
            decode_mask(annotations[0].segmentation, HW)


@pytest.mark.parametrize(("key", "value"), [
    ("id", True), ("id", 2**63), ("id", "1"), ("id", 1.5), ("id", None), ("id", [1]), ("image_id", [7]),
    ("category_id", {}), ("bbox", [0, 0, 1e10, 1]), ("bbox", [0, 0, 10**400, 1]), ("bbox", [True, 0, 9, 9]),
    ("bbox", "0099"), ("bbox", None), ("area", float("nan")), ("area", float("inf")), ("area", 10**400),
    ("area", "80"), ("iscrowd", "no"), ("iscrowd", 2), ("ignore", [0]),
])  # fmt: skip
def test_values_that_are_none(coco, one_box, key, value):
    one_box["annotations"][0][key] = value
    refused(coco.write(one_box), rf"instances\.json: annotations\[0\] \(id .*\): {key}: expected")


@pytest.mark.parametrize(("key", "value"), [
    ("id", True), ("id", float("nan")), ("height", 0), ("height", -20), ("height", "20"), ("width", 1e300),
    ("width", 20.5), ("width", True), ("width", [30]),
])  # fmt: skip
def test_images_without_a_size(coco, one_box, key, value):
    one_box["images"][0][key] = value
    refused(coco.write(one_box), r"instances\.json: images\[0\]")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("entry", [None, 3, "x", [], True])
def test_entries_that_are_no_objects(coco, one_box, key, entry):
    one_box[key].append(entry)
    refused(coco.write(one_box), rf"instances\.json: {key}\[\d\]: expected an object, got")


def test_whole_numbers_may_be_written_as_floats(coco, one_box):
    one_box["images"][0] |= {"id": 7.0, "height": 20.0}
    record = open_source(coco.write(one_box))[0]
    assert (record.image_id, len(record.annotations)) == (7, 1)


def test_a_million_annotations_on_one_image(coco, one_box, monkeypatch):
    monkeypatch.setattr("jaxdet.data.sources.coco.MAX_ANNOTATIONS", 3)
    monkeypatch.setattr("jaxdet.data.validation.findings.MAX_ANNOTATIONS", 3)
    first = one_box["annotations"][0]
    one_box["annotations"] += [{**first, "id": 2 + number} for number in range(2)]
    assert len(open_source(coco.write(one_box))[0].annotations) == 3
    one_box["annotations"].append({**first, "id": 9})
    refused(coco.write(one_box), r"at most 3 annotations of an image, got 4 of a\.png; .*JAXDET_MAX_ANNOTATIONS=4")


def test_thousands_of_categories(coco, one_box, monkeypatch):
    """Each takes memory in evaluation, and 30 bytes of json."""
    settings = coco.write(one_box)
    truth = open_source(settings).ground_truth()
    monkeypatch.setattr("jaxdet.data.validation.entries._MAX_CATEGORIES", 1)
    refused(settings, "at most 1 categories, got 2; .*JAXDET_MAX_CATEGORIES=2")
    with pytest.raises(ValueError, match="ground truth: expected at most 1 categories"):
        score(truth, [])


@pytest.mark.parametrize(("polygon", "reason"), [
    ([0, 0, 1e9, 9, 5, 5], "of numbers up to 16777216"),
    ([0, 0, 10**400, 9, 5, 5], "of numbers up to"),
    ([0, 0, float("nan"), 9, 5, 5], "of numbers up to"),
    ([True, 0, 9, 9, 5, 5], "of numbers up to"),
    (["0", "0", "9", "9", "5", "5"], "of numbers up to"),
    ([0, 0, 9, 9, 5], "of numbers up to"),
    ([0, 0, 1e4, 9] * 100, f"outlines of at most {MAX_OUTLINE} pixels together, got 2000000"),
])  # fmt: skip
def test_polygons_that_would_take_gigabytes(polygon, reason):
    with pytest.raises(ValueError, match=reason):
        encode_mask([polygon], HW)


def test_thousands_of_pieces_are_merged_as_at_once():
    corners = np.random.default_rng(0).integers(0, 90, (300, 2))
    pieces = [[x, y, x + 4, y, x + 4, y + 5] for x, y in corners.tolist()]
    expected = coco_mask.merge(coco_mask.frPyObjects([[float(v) for v in piece] for piece in pieces], 90, 90))
    assert encode_mask(pieces, (90, 90)) == expected


def test_numbers_longer_than_pycocotools_reads():
    """-1 in seven characters: C shifts it out of its 32 bits, and would take another number."""
    assert read_counts(b"oooooO") == [-1]
    with pytest.raises(ValueError, match="compressed run-length string"):
        read_counts(b"ooooooO")


@pytest.mark.parametrize("segmentation", [
    {"size": [20, 30], "counts": [2**70, 600 - 2**70]}, {"size": [20, 30], "counts": [float("nan")]},
    {"size": [20, 30], "counts": "\u20ac"}, {"size": [20, 30], "counts": "\ud800"},
    {"size": [20, 30], "counts": [[600]]}, {"size": [2**40, 2**40], "counts": [2**80]}, {"size": 600, "counts": [600]},
    {"counts": [600]}, {}, "x", 3, True,
])  # fmt: skip
def test_run_lengths_that_are_none(segmentation):
    with pytest.raises(ValueError, match=r"segmentation: expected|surrogates not allowed"):
        decode_mask(segmentation, HW)


def test_what_a_terminal_would_obey_is_written_out(coco, one_box, capsys):
    one_box["categories"][0]["name"] = "\x1b[2Jdog"
    coco.image("\x1b]0;title.png")
    coco.write(one_box)
    assert main([str(coco.folder)]) == 1
    text = capsys.readouterr().out
    assert "\x1b]" not in text
    assert "\x1b[2J" not in text
    assert "x1b]0;title.png" in "".join(text.split())
