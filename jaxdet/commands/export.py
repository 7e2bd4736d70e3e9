"""Write a model as StableHLO programs, with weights and a loader of one file, in a folder that runs without jaxdet.

    jaxdet export runs/demo exported
    jaxdet export runs/demo exported --platforms cpu cuda tpu --batch 1 8
    jaxdet export runs/demo exported data.short_side=480 data.long_side=640 --image 480 640

There is a program for each platform, canvas and batch size.  A model predicts on two canvases, one for images that are
wider than high and one for others, or on those of data.canvas_ratios too; --image says that all images have one size,
and leaves the other canvases out.
KEY=VALUE changes a setting of the checkpoint's config by its dotted name.  docs/EXPORT.md says more.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from jaxdet.runtime.flags import MODEL, add_trusted_flag


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, export, say what was written; 1 with a message where the input is at fault."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)

    # Here and not above: jax takes a second to import, and who asks for --help waits for it.
    from jaxdet.config import load_config, trusted_modules
    from jaxdet.evaluation.tables import show_progress
    from jaxdet.exporting import export
    from jaxdet.messages import counted
    from jaxdet.trained import load

    try:
        trusted = trusted_modules(options.trusted, options.config)
        checkpoint = options.checkpoint
        if options.config:
            checkpoint = load(checkpoint, config=load_config(options.config), trusted=trusted)
        folder = export(
            checkpoint,
            options.out,
            platforms=options.platforms,
            batch_sizes=options.batch,
            image=tuple(options.image) if options.image else None,
            score_threshold=options.score_threshold,
            overrides=options.overrides,
            trusted=trusted,
            progress=partial(show_progress, what="programs"),
        )
    except (ValueError, OSError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    programs = sorted((folder / "programs").iterdir())
    in_all = sum(path.stat().st_size for path in programs) / 1e6
    weights = (folder / "weights.npz").stat().st_size / 1e6
    written = f"{counted(len(programs), 'program')} of {in_all:.1f} MB, weights of {weights:.1f} MB"
    print(f"{folder}: {written}, export.json, load.py")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", metavar="RUN", help=MODEL)
    parser.add_argument("out", metavar="OUT", help="folder to write; an earlier export there is replaced")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it argparse says that they are required, when OUT is missing
        metavar="KEY=VALUE",
        help="settings to change, by dotted name",
    )
    parser.add_argument(
        "--config", help="name of a model, FILE.py or FILE.py:ROW, in place of the checkpoint's own config"
    )
    parser.add_argument(
        "--platforms", nargs="+", default=[], help="of cpu, cuda, rocm and tpu; without it that of this machine"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=[1], help="how many images a program takes at once")
    parser.add_argument(
        "--image", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="size in pixels of all images that will come"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="least score of a detection, unless the loader is told it"
    )
    add_trusted_flag(parser)
    return parser
