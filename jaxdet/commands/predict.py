"""Detect what is in images and videos: pictures with boxes, masks, names and scores, and a COCO results json.

    jaxdet predict runs/demo photo.jpg folder/ --out predictions
    jaxdet predict runs/demo folder/ data.short_side=600 data.long_side=1000
    jaxdet predict runs/demo clip.mp4
    jaxdet predict runs/demo aerial.tif --tiles 640 --overlap 0.2

KEY=VALUE changes a setting of the checkpoint's config by its dotted name.  A file of such a name is an image.  Pictures
are turned upright as their EXIF orientation says, and results count the pixels of the upright picture.  A video becomes
one with what is found drawn into its frames; the results json has images alone.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxdet.runtime.flags import MODEL, add_trusted_flag, split_words


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, predict, say what was written; 1 where something could not be read."""
    parser = _parser()
    options = parser.parse_intermixed_args(arguments)
    images, overrides = split_words(options.words)
    checkpoint = options.checkpoint or (images.pop(0) if images else None)
    if checkpoint is None or not images:
        parser.error("expected RUN and images, files or folders, as in jaxdet predict runs/mine photo.jpg")

    # Here and not above: jax takes a second to import, and who asks for --help waits for it.
    from jaxdet.config import load_config, trusted_modules
    from jaxdet.evaluation.augmented import TestTimeAugmentation
    from jaxdet.evaluation.tables import show_progress
    from jaxdet.messages import counted
    from jaxdet.prediction import RESULTS, Predictor, is_video, predict_files, predict_video
    from jaxdet.trained import load

    try:
        trusted = trusted_modules(options.trusted, options.config)
        config = load_config(options.config) if options.config else None
        trained = load(checkpoint, config=config, overrides=overrides, trusted=trusted)
        if options.tiles is None and options.overlap is not None:
            raise ValueError("--overlap: expected --tiles SIDE with it, whose neighbours overlap by that")
        if options.tiles is not None and any(map(is_video, images)):
            raise ValueError("--tiles: expected images, got a video, whose frames are predicted as a whole")
        videos = [path for path in images if is_video(path)]
        images = [path for path in images if path not in videos]
        predictor = Predictor(
            trained,
            score_threshold=options.score_threshold,
            nms_threshold=options.nms_threshold,
            max_detections=options.max_detections,
            augment=TestTimeAugmentation.from_text(options.tta) if options.tta else None,
            upright=not options.as_stored,
        )
        for path in videos:
            out = Path(options.out) / f"{Path(path).stem}.mp4"
            count = predict_video(predictor, path, out, progress=partial(show_progress, what="frames"))
            print(f"{counted(count, 'frame')} of {path}: {out}")
        if not images:
            return 0
        overlap = 0.2 if options.overlap is None else options.overlap
        by_tiles = {"tile": options.tiles, "overlap": overlap, "progress": partial(show_progress, what="tiles")}
        report = predict_files(predictor, images, options.out, **by_tiles)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    for message in report.failed.values():
        print(f"{parser.prog}: skipped: {message}", file=sys.stderr)
    found = f"{counted(len(report.results), 'detection')} in {counted(len(report.pictures), 'image')}"
    print(f"{found}: {options.out}/*.png, {RESULTS}")
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="RUN IMAGE [KEY=VALUE]",
        help=f"{MODEL}; images, videos, folders of images; settings to change",
    )
    parser.add_argument("--checkpoint", metavar="RUN", help="another way to say RUN; then all other words are images")
    parser.add_argument(
        "--config", help="name of a model, FILE.py or FILE.py:ROW, in place of the checkpoint's own config"
    )
    parser.add_argument("--out", default="predictions", help="folder to write to")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score of a detection to show")
    parser.add_argument(
        "--nms-threshold",
        type=float,
        metavar="IOU",
        help="IoU above which the better box of a class suppresses the other (if not given that of the model)",
    )
    parser.add_argument(
        "--max-detections",
        type=int,
        metavar="N",
        help="the N best detections of an image, at most as many as the model has room for",
    )
    parser.add_argument(
        "--tta",
        metavar="flip,SIDES",
        help="see each image mirrored too, at these short sides, or both, as in flip,600,800, and merge what is found",
    )
    parser.add_argument(
        "--tiles", type=int, metavar="SIDE", help="predict large images by tiles of so many pixels, and as a whole"
    )
    parser.add_argument(
        "--overlap", type=float, metavar="SHARE", help="with --tiles: what neighbours share of a side (.2)"
    )
    parser.add_argument(
        "--as-stored", action="store_true", help="turn nothing by EXIF: for a COCO data set, which counts stored pixels"
    )
    add_trusted_flag(parser)
    return parser
