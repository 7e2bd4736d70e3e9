"""The command line of `jaxdet.data.convert`.

jaxdet data convert FOLDER OUT [--format yolo] [--val-share .2]
jaxdet data convert JSON OUT --to yolo --from-images FOLDER
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxdet.data.convert.found import Tally
from jaxdet.data.convert.from_coco import FORMATS, from_coco
from jaxdet.data.convert.layouts import NAMES
from jaxdet.data.convert.to_coco import PLACINGS, Outcome, to_coco
from jaxdet.messages import counted, printable

_SUMMARY = "Write a data set of another tool's format as COCO's, or COCO's as YOLO's or labelme's."
_EXAMPLES = 3  #: places that are shown of each kind


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser, whose outcome `convert` takes."""
    parser.add_argument("source", metavar="SOURCE", help="the data set's folder; with --to, COCO's json")
    parser.add_argument("out", metavar="OUT", help="folder to write to")
    parser.add_argument("--format", choices=NAMES, help="the layout of SOURCE, where it is not seen by itself")
    parser.add_argument("--to", choices=FORMATS, help="the other way: from COCO's format to this one")
    parser.add_argument("--from-images", metavar="FOLDER", help="with --to: folder of the json's images")
    parser.add_argument(
        "--val-share",
        type=float,
        metavar="S",
        help="share of the images for validation, by a hash of their path (default: its own splits, else .2)",
    )
    parser.add_argument(
        "--images",
        choices=PLACINGS,
        default="leave",
        help="leave images where they are (default), link or copy them to OUT/images; copies are upright",
    )
    parser.add_argument(
        "--boxes",
        choices=("mask", "box"),
        default="mask",
        help="an object with a box alone gets its rectangle as a mask (default), or stays a box",
    )
    parser.add_argument("--class-name", default="object", help="class of all objects in folders of masks")


def convert(options: argparse.Namespace) -> int:
    """Do what the command line asks for; returns the exit status."""
    console = Console()
    try:
        if options.to:
            images = options.from_images or str(Path(options.source).parent)
            tally = from_coco(options.source, images, options.out, options.to)
            console.print(f"wrote {_shown(options.out)} for {options.to}", soft_wrap=True)
            _print_tally(console, tally)
            return 0
        outcome = to_coco(
            options.source,
            options.out,
            layout=options.format,
            val_share=options.val_share,
            images=options.images,
            boxes=options.boxes,
            class_name=options.class_name,
        )
    except (ValueError, OSError) as error:
        console.print(f"[bold red]{_shown(str(error))}[/bold red]", soft_wrap=True)
        return 1
    _print_outcome(console, outcome)
    return 0


def _print_outcome(console: Console, outcome: Outcome) -> None:
    recognised = outcome.recognised
    console.print(f"taken for [bold]{recognised.layout.name}[/bold]: {_shown(recognised.why)}", soft_wrap=True)
    for name, why in recognised.others.items():
        console.print(f"not {name}: {_shown(why)}", style="dim", soft_wrap=True)
    _print_tally(console, outcome.tally)
    console.print(f"split by {outcome.split_by}", soft_wrap=True)
    names = ", ".join(outcome.categories[:20]) + (", ..." if len(outcome.categories) > 20 else "")
    classes = counted(len(outcome.categories), "class")
    console.print(f"{classes} (model.num_classes): {_shown(names)}", soft_wrap=True)
    for split, path in outcome.annotations.items():
        images, objects = outcome.counts[split]
        console.print(f"{_shown(str(path))}: {counted(images, 'image')}, {counted(objects, 'object')}", soft_wrap=True)
        command = f"jaxdet data check {path} --images {outcome.images}"
        console.print(f"  now run {_shown(command)}", soft_wrap=True)
    if "train" in outcome.annotations:
        _print_training(console, outcome)


def _print_training(console: Console, outcome: Outcome) -> None:
    """The command that trains on what was written."""
    folder = outcome.annotations["train"].parent
    if outcome.images != folder / "images":
        sets = [split for split in ("train", "val") if split in outcome.annotations]
        named = [f"data.{split}.images={outcome.images} data.{split}.annotations={folder}/instances_{split}.json"
                 for split in sets]  # fmt: skip
        more = "" if "val" in sets else " data.val=none"
        command = f"model.num_classes={len(outcome.categories)} {' '.join(named)}{more}"
        console.print(f"then train: jaxdet train --config NAME {_shown(command)}", soft_wrap=True)
        console.print("  (jaxdet train --data wants the images beside the json: convert with --images link)")
        return
    console.print(f"then train: jaxdet train --data {_shown(str(folder))} --minutes 60", soft_wrap=True)


def _print_tally(console: Console, tally: Tally) -> None:
    table = Table("", "what", "count", "where")
    for kind, count in tally.read.items():
        table.add_row("read", escape(kind), str(count), "")
    _add_rows(table, "changed", tally.notes, "yellow")
    _add_rows(table, "left out", tally.skipped, "bold red")
    console.print(table)


def _add_rows(table: Table, title: str, kinds: Mapping[str, list[str]], style: str) -> None:
    for kind, places in sorted(kinds.items(), key=lambda item: -len(item[1])):
        more = [f"... {len(places) - _EXAMPLES} more"] if len(places) > _EXAMPLES else []
        table.add_row(title, _shown(kind), str(len(places)), _shown("\n".join(places[:_EXAMPLES] + more)), style=style)


def _shown(text: str) -> str:
    """Text from the data set, escaped for terminals and for rich, which would obey ``[bold]`` in it."""
    return escape(printable(text))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of the module; returns the exit status."""
    parser = argparse.ArgumentParser(prog="jaxdet data convert", description=_SUMMARY)
    add_arguments(parser)
    return convert(parser.parse_args(arguments))
