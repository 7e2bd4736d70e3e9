"""The page: one HTML file with what its lists need, and beside it, for each image, a picture and its objects.

The page opens from a disk, where a browser may load pictures and scripts but no data.  So the objects of an image are a
script of one call, ``show(NUMBER, {...})``, which the page loads when the image is looked at.
"""

import base64
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jaxdet.data.records import Source
from jaxdet.evaluation.results import Result, Truth
from jaxdet.evaluation.score import Prepared
from jaxdet.report.judge import Judged
from jaxdet.runtime.files import write_text

SIDE = 640  #: longest side of a picture, in pixels
_QUALITY = 78  #: of JPEG
_THREADS = 2


@dataclass(frozen=True)
class Run:
    """The detections of one run and what they are, for boxes and perhaps for masks."""

    name: str
    results: Sequence[Result]
    judged: Mapping[str, Judged]  #: ``bbox``, ``segm``


def write_page(
    out: Path,
    truth: Truth,
    prepared: Prepared,
    runs: Sequence[Run],
    reports: Sequence[Mapping[str, Any]],
    source: Source | None,
) -> None:
    """Write ``index.html`` and ``images/``.

    Args:
        out: the folder.
        truth: the ground truth as it came, for the names of images.
        prepared: the same, for pycocotools.
        runs: one or two.
        reports: the numbers of each.
        source: the images; None: no pictures.
    """
    (out / "images").mkdir(parents=True, exist_ok=True)
    numbers = prepared.images
    names: dict[int, str] = {numbers[each["id"]]: str(each.get("file_name", each["id"])) for each in truth["images"]}
    sizes = {each["id"]: [each["width"], each["height"]] for each in prepared.json["images"]}
    rows = [{"name": names[number], "size": sizes[number]} for number in sorted(sizes)]
    content = {
        "classes": prepared.names,
        "images": rows,
        "pictures": source is not None,
        "reports": list(reports),
        "truth": _truth_columns(next(iter(runs[0].judged.values())), len(rows)),
        "runs": [{kind: _columns(judged, len(rows)) for kind, judged in run.judged.items()} for run in runs],
    }
    folder = files("jaxdet.report") / "assets"
    text = (folder / "page.html").read_text(encoding="utf-8")
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.css", "plots.js", "page.js")}
    parts["data"] = embedded(content)
    for name, part in parts.items():
        text = text.replace(f"<!-- {name} -->", part)
    _write_objects(out / "images", prepared, runs, len(rows))
    if source is not None:
        _write_pictures(out / "images", source, numbers)
    write_text(out / "index.html", text)  # last: a page that is there is whole


def embedded(content: Any) -> str:
    """JSON for the inside of a script element, which a class called ``</script>`` must not end."""
    return json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")


def percent(scores: NDArray[np.float64]) -> NDArray[np.int8]:
    """Scores as whole hundredths, rounded down, so that the page's threshold of s lets through s/100 and above."""
    return np.floor(scores * 100 + 1e-9).astype(np.int8)


def _truth_columns(judged: Judged, images: int) -> dict[str, str]:
    return {
        "first": _packed(np.searchsorted(judged.object_image, np.arange(images + 1)), np.uint32),
        "label": _packed(judged.object_label, np.uint16),
        "crowd": _packed(judged.crowd, np.uint8),
    }


def _columns(judged: Judged, images: int) -> dict[str, str]:
    """What the list of images filters by: of each detection class, kind and score, of each object who reaches it."""
    return {
        "first": _packed(np.searchsorted(judged.image, np.arange(images + 1)), np.uint32),
        "label": _packed(judged.label, np.uint16),
        "kind": _packed(judged.kind, np.uint8),
        "score": _packed(percent(judged.score), np.int8),
        "found": _packed(percent(judged.found_at), np.int8),
        "reached": _packed(percent(judged.reached_at), np.int8),
    }


def _packed(values: NDArray[Any], dtype: Any) -> str:
    little = values.astype(np.dtype(dtype).newbyteorder("<"))
    return base64.b64encode(little.tobytes()).decode()


def _write_objects(folder: Path, prepared: Prepared, runs: Sequence[Run], images: int) -> None:
    """For each image ``[label, [x, y, w, h], crowd, mask]`` of its objects, ``[[x, y, w, h], mask]`` of detections.

    Both in the order of the columns; a mask is COCO's compressed run lengths, 0 without one.
    """
    truth: list[list[Any]] = [[] for _ in range(images)]
    for each in prepared.json["annotations"]:
        mask = each["segmentation"]
        row = [each["category_id"] - 1, _rounded(each["bbox"]), each["iscrowd"], _counts(mask)]
        truth[each["image_id"] - 1].append(row)
    found: list[list[list[Any]]] = []
    for run in runs:
        judged = next(iter(run.judged.values()))
        rows: list[list[Any]] = [[] for _ in range(images)]
        for place, image in zip(judged.place.tolist(), judged.image.tolist(), strict=True):
            result = run.results[place]
            box = _rounded(result["bbox"]) if "bbox" in result else 0
            rows[image].append([box, _counts(result.get("segmentation"))])
        found.append(rows)
    for number in range(images):
        content = embedded({"truth": truth[number], "runs": [rows[number] for rows in found]})
        (folder / f"{number}.js").write_text(f"show({number},{content});\n", encoding="utf-8")


def _rounded(box: Sequence[float]) -> list[float]:
    return [round(value, 1) for value in box]


def _counts(mask: Mapping[str, Any] | None) -> str | int:
    if not mask or isinstance(mask["counts"], list):  # what stands for "no mask" in a prepared ground truth
        return 0
    counts = mask["counts"]
    return counts.decode() if isinstance(counts, bytes) else str(counts)


def _write_pictures(folder: Path, source: Source, numbers: Mapping[int, int]) -> None:
    def write(index: int) -> None:
        picture = Image.fromarray(source[index].image)
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        picture.save(folder / f"{numbers[int(source.image_ids[index])] - 1}.jpg", quality=_QUALITY)

    with ThreadPoolExecutor(_THREADS) as pool:
        for _ in pool.map(write, range(len(source))):
            pass
