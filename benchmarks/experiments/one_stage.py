"""RDSNet at small scale: masks by correlation, boxes from masks, beside RetinaNet, YOLACT's masks and CondInst.

    python -m benchmarks.experiments.one_stage --out runs/one_stage
    python -m benchmarks.experiments.one_stage --out runs/smoke --seeds 1 --settings optimizer.schedule.length=40

Small models (``small_one_stage.py``, and two-stage ones of the demo's size) learn the demo's scenes from scratch and
are tested on 200 unseen ones.  Where boxes come from is a choice at test: `BoundaryRefinement` learns beside the model
and sends no gradient into it, so that one training serves all rows of a model.

``OUT`` has a run folder for each model and seed; a finished one is not trained again.  Then ``runs.json``,
``table.md`` and, for each model with refined boxes, a picture of boxes before and after.
"""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

import jaxdet
from benchmarks.experiments import small_one_stage
from benchmarks.measure import markdown, mean_and_spread
from jaxdet.config import override
from jaxdet.configs import demo
from jaxdet.data import Source, open_source
from jaxdet.evaluation.evaluate import detect_all, score_all
from jaxdet.evaluation.results import Result
from jaxdet.experiment import Experiment
from jaxdet.models.parts.boundaries import PUBLISHED, BoundaryRefinement
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.trunk import FC2
from jaxdet.trained import Trained
from jaxdet.visualize import overlay

ONE_STAGE = {"RetinaNet": "retinanet", "RDSNet": "mbrm", "linear": "linear", "CondInst": "condinst"}
REFINED = {"boxes as regressed": "regression", "around the mask": "mask", "MBRM": "mbrm", "MBRM, published": "mbrm"}
"""Row -> ``boxes_from``; the last with the weights that RDSNet's authors released, which saw other images."""
MATCHED = 0.5
"""IoU of a detection with an object of its class, from which on its sides are compared with those of the object."""


def systems() -> dict[str, Experiment]:
    """Name -> what is trained; data and optimizer are the same in all."""
    models = {name: small_one_stage.get_config(key) for name, key in ONE_STAGE.items()}
    base = models["RDSNet"]
    return models | {name: dataclasses.replace(base, model=model) for name, model in two_stage().items()}


def two_stage() -> dict[str, Any]:
    """The demo's SBR-CNN, and a Mask R-CNN of its size."""
    sbr: Any = demo.get_config().model
    box, mask = (SingleLevel(size=size, sampling_ratio=2, finest=28.0, levels=demo.LEVELS) for size in (7, 14))
    mask_rcnn = sbr.clone(
        heads=(BoxBranch(box, BoxHead(FC2(channels=256), class_agnostic=True)),),
        stages=sbr.stages[:1],
        test_heads=None,
        parts=(MaskPrediction((MaskBranch(mask, FCN(channels=32, convs=2)),)),),
    )
    models = {"Mask R-CNN": mask_rcnn, "SBR-CNN": sbr}
    # Masks of positives are those of proposals; at test the refinement sees the masks of detections, which lie better.
    last = BoundaryRefinement(learn_from="detections")
    return {name: model.clone(parts=(*model.parts, last)) for name, model in models.items()}


def variants(trained: Trained) -> Iterator[tuple[str, Trained]]:
    """The trained model, with its boxes from each place that it can take them from."""
    parts = getattr(trained.experiment.model, "parts", ())
    places = [i for i, part in enumerate(parts) if isinstance(part, BoundaryRefinement)]
    if not places:
        yield "", trained
        return
    for row, boxes_from in REFINED.items():
        changed = override(trained.experiment, [f"model.parts.{places[0]}.boxes_from={boxes_from}"])
        variables = trained.variables
        if row.endswith("published"):
            weights = {"weights": np.asarray(PUBLISHED[0], np.float32), "bias": np.asarray(PUBLISHED[1:], np.float32)}
            variables = variables | {"params": variables["params"] | {"boundaries": weights}}
        yield row, dataclasses.replace(trained, experiment=changed, variables=variables)


