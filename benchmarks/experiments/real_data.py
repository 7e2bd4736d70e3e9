"""Trains a small ResNet-18 model on real images; the numbers stand in docs/RESULTS.md.

    python -m benchmarks.experiments.real_data overfit    --coco DIR --weights FILE   16 images, learned by heart
    python -m benchmarks.experiments.real_data penn_fudan --data DIR --weights FILE   Penn-Fudan pedestrians

``--coco`` holds ``images/`` and ``annotations/instances_train2017.json``, ``--data`` holds ``images/``,
``annotations/instances_train.json`` and ``annotations/instances_val.json``; ``--weights`` is an ImageNet ResNet-18.
``--config sbr_cnn_r18_fpn_small`` trains SBR-CNN in place of Mask R-CNN.
"""

import argparse
import json
import logging
import time
from pathlib import Path

import jaxdet
from jaxdet.config import load_config, override

CONFIG = Path(__file__).parents[2] / "configs" / "mask_rcnn_r18_fpn_small.py"
IMAGES = 16


def first_images(annotations: Path, out: Path) -> None:
    """Writes the part of a COCO json that belongs to its first images with something to find, by id."""
    full = json.loads(annotations.read_text())
    annotated = {a["image_id"] for a in full["annotations"] if not a["iscrowd"]}
    ids = sorted(i["id"] for i in full["images"] if i["id"] in annotated)[:IMAGES]
    full["images"] = [i for i in full["images"] if i["id"] in ids]
    full["annotations"] = [a for a in full["annotations"] if a["image_id"] in ids]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(full))


def overfit(args: argparse.Namespace) -> list[str]:
    """Settings that learn 16 images by heart: no flips, evaluated on the same images."""
    subset = args.workdir / "annotations_16.json"
    first_images(args.coco / "annotations" / "instances_train2017.json", subset)
    images = args.coco / "images"
    return [
        *(f"data.{part}.images={images}" for part in ("train", "val")),
        *(f"data.{part}.annotations={subset}" for part in ("train", "val")),
        "data.flip_probability=0",
        # Few images and many updates: what counts here is how often the masks of small objects are seen.
        "data.batch_size=2",
        "optimizer.base_batch=none",
        "optimizer.schedule.length=1500",
        "optimizer.schedule.drops=1100,1380",
        "run.pictures=16",
    ]


def penn_fudan(args: argparse.Namespace) -> list[str]:
    """Settings of Penn-Fudan: one class, trained on train, evaluated on val."""
    return [
        "model.num_classes=1",
        "optimizer.schedule.length=300",
        "optimizer.schedule.drops=220,270",
        *(f"data.{part}.images={args.data / 'images'}" for part in ("train", "val")),
        *(
            f"data.{part}.annotations={args.data / 'annotations' / f'instances_{part}.json'}"
            for part in ("train", "val")
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=("overfit", "penn_fudan"))
    parser.add_argument("--coco", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--workdir", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_intermixed_args()
    args.workdir = args.workdir or Path("runs") / args.task
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("jaxdet").setLevel(logging.INFO)
    if (args.coco if args.task == "overfit" else args.data) is None:
        parser.error(f"{args.task}: expected {'--coco' if args.task == 'overfit' else '--data'} DIR")
    settings = {"overfit": overfit, "penn_fudan": penn_fudan}[args.task](args)
    # The weights lack the last stage, which starts afresh; what lies outside the backbone always does.
    weights = [f"run.init_from={args.weights}", 'run.init_skip=["backbone/layer4"]']
    start = time.time()
    metrics = jaxdet.train(
        override(load_config(args.config), [*settings, *weights, *args.overrides]), workdir=args.workdir
    )
    for name in ("bbox/AP", "bbox/AP50", "segm/AP", "segm/AP50"):
        print(f"{name:10} {metrics[name]:.3f}")
    print(f"{time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
