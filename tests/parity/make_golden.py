"""Makes the compact golden files of this folder from a folder of complete ones.

    python tests/parity/make_golden.py FOLDER [MODEL ...]

Large tensors keep every n-th element (``key@sub``, with ``key@meta`` = [n, *shape]); names and norms of gradients
and of parameters after five steps keep what the tests compare.  Inputs stay exact.
"""

import argparse
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "golden"
MODELS = ("mask_rcnn_r50", "faster_rcnn_r50")
SAMPLES = 499
"""Elements kept of a tensor; prime, so that a step is seldom a multiple of a row."""
WHOLE = ("test/", "test_fixedprop/", "train/loss_", "train/total_loss", "train/grad_names", "train/grad_norms")
TENSORS = ("backbone/", "fpn/", "rpn/cls", "rpn/reg", "rpn/proposals", "loop0/", "mask/")
OPS = (
    "roi_align/",
    "nms/",
    "mcnms/",
    "coder/",
    "anchors/",
    "assign/",
    "mask_target/",
    "maskiou/",
    "groie.",
    "blocks.ga7/",
    "blocks.ga14/",
    "blocks.nl",
    "levels/",
    "loss/",
)

Arrays = dict[str, np.ndarray]


def thin(golden: Arrays, key: str, limit: int) -> Arrays:
    """At most ``limit`` elements of a tensor, whole if it has no more; ``golden`` may hold it thinned already."""
    if key in golden:
        values, step, shape = golden[key].reshape(-1), 1, golden[key].shape
    else:
        values, (step, *shape) = golden[f"{key}@sub"], golden[f"{key}@meta"].tolist()
    factor = -(-len(values) // limit)
    if step * factor == 1:
        return {key: golden[key]}
    return {f"{key}@sub": values[::factor], f"{key}@meta": np.array([step * factor, *shape])}


def keys_of(golden: Arrays) -> list[str]:
    """Names without the suffixes of thinned tensors."""
    return sorted({key.partition("@")[0] for key in golden})


def compact_model(golden: Arrays, sgd: Arrays) -> Arrays:
    """What the tests of one model compare."""
    out: Arrays = {}
    for key in keys_of(golden):
        if key.startswith(TENSORS) and not key.endswith("/rois"):
            out |= thin(golden, key, SAMPLES)
        elif key.startswith(WHOLE) and not key.endswith("/mask_area_extent"):
            out[key] = golden[key]
    return out | {f"sgd/{key}": value for key, value in sgd.items()}


def compact_ops(golden: Arrays) -> Arrays:
    """The operators' numbers that tests/ops compares."""
    out: Arrays = {}
    for key in keys_of(golden):
        if key.startswith(OPS):
            limit = 2000 if key.startswith(("groie", "blocks")) or "out14x14" in key else 20000
            out |= thin(golden, key, limit)
    return out


def read(path: Path) -> Arrays:
    """All arrays of an npz file, none if there is no such file."""
    return dict(np.load(path)) if path.exists() else {}


def write(name: str, arrays: Arrays) -> None:
    """An npz file of this folder."""
    path = HERE / f"{name}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="*", default=MODELS)
    args = parser.parse_args()
    HERE.mkdir(exist_ok=True)
    inputs = read(args.folder / "inputs.npz")
    inputs["gt_masks"] = np.packbits(inputs["gt_masks"], axis=-1)
    write("inputs", inputs)
    write("ops", compact_ops(read(args.folder / "golden_ops.npz")))
    for model in args.models:
        sgd = read(args.folder / f"golden_sgd5_{model}.npz")
        write(model, compact_model(read(args.folder / f"golden_{model}.npz"), sgd))


if __name__ == "__main__":
    main()