def side_errors(before: Sequence[Result], after: Sequence[Result], truths: Sequence[Any]) -> np.ndarray:
    """How far sides are from those of their objects: ``[2, n, 4]`` pixels, before and after, of all matched detections.

    Both results list the same detections, so that both are matched as they were before.
    """
    pairs = []
    by_image: dict[int, list[Any]] = {}
    for truth in truths:
        if not truth.get("iscrowd"):
            by_image.setdefault(truth["image_id"], []).append(truth)
    taken: set[int] = set()
    for place in sorted(range(len(before)), key=lambda i: -before[i]["score"]):
        found = before[place]
        rivals = [
            t
            for t in by_image.get(found["image_id"], [])
            if t["category_id"] == found["category_id"] and t["id"] not in taken
        ]
        if not rivals:
            continue
        (overlaps,) = coco_mask.iou([found["bbox"]], [t["bbox"] for t in rivals], [0] * len(rivals))
        truth = rivals[int(np.argmax(overlaps))]
        if max(overlaps) >= MATCHED:
            taken.add(truth["id"])
            pairs.append([_corners(found), _corners(after[place]), _corners(truth)])
    corners = np.asarray(pairs, np.float64).reshape(-1, 3, 4)
    return np.abs(corners[:, :2] - corners[:, 2:]).swapaxes(0, 1)


def _corners(item: Any) -> np.ndarray:
    x, y, width, height = item["bbox"]
    return np.array([x, y, x + width, y + height])


def measure(name: str, seed: int, trained: Trained, source: Source, out: Path) -> list[dict[str, Any]]:
    """Scores of each variant, as data; of the first seed also pictures."""
    truths, runs, before = source.ground_truth()["annotations"], [], None
    for row, variant in variants(trained):
        found = detect_all(variant, source)
        before = found if before is None else before
        errors = side_errors(before, found, truths)[1] if row else np.zeros((0, 4))
        scores = score_all(variant, source, found).metrics
        runs.append({"system": name, "row": row, "seed": seed, "ap": scores})
        if errors.size:
            runs[-1] |= {"side_error": float(errors.mean()), "side_error_median": float(np.median(errors))}
        print(f"{name} {row}, seed {seed}: box AP {scores['bbox/AP']:.3f}, mask {scores.get('segm/AP', -1):.3f}")
        if row == "MBRM" and seed == 0:
            draw(source, before, found, out / f"{name.lower().replace(' ', '_')}_boxes.png")
    return runs


def draw(source: Source, before: Sequence[Result], after: Sequence[Result], path: Path, count: int = 6) -> None:
    """The masks of the first images with their boxes: white as they were regressed, in colour as MBRM puts them."""
    zoom, cells = 3, []
    for place in range(count):
        image_id = int(source.image_ids[place])
        shown = [i for i, r in enumerate(after) if r["image_id"] == image_id and r["score"] >= 0.4]
        picture = Image.fromarray(overlay(source[place].image, [after[i] for i in shown], source.categories, zoom=zoom))
        for i in shown:
            x1, y1, x2, y2 = zoom * _corners(before[i])
            ImageDraw.Draw(picture).rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline="white")
        cells.append(np.asarray(picture))
    rows = [np.hstack(cells[start : start + 3]) for start in range(0, count, 3)]
    Image.fromarray(np.vstack(rows)).quantize(96).save(path)


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row for each model and origin of boxes: mean and standard deviation over seeds."""
    head = ["model", "boxes", "seeds", "box AP", "box AP_s / AP_m / AP_l", "mask AP", "mask AP_s / AP_m / AP_l"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["system"], run["row"]), []).append(run)
    rows = []
    for (system, row), its in groups.items():
        cells = []
        for kind in ("bbox", "segm"):
            if f"{kind}/AP" not in its[0]["ap"]:
                cells += ["", ""]
                continue
            ap = mean_and_spread(run["ap"][f"{kind}/AP"] for run in its)
            sizes = [np.mean([run["ap"][f"{kind}/AP_{size}"] for run in its]) for size in "sml"]
            cells += [ap, " / ".join(f"{size:.3f}" for size in sizes)]
        errors = [(run["side_error"], run["side_error_median"]) for run in its if "side_error" in run]
        error = " / ".join(f"{value:.2f}" for value in np.mean(errors, axis=0)) if errors else ""
        rows.append([system, row, len(its), *cells, error])
    return markdown([*head, "error of a side in pixels, mean / median"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    names = list(systems())
    parser.add_argument("--systems", nargs="+", choices=names, default=names)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", nargs="*", default=(), metavar="KEY=VALUE", help="of every run")
    args = parser.parse_args()
    runs = []
    for name in args.systems:
        for seed in range(args.seeds):
            experiment = override(systems()[name], [f"run.seed={seed}", *args.settings])
            workdir = args.out / f"{ONE_STAGE.get(name, name.lower().replace(' ', '_'))}_s{seed}"
            jaxdet.train(experiment, workdir)
            trained = jaxdet.load(workdir)
            runs += measure(name, seed, trained, open_source(trained.experiment.data.val), args.out)
            (args.out / "runs.json").write_text(json.dumps(runs, indent=1) + "\n")
    (args.out / "table.md").write_text(table(runs) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
