"""Shapes of known areas in each tool's format, and what comes of them in COCO's."""

import base64
import io
import json
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from jaxdet.data.check import check
from jaxdet.data.check import main as check_main
from jaxdet.data.convert.command import main
from jaxdet.data.convert.from_coco import from_coco
from jaxdet.data.convert.outlines import one_ring, outlines
from jaxdet.data.convert.to_coco import Outcome, share_of, to_coco
from jaxdet.data.masks import decode_mask

HW = (40, 60)


def picture(path: Path, hw: tuple[int, int] = HW, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*hw, 3), 90, np.uint8)).save(path, **options)


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def rectangle(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    mask = np.zeros(HW, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def content(outcome: Outcome, split: str = "train") -> dict[str, Any]:
    return json.loads(outcome.annotations[split].read_text())


def masks(outcome: Outcome, split: str = "train") -> dict[str, np.ndarray]:
    """Masks by class name, of a set whose classes occur once each."""
    data = content(outcome, split)
    names = {entry["id"]: entry["name"] for entry in data["categories"]}
    found = {names[entry["category_id"]]: decode_mask(entry["segmentation"], HW) for entry in data["annotations"]}
    assert len(found) == len(data["annotations"])
    return found


# The same three objects in each format: a square of 10 x 10, one with a hole or in pieces, and one that is cut off.


def yolo(root: Path) -> None:
    picture(root / "images/train/a.png")
    write(root / "data.yaml", "\ufeffpath: /somewhere/else\ntrain: images/train\nnames:\n  0: square\n  1: 'cut'\n")
    square = [v / side for v, side in zip([5, 5, 15, 5, 15, 15, 5, 15], [60, 40] * 4, strict=True)]
    cut = [v / side for v, side in zip([50, 30, 70, 30, 70, 50, 50, 50], [60, 40] * 4, strict=True)]
    lines = [" ".join(map(str, values)) for values in ([0, *square], [1, *cut])]
    write(root / "labels/train/a.txt", ("\ufeff" + "\r\n".join(lines) + "\r\n").encode())


def voc(root: Path) -> None:
    picture(root / "JPEGImages/a.png")
    numbers = 1 * rectangle(5, 15, 5, 15) + 2 * rectangle(30, 40, 50, 60)
    classes = 9 * rectangle(5, 15, 5, 15) + 15 * rectangle(30, 40, 50, 60)
    numbers[4, 5:15] = classes[4, 5:15] = 255  # the border that VOC leaves undecided
    write(root / "SegmentationObject/a.png", png(numbers))
    write(root / "SegmentationClass/a.png", png(classes))
    write(root / "ImageSets/Segmentation/train.txt", "a\r\n")


def labelme(root: Path) -> None:
    picture(root / "a.png")
    shapes = [
        {"label": "square", "shape_type": "rectangle", "points": [[15, 5], [5, 15]]},
        {"label": "cut", "shape_type": "polygon", "points": [[50, 30], [70, 30], [70, 50], [50, 50]]},
        {"label": "two", "group_id": 3, "points": [[20, 2], [24, 2], [24, 6], [20, 6]]},
        {"label": "two", "group_id": 3, "points": [[30, 2], [34, 2], [34, 6], [30, 6]]},
        {"label": "two", "shape_type": "linestrip", "points": [[1, 1], [2, 2]]},
    ]
    write(root / "a.json", {"shapes": shapes, "imagePath": "a.png", "imageHeight": 40, "imageWidth": 60})


def cvat(root: Path) -> None:
    picture(root / "images/a.png")
    text = """<?xml version="1.0"?><annotations><meta><job><labels><label><name>square</name></label>
        <label><name>cut</name></label><label><name>hole</name></label></labels></job></meta>
        <image id="0" name="a.png" width="60" height="40" subset="Train">
        <box label="square" xtl="5" ytl="5" xbr="15" ybr="15"/>
        <polygon label="cut" points="50,30;70,30;70,50;50,50"/>
        <mask label="hole" rle="4,1,4" left="20" top="10" width="3" height="3"/>
        <polyline label="cut" points="1,1;2,2"/><tag label="cut"/><polygon label="other" points="1,1;9,1;9,9"/>
        </image></annotations>"""
    write(root / "annotations.xml", text)


def supervisely(root: Path) -> None:
    picture(root / "ds/img/a.png")
    write(root / "meta.json", {"classes": [{"title": name} for name in ("square", "cut", "hole")]})
    data = base64.b64encode(zlib.compress(png(np.full((20, 20), 255, np.uint8)))).decode()
    ring = {
        "exterior": [[20, 10], [30, 10], [30, 20], [20, 20]],
        "interior": [[[22, 12], [28, 12], [28, 18], [22, 18]]],
    }
    objects = [
        {"classTitle": "square", "geometryType": "rectangle", "points": {"exterior": [[5, 5], [15, 15]]}},
        {"classTitle": "cut", "geometryType": "bitmap", "bitmap": {"data": data, "origin": [50, 30]}},
        {"classTitle": "hole", "geometryType": "polygon", "points": ring},
        {"classTitle": "nobody", "geometryType": "polygon", "points": ring},
    ]
    write(root / "ds/ann/a.png.json", {"size": {"height": 40, "width": 60}, "objects": objects})


WRITERS: dict[str, Callable[[Path], None]] = {
    "yolo": yolo,
    "voc": voc,
    "labelme": labelme,
    "cvat": cvat,
    "supervisely": supervisely,
}
SQUARE, CUT = rectangle(5, 15, 5, 15), rectangle(30, 40, 50, 60)
TWO = rectangle(2, 6, 20, 24) + rectangle(2, 6, 30, 34)
HOLE = rectangle(10, 20, 20, 30) - rectangle(12, 18, 22, 28)
DOT = np.zeros(HW, np.uint8)
DOT[11, 21] = 1
#: What the masks are, drawn by hand.
EXPECTED = {
    "yolo": {"square": SQUARE, "cut": CUT},
    "voc": {"chair": SQUARE, "person": CUT},
    "labelme": {"square": SQUARE, "cut": CUT, "two": TWO},
    "cvat": {"square": SQUARE, "cut": CUT, "hole": DOT},
    "supervisely": {"square": SQUARE, "cut": CUT, "hole": HOLE},
}
SKIPPED = {
    "yolo": set[str](),
    "voc": set[str](),
    "labelme": {"shape of the kind linestrip"},
    "cvat": {"shape of the kind polyline", "class that the data set does not list"},
    "supervisely": {"class that the data set does not list"},
}


@pytest.mark.parametrize("layout", WRITERS)
def test_shapes_keep_their_pixels(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "set"
    WRITERS[layout](root)
    outcome = to_coco(root, tmp_path / "out", val_share=0)
    assert outcome.recognised.layout.name == layout
    assert set(outcome.recognised.others) == {*WRITERS, "masks"} - {layout}
    found = masks(outcome)
    assert set(found) == set(EXPECTED[layout])
    for name, mask in EXPECTED[layout].items():
        np.testing.assert_array_equal(found[name], mask, err_msg=name)
    assert set(outcome.tally.skipped) == SKIPPED[layout]
    areas = sorted(entry["area"] for entry in content(outcome)["annotations"])
    assert areas == sorted(int(mask.sum()) for mask in EXPECTED[layout].values())
    findings = check(str(outcome.annotations["train"]), str(outcome.images)).findings
    assert [finding for finding in findings if finding.severity != "note"] == []


@pytest.mark.parametrize("layout", WRITERS)
def test_check_names_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], layout: str) -> None:
    WRITERS[layout](tmp_path)
    assert check_main([str(tmp_path)]) == 1
    said = capsys.readouterr().out.replace("\n", "")
    assert f"it looks like {layout}" in said
    assert "jaxdet data convert" in said


@pytest.mark.parametrize("each", ["value", "file", "folder"])
def test_folders_of_masks(tmp_path: Path, each: str) -> None:
    first, second = rectangle(1, 9, 2, 12), rectangle(20, 30, 20, 40)
    root = tmp_path / "set"
    if each == "value":
        picture(root / "PNGImages/a.png")
        write(root / "PedMasks/a_mask.png", png(first + 2 * second))
    else:
        image, start = ("images/a.png", "masks/a") if each == "file" else ("a/images/a.png", "a/masks")
        picture(root / image)
        for number, mask in enumerate((first, second)):
            write(root / start / f"{number}.png", png(255 * mask))
    outcome = to_coco(root, tmp_path / "out", class_name="person", val_share=0)
    data = content(outcome)
    found = [decode_mask(entry["segmentation"], HW) for entry in data["annotations"]]
    np.testing.assert_array_equal(found, [first, second])
    assert [entry["bbox"] for entry in data["annotations"]] == [[2, 1, 10, 8], [20, 20, 20, 10]]
    assert data["categories"] == [{"id": 1, "name": "person"}]


def test_boxes_become_rectangles_or_stay_boxes(tmp_path: Path) -> None:
    picture(tmp_path / "set/JPEGImages/a.png")
    item = (
        "<object><name>dog</name><bndbox><xmin>6</xmin><ymin>6</ymin><xmax>15</xmax><ymax>15</ymax></bndbox></object>"
    )
    write(tmp_path / "set/Annotations/a.xml", f"<annotation>{item}</annotation>")
    outcome = to_coco(tmp_path / "set", tmp_path / "mask", val_share=0)
    np.testing.assert_array_equal(masks(outcome)["dog"], SQUARE)  # pixels 6 to 15, counted from 1
    assert len(outcome.tally.notes["box: its rectangle counts as the mask"]) == 1
    (entry,) = content(to_coco(tmp_path / "set", tmp_path / "box", val_share=0, boxes="box"))["annotations"]
    assert "segmentation" not in entry
    assert (entry["bbox"], entry["area"]) == ([5, 5, 10, 10], 100)


def test_ellipses_and_turned_boxes_have_their_areas(tmp_path: Path) -> None:
    picture(tmp_path / "set/images/a.png", (400, 400))
    shapes = """<ellipse label="e" cx="150" cy="150" rx="100" ry="50" rotation="30"/>
        <box label="b" xtl="250" ytl="250" xbr="350" ybr="350" rotation="45"/>"""
    image = f'<image id="0" name="a.png" width="400" height="400">{shapes}</image>'
    write(tmp_path / "set/a.xml", f"<annotations>{image}</annotations>")
    ellipse, box = content(to_coco(tmp_path / "set", tmp_path / "out", val_share=0))["annotations"]
    assert ellipse["area"] == pytest.approx(math.pi * 100 * 50, rel=0.01)
    assert box["area"] == pytest.approx(100 * 100, rel=0.01)
    assert box["bbox"][2] == pytest.approx(100 * math.sqrt(2), abs=1.5)
    # Turned clockwise, as one sees it: the long axis falls to the right.
    upper_right = decode_mask(ellipse["segmentation"], (400, 400))[:150, 150:].sum()
    assert upper_right < 0.9 * ellipse["area"] / 4


def test_circles_of_labelme(tmp_path: Path) -> None:
    picture(tmp_path / "set/a.png", (200, 200))
    shape = {"label": "disc", "shape_type": "circle", "points": [[100, 100], [100, 180]]}
    write(tmp_path / "set/a.json", b"\xef\xbb\xbf" + json.dumps({"shapes": [shape], "imagePath": "a.png"}).encode())
    (entry,) = content(to_coco(tmp_path / "set", tmp_path / "out", val_share=0))["annotations"]
    assert entry["area"] == pytest.approx(math.pi * 80**2, rel=0.01)


LINES = {
    "7 .1 .1 .2 .1 .2 .2": "class number without a name",
    "-1 .1 .1 .2 .1 .2 .2": "class number without a name",
    "0 .1 .1 .2 .1 .2": "line of a length that neither a polygon of 3 points nor a box has",
    "0 5 5 15 5 15 15": "coordinates that are no shares of the image's size",
    "0 1.1 .1 1.2 .1 1.2 .2": "shape outside the image",
    "0 .1 .1 .1 .1 .1 .1": "shape without a pixel inside the image",
    "0 .5 .5 0 .1": "box without an area inside the image",
    "0 nan .1 .2 .1 .2 .2": "line whose numbers are not finite, or whose class is no whole number",
    "0 a b c": "line that is not all numbers",
}


def test_unusable_lines_are_counted_with_their_places(tmp_path: Path) -> None:
    yolo(tmp_path / "set")
    label = tmp_path / "set/labels/train/a.txt"
    label.write_text("\n".join([*LINES, "0 .1 .1 .4 .1 .4 .4"]))
    write(tmp_path / "set/labels/train/lost.txt", "")
    outcome = to_coco(tmp_path / "set", tmp_path / "out")
    expected: dict[str, list[str]] = {"label file without an image": ["labels/train/lost.txt"]}
    for number, kind in enumerate(LINES.values(), 1):
        expected.setdefault(kind, []).append(f"labels/train/a.txt:{number}")
    assert outcome.tally.skipped == expected
    assert outcome.counts == {"train": (1, 1)}


def test_empty_and_absent_labels_are_images_without_objects(tmp_path: Path) -> None:
    yolo(tmp_path / "set")
    for name in ("empty", "absent"):
        picture(tmp_path / f"set/images/train/{name}.png")
    write(tmp_path / "set/labels/train/empty.txt", "")
    outcome = to_coco(tmp_path / "set", tmp_path / "out")
    assert outcome.counts == {"train": (3, 2)}
    assert list(outcome.tally.notes.values()) == [["images/train/absent.png"]]


def test_splits_of_the_data_set_and_by_hash(tmp_path: Path) -> None:
    yolo(tmp_path / "set")
    for number in range(40):
        picture(tmp_path / f"set/images/{'valid' if number % 2 else 'train'}/{number}.png", (4, 4))
    picture(tmp_path / "set/images/valid/a.png")  # two files of one name
    write(tmp_path / "set/labels/valid/a.txt", "1 .1 .1 .4 .1 .4 .4")
    own = to_coco(tmp_path / "set", tmp_path / "own")
    assert own.counts == {"train": (21, 2), "val": (21, 1)}
    drawn = to_coco(tmp_path / "set", tmp_path / "drawn", val_share=0.4)
    names = {split: {entry["file_name"] for entry in content(drawn, split)["images"]} for split in ("train", "val")}
    assert names["val"] == {name for name in names["train"] | names["val"] if share_of(name) < 0.4}
    assert 8 <= len(names["val"]) <= 25  # 42 draws of .4
    assert share_of("a.png") == 0x7F071235805F / 2**48  # the first digits that sha256sum gives


HOSTILE = {
    "XML with a document type, which is not read since it can define entities": (
        '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>'
        '<annotations><image name="a.png">&b;</image></annotations>'
    ),
    "XML nested too deep": "<annotations>" + "<image>" * 100 + "</image>" * 100 + "</annotations>",
    "file that is no XML": "<annotations><image>",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_xml_bombs_are_refused(tmp_path: Path, kind: str) -> None:
    cvat(tmp_path / "set")
    write(tmp_path / "set/b.xml", HOSTILE[kind])
    outcome = to_coco(tmp_path / "set", tmp_path / "out")
    assert outcome.tally.skipped[kind] == ["b.xml"]
    assert outcome.counts == {"train": (1, 3)}


@pytest.mark.parametrize("name", ["../../a.png", "/etc/passwd", "..\\..\\a.png", "a\x1b.png", "", 7])
def test_names_lead_to_no_place_outside(tmp_path: Path, name: object) -> None:
    labelme(tmp_path / "set")
    write(tmp_path / "set/b.json", {"shapes": [], "imagePath": name})
    skipped = to_coco(tmp_path / "set", tmp_path / "out").tally.skipped
    leads_out = "image name that leads out of the folder, or has control characters"
    kind = leads_out if isinstance(name, str) and name else "image name that is no text"
    assert skipped[kind] == ["b.json"]


def test_a_bitmap_that_expands_without_end_is_left_out(tmp_path: Path) -> None:
    supervisely(tmp_path / "set")
    bomb = base64.b64encode(zlib.compress(bytes(1 << 24))).decode()
    item = {"classTitle": "cut", "geometryType": "bitmap", "bitmap": {"data": bomb, "origin": [0, 0]}}
    write(tmp_path / "set/ds/ann/a.png.json", {"objects": [item]})
    outcome = to_coco(tmp_path / "set", tmp_path / "out")
    assert set(outcome.tally.skipped) == {"bitmap that cannot be read"}


def test_images_that_exif_turns_are_left_out_or_written_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    picture(tmp_path / "set/images/a.jpg", (60, 40), exif=exif)  # seen as 40 x 60
    write(tmp_path / "set/classes.txt", "square\n")
    write(
        tmp_path / "set/labels/a.txt", f"0 {5 / 60} {5 / 40} {15 / 60} {5 / 40} {15 / 60} {15 / 40} {5 / 60} {15 / 40}"
    )
    with pytest.raises(ValueError, match="--images copy writes it upright"):
        to_coco(tmp_path / "set", tmp_path / "out")
    outcome = to_coco(tmp_path / "set", tmp_path / "out", images="copy", val_share=0)
    np.testing.assert_array_equal(masks(outcome)["square"], SQUARE)
    assert check(str(outcome.annotations["train"]), str(outcome.images)).findings == []


def test_images_inside_of_a_json_are_written(tmp_path: Path) -> None:
    labelme(tmp_path / "set")
    pixels = np.random.default_rng(0).integers(0, 256, (*HW, 3), dtype=np.uint8)
    path = tmp_path / "set/a.json"
    write(path, json.loads(path.read_text()) | {"imageData": base64.b64encode(png(pixels)).decode()})
    (tmp_path / "set/a.png").unlink()
    outcome = to_coco(tmp_path / "set", tmp_path / "out", images="copy", val_share=0)
    with Image.open(outcome.images / "a.png") as image:
        np.testing.assert_array_equal(image, pixels)


def test_links_keep_folders_apart(tmp_path: Path) -> None:
    yolo(tmp_path / "set")
    picture(tmp_path / "set/images/val/a.png", (8, 9))
    outcome = to_coco(tmp_path / "set", tmp_path / "out", images="link")
    for split in ("train", "val"):
        found = check(str(outcome.annotations[split]), str(outcome.images)).findings
        assert {finding.severity for finding in found} <= {"note"}
        assert (outcome.images / f"images/{split}/a.png").is_symlink()


def test_one_folder_for_training_and_validation_is_for_training_and_said(tmp_path: Path) -> None:
    yolo(tmp_path / "set")
    write(tmp_path / "set/data.yaml", "train: images/train\nval: ./images/train/\nnames: [square, cut]\n")
    outcome = to_coco(tmp_path / "set", tmp_path / "out")
    assert list(outcome.annotations) == ["train"]
    (note,) = outcome.tally.notes
    assert note == "named for train and val: for train alone; --val-share .2 holds images out"
    assert outcome.tally.notes[note] == ["images/train/"]


def test_outlines_of_a_mask_give_its_pixels_again() -> None:
    rng = np.random.default_rng(1)
    for share in (0.2, 0.5, 0.8):  # with pieces, holes, and pixels that touch at corners
        mask = (rng.random(HW) < share).astype(np.uint8)
        parts, holes = outlines(mask)
        ring = one_ring([*parts, *holes])
        # By hand: a pixel is inside if a ray from its centre crosses the outline an odd number of times.
        (x, y), (there_x, there_y) = ring.T, np.roll(ring, -1, axis=0).T
        rows, columns = np.indices(HW) + 0.5
        spans = (y <= rows[..., None]) != (there_y <= rows[..., None])
        slope = np.divide(there_x - x, there_y - y, out=np.zeros_like(x), where=there_y != y)
        crossed = spans & (x + (rows[..., None] - y) * slope > columns[..., None])
        np.testing.assert_array_equal(crossed.sum(axis=-1) % 2, mask)


@pytest.mark.parametrize("to", ["yolo", "labelme"])
def test_there_and_back_keeps_masks(tmp_path: Path, scenes_folder: Path, to: str) -> None:
    before = json.loads((scenes_folder / "instances_train.json").read_text())
    before["annotations"][3]["iscrowd"] = 1
    path = tmp_path / "before.json"
    write(path, before)
    tally = from_coco(path, scenes_folder / "images", tmp_path / to, to)
    after = content(to_coco(tmp_path / to, tmp_path / "back", val_share=0))
    crowds = sum(entry["iscrowd"] for entry in before["annotations"])
    assert len(after["annotations"]) == len(before["annotations"]) - crowds
    assert [len(places) for places in tally.skipped.values()] == [crowds]
    images = {Path(entry["file_name"]).name: entry for entry in after["images"]}
    for image in before["images"]:
        hw, its = (image["height"], image["width"]), images[image["file_name"]]
        pairs = zip(
            [e for e in before["annotations"] if e["image_id"] == image["id"] and not e["iscrowd"]],
            [e for e in after["annotations"] if e["image_id"] == its["id"]],
            strict=True,
        )
        for old, new in pairs:
            first, second = decode_mask(old["segmentation"], hw), decode_mask(new["segmentation"], hw)
            np.testing.assert_array_equal(first, second)


def test_the_command_tells_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelme(tmp_path / "set")
    assert main([str(tmp_path / "set"), str(tmp_path / "out"), "--val-share", "0"]) == 0
    said = capsys.readouterr().out
    for text in (
        "taken for labelme",
        "not yolo: no data.yaml",
        "shape of the kind linestrip",
        "SHA-256",
        "jaxdet data check",
        f"data.train.images={tmp_path / 'set'} data.train.annotations={tmp_path / 'out'}/instances_train.json",
        "data.val=none",
    ):
        assert text in said
    assert main([str(tmp_path / "set"), str(tmp_path / "linked"), "--val-share", "0", "--images", "link"]) == 0
    assert f"jaxdet train --data {tmp_path / 'linked'} --minutes 60" in capsys.readouterr().out
    json_path = str(tmp_path / "out/instances_train.json")
    back = [json_path, str(tmp_path / "yolo"), "--to", "yolo", "--from-images", str(tmp_path / "set")]
    assert main(back) == 0
    assert (tmp_path / "yolo/labels/a.txt").read_text().count("\n") == 3
    # With a relative `path` Ultralytics' programs would look below the folder in which they are started.
    assert "path" not in yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "expected the folder of a data set, got nothing"),
        (["set"], "expected a data set as yolo, voc, labelme, cvat, supervisely, masks, got none of them"),
        (["set", "--format", "voc"], "which --format names, got no xml"),
        (["set", "--val-share", "2"], "--val-share: expected a share from 0 to 1, got 2.0"),
    ],
)
def test_wrong_commands_say_what_was_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "set/a.png")
    assert main([*arguments, "out"] if len(arguments) == 1 else [arguments[0], "out", *arguments[1:]]) == 1
    assert said in capsys.readouterr().out


