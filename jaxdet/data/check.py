"""Say what is in a COCO data set, and everything that is wrong with it.

    jaxdet data check FOLDER               # every annotation json found in it
    jaxdet data check JSON --images FOLDER [--stuff FOLDER]

The exit status is 1 if there are errors: defects that stop training or falsify evaluation.  Warnings are defects
that jaxdet works around, and notes are harmless.
"""

import argparse
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxdet.data.convert.layouts import foreign
from jaxdet.data.masks import has_masks
from jaxdet.data.settings import Data
from jaxdet.data.sources.coco import read_json, stored_hw
from jaxdet.data.validation.entries import file_name_of
from jaxdet.data.validation.findings import (
    Finding,
    annotation_findings,
    entries_of,
    image_findings,
    map_findings,
    repeated,
    unreferenced,
    usage_findings,
)
from jaxdet.data.validation.names import other_spelling
from jaxdet.messages import counted, printable, short
from jaxdet.runtime.files import read_json_file

_SUMMARY = "Say what is in a COCO data set, and everything that is wrong with it."
_STYLE = {"error": "bold red", "warning": "yellow", "note": "dim"}
#: COCO's size ranges, by area in pixels.
_RANGES = (("small", 0.0, 32.0**2), ("medium", 32.0**2, 96.0**2), ("large", 96.0**2, float("inf")))


@dataclass(frozen=True)
class Report:
    """What is in a json and what is wrong with it."""

    counts: dict[str, int]  #: numbers of images, annotations and so on, by what they count
    findings: list[Finding]
    names: set[str]  #: image files that the json names


def check(annotations: str, images: str, *, stuff: str | None = None, quick: bool = False) -> Report:
    """Examine one json with its images.

    Args:
        annotations: path of the json.
        images: folder that ``file_name`` is relative to.
        stuff: folder of semantic maps, if they are to be examined too.
        quick: read only the headers of the image files, so that broken pixels go unnoticed.

    Returns:
        The report; a json that cannot be read is its only finding.
    """
    try:
        data = read_json(annotations)
    except ValueError as error:  # nothing else can be said of it
        return Report({}, [Finding("error", "json unreadable", str(error))], set())
    image_entries, bad_images = entries_of(data, "images", ("id", "file_name"))
    entries, bad_annotations = entries_of(data, "annotations", ("id", "image_id", "category_id", "bbox"))
    categories, bad_categories = entries_of(data, "categories", ("id", "name"))
    findings = bad_images + bad_annotations + bad_categories
    findings += repeated(image_entries, "id", "image id repeated", "error")
    findings += repeated(image_entries, "file_name", "image file named twice", "warning")
    findings += repeated(entries, "id", "annotation id repeated", "error")
    findings += repeated(categories, "id", "category id repeated", "error")
    findings += repeated(categories, "name", "category name repeated", "warning")
    sizes: dict[int, tuple[int, int]] = {}
    for entry in image_entries:
        findings += image_findings(entry, Path(images), quick)
        hw = _hw(entry, images)
        if hw is not None:
            sizes.setdefault(entry["id"], hw)
        if stuff is not None:
            findings += map_findings(entry, Path(stuff), hw)
    by_id = {entry["id"]: entry for entry in reversed(image_entries)}  # the first one, where an id is repeated
    known, masks = {entry["id"] for entry in categories}, has_masks(entries)
    for entry in entries:
        findings += annotation_findings(entry, by_id, sizes, known, masks)
    findings += usage_findings(image_entries, entries, categories, sizes, Data())
    names = {str(entry["file_name"]) for entry in image_entries}
    return Report(_counts(image_entries, entries, categories), findings, names)


def _hw(entry: dict[str, Any], images: str) -> tuple[int, int] | None:
    """The size of an image as training will have it; None where it cannot be known, which `image_findings` reports."""
    try:
        return stored_hw(entry, images)
    except ValueError:
        return None


