"""What `run.reduce_dtype=bfloat16` costs: gradients of eight devices added up in bfloat16, on the demo's scenes.

    python -m benchmarks.experiments.narrow_sums --out runs/narrow_sums
    python -m benchmarks.experiments.narrow_sums --out runs/smoke --seeds 1 --steps 20

A Mask R-CNN of the demo's size computes in bfloat16 on eight devices of a CPU, an image each.  It is trained from
several seeds with sums in either dtype.  Gradients themselves cannot be compared: another last bit is another sample of
proposals.

``OUT`` has a run folder for each training; a finished one is not trained again.  Then ``table.md``.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import jax

import jaxdet
from benchmarks.experiments.one_stage import two_stage
from benchmarks.measure import markdown, mean_and_spread
from jaxdet.config import override
from jaxdet.configs import demo
from jaxdet.experiment import Experiment

DEVICES = 8
SUMS = ("float32", "bfloat16")


def experiment(seed: int, steps: int) -> Experiment:
    """Mask R-CNN on the demo's scenes, an image a device, computed in bfloat16."""
    base = demo.get_config()
    mask_rcnn = two_stage()["Mask R-CNN"]
    drops = ",".join(str(steps * part // 20) for part in (6, 13, 17, 19))
    return override(
        dataclasses.replace(base, model=mask_rcnn.clone(parts=mask_rcnn.parts[:1])),
        [f"run.seed={seed}", f"optimizer.schedule.length={steps}", f"optimizer.schedule.drops={drops}",
         f"data.batch_size={DEVICES}", "data.val.count=100", "model.dtype=bfloat16"],
    )  # fmt: skip


def scores(trained: Experiment, out: Path) -> dict[str, float]:
    """Train, and return what the validation scenes say."""
    jaxdet.train(trained, out)
    found: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    found: dict[str, list[dict[str, float]]] = {dtype: [] for dtype in SUMS}
    for seed in range(args.seeds):
        whole = experiment(seed, args.steps)
        for dtype in SUMS:
            out = args.out / f"{dtype}_s{seed}"
            found[dtype].append(scores(override(whole, [f"run.reduce_dtype={dtype}"]), out))
    rows = [
        [dtype, args.seeds, *(mean_and_spread(run[f"{kind}/AP"] for run in runs) for kind in ("bbox", "segm"))]
        for dtype, runs in found.items()
    ]
    table = markdown(["sums of gradients", "seeds", "box AP", "mask AP"], rows)
    (args.out / "table.md").write_text(table + "\n")
    print(table)


if __name__ == "__main__":
    main()