def test_two_layouts_at_once_ask_for_a_choice(tmp_path: Path) -> None:
    yolo(tmp_path / "set")
    labelme(tmp_path / "set")
    with pytest.raises(ValueError, match=r"signs of several .*yolo.*labelme.*--format"):
        to_coco(tmp_path / "set", tmp_path / "out")
    assert to_coco(tmp_path / "set", tmp_path / "out", layout="labelme").recognised.layout.name == "labelme"


@pytest.mark.parametrize("layout", WRITERS)
def test_spoilt_files_are_counted_or_refused(tmp_path: Path, layout: str) -> None:
    """Whatever a file holds: a ValueError, or an outcome that training takes."""
    root = tmp_path / "set"
    WRITERS[layout](root)
    rng = np.random.default_rng(0)
    files = sorted(path for path in root.rglob("*") if path.suffix in (".txt", ".json", ".xml", ".yaml"))
    masks_ = sorted(root.glob("Segmentation*/*.png"))
    others = [b"null", b"[1]", b"{}", b'"', b"-1e999", b"\x00", b"\xff", b"<a/>", b"[[[[", b"99999999999999999999"]
    for number in range(60):
        path = (files + masks_)[number % len(files + masks_)]
        good = path.read_bytes()
        at, length = int(rng.integers(len(good))), int(rng.integers(12))
        path.write_bytes(good[:at] + others[int(rng.integers(len(others)))] + good[at + length :])
        try:
            outcome = to_coco(root, tmp_path / "out", layout=layout, val_share=0)
        except ValueError:
            continue
        finally:
            path.write_bytes(good)
        findings = check(str(outcome.annotations["train"]), str(outcome.images)).findings
        assert [finding for finding in findings if finding.severity == "error"] == []