def _counts(
    images: list[dict[str, Any]], entries: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> dict[str, int]:
    crowd = [entry for entry in entries if entry.get("iscrowd")]
    areas = [entry.get("area") for entry in entries if not entry.get("iscrowd")]
    numbers = [area for area in areas if isinstance(area, int | float)]
    by_size = {name: sum(low <= area < high for area in numbers) for name, low, high in _RANGES}
    totals = {"images": len(images), "categories": len(categories), "annotations": len(entries)}
    return totals | {"crowd regions": len(crowd)} | {f"{name} instances": count for name, count in by_size.items()}


def find_sets(path: Path, images: str | None = None) -> Iterator[tuple[Path, Path]]:
    """Find annotation jsons and their image folders.

    Args:
        path: a json, or a folder that is searched for them.
        images: folder of the images; None: it is guessed for each json.

    Yields:
        Path of a json, and the folder of its images.

    Raises:
        ValueError: there is no such path, no annotation json in it, or none of the usual folders has the images.
    """
    if not path.exists():
        raise ValueError(f"{path}: expected a folder or an annotation json, got nothing of that name")
    jsons = [path] if path.is_file() else [found for found in sorted(path.rglob("*.json")) if _is_annotations(found)]
    if not jsons:
        layout = foreign(path)
        hint = f"; it looks like {layout}: run `jaxdet data convert {path} OUT`" if layout else ""
        raise ValueError(f"{path}: expected a json with images and annotations in it, got none{hint}")
    for found in jsons:
        yield found, Path(images) if images else _image_folder(found)


def _is_annotations(path: Path) -> bool:
    """Whether a json looks like COCO annotations.  One that is broken counts, since it has to be reported."""
    if not path.is_file():
        return False
    try:
        # The first bytes mostly tell, and COCO's json of 450 MB need not be parsed twice.
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError:
        return True
    if b'"images"' in head or b'"annotations"' in head:
        return True
    try:
        data = read_json_file(path, "annotations")
    except ValueError:
        return False
    return isinstance(data, dict) and "images" in data and not {"annotations", "categories"}.isdisjoint(data)


def _image_folder(annotations: Path) -> Path:
    """Guess the folder of a json's images: the usual one in which most of its first images are."""
    try:
        entries = read_json(str(annotations))["images"][:50]  # enough to tell, and each asks the disk eight times
    except ValueError:
        return annotations.parent
    names = []
    for entry in entries:
        with contextlib.suppress(ValueError):  # `check` reports names that cannot be used
            names.append(file_name_of(entry))
    # COCO's layouts: images/, val2017/ beside or above instances_val2017.json, images/val2017/, or the same folder.
    split = annotations.stem.rsplit("_", 1)[-1]
    roots = (annotations.parent, annotations.parent.parent)
    candidates = [root / name for root in roots for name in ("images", split, f"images/{split}", "")]
    hits = Counter({folder: sum(_is_there(folder, name) for name in names) for folder in candidates})
    best, count = hits.most_common(1)[0]
    if names and not count:
        raise ValueError(
            f"{annotations}: expected its images in one of {[str(c) for c in candidates]}, looked for "
            f"{short(names[:3], 200)}; give --images"
        )
    return best


def _is_there(folder: Path, name: str) -> bool:
    """Whether a folder has a file, be its name spelt otherwise, which `check` then reports."""
    return os.path.isfile(folder / name) or other_spelling(folder, name) is not None


def _print_findings(console: Console, findings: list[Finding], *, examples: int = 3) -> None:
    """Print a table of findings by kind, the worst first, with a few ``examples`` of places for each kind."""
    table = Table("severity", "what", "count", "where")
    for severity in _STYLE:
        kinds = Counter(finding.kind for finding in findings if finding.severity == severity)
        for kind, count in kinds.most_common():
            places = [finding.where for finding in findings if (finding.severity, finding.kind) == (severity, kind)]
            shown = places[:examples] + ([f"... {count - examples} more"] if count > examples else [])
            table.add_row(severity, escape(kind), str(count), _shown("\n".join(shown)), style=_STYLE[severity])
    if table.rows:
        console.print(table)


def _shown(text: str) -> str:
    """Text from the data set, escaped for terminals and for rich, which would obey ``[bold]`` in it."""
    return escape(printable(text))


def _examine(console: Console, options: argparse.Namespace) -> int:
    """Check and print everything at ``options.path``.

    Returns:
        The number of errors.
    """
    errors = 0
    named: dict[Path, set[str]] = {}
    for annotations, folder in find_sets(Path(options.path), options.images):
        report = check(str(annotations), str(folder), stuff=options.stuff, quick=options.quick)
        console.print(f"\n[bold]{_shown(str(annotations))}[/bold], images in {_shown(str(folder))}")
        console.print(", ".join(f"{count} {name}" for name, count in report.counts.items()))
        _print_findings(console, report.findings, examples=options.examples)
        errors += sum(finding.severity == "error" for finding in report.findings)
        named.setdefault(folder, set()).update(report.names)
    # After all jsons, because several of them may share a folder, as training and validation set do.
    for folder, names in ((folder, names) for folder, names in named.items() if names):
        _print_findings(console, list(unreferenced(names, folder)), examples=options.examples)
    return errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the module; returns the exit status, 1 if there are errors."""
    parser = argparse.ArgumentParser(prog="jaxdet data check", description=_SUMMARY)
    parser.add_argument("path", metavar="PATH", help="a data set's folder, or an annotation json")
    parser.add_argument("--images", help="folder of the images; guessed where not given")
    parser.add_argument("--stuff", help="folder of semantic maps, to examine these too")
    parser.add_argument("--quick", action="store_true", help="read only the headers of image files")
    parser.add_argument("--examples", type=int, default=3, help="places to show of each kind (default 3)")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        errors = _examine(console, options)
    except ValueError as error:
        console.print(f"[bold red]{_shown(str(error))}[/bold red]", soft_wrap=True)
        return 1
    console.print(f"[bold]{counted(errors, 'error')}[/bold]" if errors else "no errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
