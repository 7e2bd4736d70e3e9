"""Detect what is in images: pictures with boxes, masks, names and scores, and a COCO results json.

python predict.py --checkpoint runs/demo photo.jpg folder/ --out predictions
"""

import argparse
import sys
from collections.abc import Sequence

from jaxdet.config import load_config
from jaxdet.predict_lib import RESULTS, predict_files
from jaxdet.trained import load


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, predict, say what was written; 1 where something could not be read."""
    options = _parser().parse_args(arguments)
    try:
        config = load_config(options.config) if options.config else None
        trained = load(options.checkpoint, config=config, overrides=options.set)
        report = predict_files(trained, options.images, options.out, score_threshold=options.score_threshold)
    except (ValueError, FileNotFoundError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 1
    for message in report.failed.values():
        print(f"predict.py: skipped: {message}", file=sys.stderr)
    print(f"{len(report.results)} detections in {len(report.pictures)} images: {options.out}/*.png, {RESULTS}")
    return 1 if report.failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--checkpoint", required=True, help="run folder, checkpoint folder, or a weight file")
    parser.add_argument("--config", help="config file to use instead of the checkpoint's own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="setting to change")
    parser.add_argument("--out", default="predictions", help="folder to write to")
    parser.add_argument("--score-threshold", type=float, default=0.5, help="least score of a detection to show")
    parser.add_argument("images", nargs="+", help="image files and folders")
    return parser


if __name__ == "__main__":
    sys.exit(main())
