"""Score a checkpoint, or a results file, by COCO's rules.

    jaxdet eval runs/demo
    jaxdet eval runs/demo --images DIR --annotations instances.json --per-class --out results.json
    jaxdet eval mask_rcnn_r50_fpn_1x
    jaxdet eval weights.pth --config mask_rcnn_r50_fpn data.short_side=600
    jaxdet eval runs/demo --images DIR --annotations image_info_test.json --out results.json
    jaxdet eval --results results.json --annotations instances.json

KEY=VALUE changes a setting of the checkpoint's config by its dotted name.
"""

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console

from jaxdet.data.sources.coco import read_json
from jaxdet.evaluation import Scores, per_class_table, read_results, score, summary_table, write_results
from jaxdet.evaluation.tables import show_progress
from jaxdet.runtime.files import write_json
from jaxdet.runtime.flags import MODEL, add_trusted_flag, split_words
from jaxdet.runtime.hosts import add_host_flags, explained, join_hosts


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, score, print; 0, or 1 with a message where the input is at fault."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    names, settings = split_words(options.words)
    if options.checkpoint is None and names:
        options.checkpoint = names.pop(0)
    options.overrides = [*names, *settings]  # a name too many is no setting, which is said
    if options.checkpoint is None and not options.results:
        parser.error("expected RUN, as in jaxdet eval runs/mine, or --results")
    try:
        scores = _score_results(options) if options.results else _score_checkpoint(options)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {explained(error)}", file=sys.stderr)
        return 1
    if scores is not None:
        _show(scores, options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("words", nargs="*", metavar="RUN [KEY=VALUE]", help=f"{MODEL}; settings to change")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--checkpoint", metavar="RUN", help="another way to say RUN")
    what.add_argument("--results", help="COCO results json to score without a model (needs --annotations)")
    parser.add_argument(
        "--config", help="name of a model, FILE.py or FILE.py:ROW, in place of the checkpoint's own config"
    )
    parser.add_argument("--images", help="folder of images to evaluate on instead of the config's data.val")
    parser.add_argument("--annotations", help="instances json of these images")
    parser.add_argument("--per-class", action="store_true", help="print a table of the categories too")
    parser.add_argument("--fast", action="store_true", help="judge by faster-coco-eval: the same numbers sooner")
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="with --results: count N detections of a class in an image too, above COCO's 100 (of a checkpoint "
        "run.eval_detections=N)",
    )
    parser.add_argument(
        "--tta",
        metavar="flip,SIDES",
        help="see each image mirrored too, at these short sides, or both, as in flip,600,800, and merge what is found",
    )
    parser.add_argument("--out", help="write the detections here, as COCO results json")
    parser.add_argument("--metrics", help="write the numbers here, as json")
    add_trusted_flag(parser)
    add_host_flags(parser)
    return parser


def _score_results(options: argparse.Namespace) -> Scores:
    of_models = (
        *("checkpoint", "config", "images", "tta", "out", "distributed", "coordinator", "num_processes", "process_id"),
        *("trusted", "overrides"),
    )
    values = {name: getattr(options, name) for name in of_models}
    given = [name for name, value in values.items() if value not in (None, []) and value is not False]
    if given or not options.annotations:
        raise ValueError(f"--results: expected --annotations and no model's options, got {given or 'no --annotations'}")
    truth = read_json(options.annotations)
    limit = {} if options.max_detections is None else {"max_detections": options.max_detections}
    return score(truth, read_results(options.results, truth), fast=options.fast, **limit)


def _score_checkpoint(options: argparse.Namespace) -> Scores | None:
    """Numbers on the first process, None on the others (which took part in predicting and in judging)."""
    import jax  # here, because scoring a file must not need it

    from jaxdet.config import load_config, trusted_modules
    from jaxdet.evaluation.augmented import TestTimeAugmentation
    from jaxdet.evaluation.evaluate import detect_all, open_checkpoint, score_all

    if options.max_detections is not None:
        raise ValueError(f"--max-detections is for --results: set run.eval_detections={options.max_detections}")
    trusted = trusted_modules(options.trusted, options.config)
    augment = TestTimeAugmentation.from_text(options.tta) if options.tta else None
    config = load_config(options.config) if options.config else None
    join_hosts(options)
    trained, source = open_checkpoint(
        options.checkpoint,
        options.images,
        options.annotations,
        config=config,
        overrides=options.overrides,
        trusted=trusted,
    )
    results = detect_all(trained, source, progress=show_progress, augment=augment)
    if options.out and jax.process_index() == 0:
        write_results(options.out, results)
    scores = score_all(trained, source, results, fast=options.fast)
    return scores if jax.process_index() == 0 else None


def _show(scores: Scores, options: argparse.Namespace) -> None:
    console = Console()
    if options.per_class:
        console.print(per_class_table(scores))
    console.print(summary_table(scores.metrics))
    if options.metrics:
        write_json(options.metrics, scores.metrics)