@pytest.mark.parametrize("out", [".", "coco", "images/train"])
@pytest.mark.parametrize("images", ["leave", "link", "copy"])
def test_nothing_is_written_where_data_is_read(tmp_path: Path, out: str, images: Any) -> None:
    yolo(tmp_path)
    before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(ValueError, match="expected a folder apart from"):
        to_coco(tmp_path, tmp_path / out, images=images)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before


def test_the_way_back_replaces_no_image(tmp_path: Path, one_box: dict[str, Any], coco: Any) -> None:
    settings = coco.write(one_box)
    with pytest.raises(ValueError, match="expected a folder apart from"):
        from_coco(settings.annotations, settings.images, tmp_path, "yolo")  # whose images/ is that of the data
    write(tmp_path / "out/images/a.png", "another's")
    with pytest.raises(ValueError, match="expected nothing there or a link"):
        from_coco(settings.annotations, settings.images, tmp_path / "out", "yolo")
    assert (tmp_path / "out/images/a.png").read_text() == "another's"
    assert not (tmp_path / "images/a.png").is_symlink()


def test_the_way_back_counts_what_it_leaves_out(tmp_path: Path, one_box: dict[str, Any], coco: Any) -> None:
    good = one_box["annotations"][0]
    spoilt = [{"category_id": []}, {"image_id": [7]}, {"segmentation": None}, {"segmentation": [[1, 2, "x"]]}]
    one_box["annotations"] += [{**good, "id": 2 + place, **change} for place, change in enumerate(spoilt)]
    one_box["images"].append(one_box["images"][0] | {"id": 8, "file_name": "a.jpg"})
    settings = coco.write(one_box)
    tally = from_coco(settings.annotations, settings.images, tmp_path / "out", "yolo")
    assert tally.read == {"objects": 1, "images": 1}
    assert sorted(len(places) for places in tally.skipped.values()) == [1] * 5
    shares = np.array((tmp_path / "out/labels/a.txt").read_text().split(), float)
    # The square from (2, 3) to (12, 11) in an image of 20 x 30, of the second category by its id.
    expected = [1, *(np.array([[2, 3], [12, 3], [12, 11], [2, 11]]) / [30, 20]).ravel()]
    np.testing.assert_allclose(shares, expected, atol=1e-7)


@pytest.mark.parametrize("names", ["[no, yes]", "{1: a, 2: b}", "{0: {a: b}}"])
def test_names_that_yaml_does_not_take_for_texts(tmp_path: Path, names: str) -> None:
    yolo(tmp_path / "set")
    write(tmp_path / "set/data.yaml", f"names: {names}")
    with pytest.raises(ValueError, match=r"data.yaml, names: expected"):
        to_coco(tmp_path / "set", tmp_path / "out")
