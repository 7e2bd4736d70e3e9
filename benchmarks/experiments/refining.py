"""MR R-CNN at small scale: what the refining step, and Shape-aware RoIAlign in it, do for objects that huddle.

    python -m benchmarks.experiments.refining --out runs/refining
    python -m benchmarks.experiments.refining --out runs/smoke --seeds 1 --settings optimizer.schedule.length=40

The models of ``small_refine.py`` learn scenes of huddled objects from scratch.  A Mask R-CNN is trained first; from its
weights start the control, the same model trained on, and the refining step on plain crops and on guided ones, each for
as many steps as the control.  What is chosen at test alone is in rows of the guided model: the weight of the refined
scores, and whether boxes move.

``OUT`` has a run folder for each model and seed; a finished one is not trained again.  Then ``runs.json``,
``table.md`` and ``only_guided.png``, objects that only the guided step finds.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

import jaxdet
from benchmarks.experiments import small_refine
from benchmarks.experiments.huddled_ap import huddled, of_images, scores
from benchmarks.measure import markdown, mean_and_spread
from jaxdet.config import override
from jaxdet.data import Source, open_source
from jaxdet.data.masks import encode_mask
from jaxdet.evaluation.evaluate import detect_all
from jaxdet.evaluation.results import Result
from jaxdet.evaluation.score import score
from jaxdet.trained import Trained
from jaxdet.visualize import overlay

FIRST = "mask_rcnn"
ROWS = {FIRST: "Mask R-CNN, first phase", "control": "Mask R-CNN, trained on", "rm": "RM", "sara": "RM + SARA"}
CHOICES = {"alpha 0 (REG)": "alpha=0", "alpha 0.5": "alpha=0.5", "alpha 2": "alpha=2", "CLS": "boxes=base"}
"""Rows of the guided model that differ at test alone (Tables 4 and 5 of the paper)."""
FOUND, MISSED = 0.75, 0.6
"""An object is found by a mask of its class with at least that IoU, and missed where none has more than that."""
SHOWN = 0.3  # least score of a detection in pictures


def train(name: str, seed: int, out: Path, settings: Sequence[str]) -> Trained:
    """The model, trained unless it is; all but the first start from the first."""
    start = [] if name == FIRST else [f"run.init_from={out / f'{FIRST}_s{seed}'}"]
    experiment = override(small_refine.get_config(name), [f"run.seed={seed}", *start, *settings])
    jaxdet.train(experiment, out / f"{name}_s{seed}")
    return jaxdet.load(out / f"{name}_s{seed}")


def variants(name: str, trained: Trained) -> Iterator[tuple[str, Trained]]:
    """The trained model, and the guided one with each choice at test."""
    yield ROWS[name], trained
    if name == "sara":
        for row, setting in CHOICES.items():
            changed = override(trained.experiment, [f"model.parts.0.{setting}"])
            yield f"{ROWS[name]}, {row}", dataclasses.replace(trained, experiment=changed)


def measure(truth: Mapping[str, Any], results: Sequence[Result]) -> dict[str, float]:
    """AP over all objects, over huddled ones, and in images of which all objects huddle and of which some do not."""
    both = scores(truth, results)
    instances = [annotation for annotation in truth["annotations"] if not annotation.get("iscrowd")]
    apart = {a["image_id"] for a, huddles in zip(instances, huddled(instances), strict=True) if not huddles}
    whole = {image["id"] for image in truth["images"]} - apart
    both |= {name: score(*of_images(truth, results, ids)).metrics for name, ids in (("whole", whole), ("apart", apart))}
    return {f"{kind}/{name}": both[name][f"{kind}/AP"] for kind in ("bbox", "segm") for name in both}


def last_metrics(workdir: Path, names: Sequence[str], count: int = 4) -> dict[str, float]:
    """Means of what training logged last."""
    lines = [json.loads(line) for line in (workdir / "log.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "loss" in line][-count:]
    return {name: float(np.mean([line[name] for line in lines])) for name in names if name in lines[-1]}


def found_by(results: Sequence[Result], truth: Mapping[str, Any]) -> dict[int, float]:
    """Annotation -> the largest IoU of its mask with that of a shown detection of its class in its image."""
    of_place: dict[tuple[int, int], list[Any]] = {}
    for result in results:
        if result["score"] >= SHOWN:
            of_place.setdefault((result["image_id"], result["category_id"]), []).append(result["segmentation"])
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    best = {}
    for annotation in truth["annotations"]:
        masks = of_place.get((annotation["image_id"], annotation["category_id"]), [])
        true = encode_mask(annotation["segmentation"], sizes[annotation["image_id"]])
        overlaps = coco_mask.iou(masks, [true], [0]) if masks else [0.0]
        best[annotation["id"]] = float(np.max(overlaps))
    return best


def draw(source: Source, found: Mapping[str, Sequence[Result]], path: Path, count: int = 4) -> None:
    """A row for each of the first images with an object that only the guided step finds: truth, then the models."""
    truth = source.ground_truth()
    best = {name: found_by(results, truth) for name, results in found.items()}
    others = [name for name in found if name != "sara"]
    cases = [
        annotation
        for annotation in truth["annotations"]
        if best["sara"][annotation["id"]] >= FOUND and all(best[name][annotation["id"]] < MISSED for name in others)
    ]
    images = list(dict.fromkeys(annotation["image_id"] for annotation in cases))[:count]
    places = {int(image_id): place for place, image_id in enumerate(source.image_ids)}
    rows = []
    for image_id in images:
        image = source[places[image_id]].image
        wanted = [annotation for annotation in cases if annotation["image_id"] == image_id]
        columns = [wanted] + [
            [r for r in found[name] if r["image_id"] == image_id and r["score"] >= SHOWN] for name in (*others, "sara")
        ]
        rows.append(np.hstack([overlay(image, objects, source.categories, zoom=2) for objects in columns]))
    print(f"{len(cases)} of {len(truth['annotations'])} objects are found by the guided step alone")
    if rows:
        Image.fromarray(np.vstack(rows)).quantize(128).save(path)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row for each model and choice: mean and standard deviation over seeds."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault(run["row"], []).append(run)
    kinds = {"all": "all", "huddled": "huddled", "whole": "images where all huddle", "apart": "other images"}
    head = ["model", "seeds", *(f"box AP, {kind}" for kind in kinds.values()), "mask AP, all", "mask AP, huddled"]
    columns = [*(f"bbox/{name}" for name in kinds), "segm/all", "segm/huddled"]
    rows = []
    for row, its in groups.items():
        cells = [mean_and_spread(run["ap"][column] for run in its) for column in columns]
        rows.append([row, len(its), *cells, _moved([run["log"] for run in its])])
    return markdown([*head, "IoU of positives before and after the step"], rows)


def _moved(logs: Sequence[Mapping[str, float]]) -> str:
    keys = ("refine.iou_before", "refine.iou_after")
    if not all(key in log for log in logs for key in keys):
        return ""
    return ", ".join(f"{np.mean([log[key] for log in logs]):.3f}" for key in keys)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", default=(), metavar="KEY=VALUE", help="of every run")
    args = parser.parse_args()
    runs = []
    for seed in range(args.seeds):
        found = {}
        for name in ROWS:
            trained = train(name, seed, args.out, args.settings)
            source = open_source(trained.experiment.data.val)
            log = last_metrics(args.out / f"{name}_s{seed}", ["refine.iou_before", "refine.iou_after"])
            for row, variant in variants(name, trained):
                results = detect_all(variant, source)
                ap = measure(source.ground_truth(), results)
                runs.append({"row": row, "seed": seed, "ap": ap, "log": log if row == ROWS[name] else {}})
                print(f"{row}, seed {seed}: box AP {ap['bbox/all']:.3f}, of huddled objects {ap['bbox/huddled']:.3f}")
                if row == ROWS[name] and name != FIRST:
                    found[name] = results
            (args.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
        if seed == 0:
            draw(source, found, args.out / "only_guided.png")
    (args.out / "table.md").write_text(table(runs) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
