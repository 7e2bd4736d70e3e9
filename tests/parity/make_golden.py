"""Makes the compact golden files of this folder from a folder of complete ones.

    python tests/parity/make_golden.py FOLDER [MODEL ...]

Large tensors keep every n-th element (``key@sub``, with ``key@meta`` = [n, *shape]); names and norms of gradients
and of parameters after five steps keep what the tests compare.  Inputs stay exact.  Weights are functions of their
names, so that most models have the same features: what equals Mask R-CNN's is kept in Mask R-CNN's file alone.
"""

import argparse
import re
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent / "golden"
FIRST = "mask_rcnn_r50"
MODELS = (
    FIRST,
    "faster_rcnn_r50",
    "cascade_mask_rcnn_r50",
    "groie1_faster",
    "groie1_mask",
    "groie2_faster",
    "htc_r50",
    "ms_rcnn_r50",
    "r3_4l2h_rect_nlb",
    "r3_advanced",
    "r3_deeper",
    "r3_fcc7x7",
    "r3_fcc7x7_nlb",
    "r3_fcc7x7_nlb_nla",
    "r3_fcc_rect",
    "r3_maskiou_fcc7x7",
    "r3_maskiou_orig",
    "r3_maskiou_rect",
    "r3_naive",
    "r3_rect_nlb",
    "r3_rect_nlb_nomaskloop",
    "sbr_cnn",
    "retinanet_r50",
    "htc_semantic_r50",
    "condinst_r50",
    "rdsnet_r50",
    "rdsnet_refine_r50",
    "yolact_r50",
    "mr_rcnn_r50",
    "gcnet_r4",
    "sbr_cnn_gcnet",
    "dcn_c3c5",
    "mdcn_c3c5",
    "grid_rcnn_r50",
    "sbr_cnn_dcn",
    "mask_rcnn_x101_32x8d",
    "mask_rcnn_x101_32x4d",
)
WITH_FEATURES = (FIRST, "faster_rcnn_r50", "retinanet_r50", "condinst_r50", "rdsnet_r50", "yolact_r50", "mr_rcnn_r50")
SAMPLES = 499
"""Elements kept of a tensor; prime, so that a step is seldom a multiple of a row."""
WHOLE = re.compile(
    r"test(_fixedprop)?/(?!mask_area_extent)|train(_\w+)?/.*loss|train(_\w+)?/grad_(names|norms)$"
    r"|test_(alpha0|alpha05|cls|rm|detections)/(boxes|labels)$"
    r"|test_rescale0/(det_bboxes|det_labels|mask_area|mbrm_boxes)"
)
TENSORS = re.compile(r"backbone/|fpn/|rpn/|head/|grid/|semantic/|proto/|(loop\d+|mask)/(?!rois|iou_labels)")
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
    "blocks.gcb",
    "blocks.dcn",
    "dcn_op/",
    "levels/",
    "loss/",
)

SA_ROI_ALIGN = (
    "sa/rois_unit",
    "sa/p28x28_sr0_aligned1_out7x7_scale1.0/",
    "sa/p28x28_sr2_aligned1_out7x7_scale0.25/",
    "sa/p10x18_sr2_aligned0_out3x5_scale1.0/",
    "sa/p2x3_sr0_aligned1_out3x5_scale1.0/",
    "levels/rois",
    "levels/level",
    "levels/sr0/",
)
"""What is kept of Shape-aware RoIAlign: both rules for samples, with the shift and without, and all levels."""

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


def compact_model(golden: Arrays, sgd: Arrays, shared: Arrays) -> Arrays:
    """What the tests of one model compare, without those tensors that equal ``shared`` ones."""
    out: Arrays = {}
    for key in keys_of(golden):
        if WHOLE.match(key):
            out[key] = golden[key]
        elif TENSORS.match(key) and not of_spare_head(golden, key):
            thinned = thin(golden, key, SAMPLES)
            equal = all(name in shared and np.array_equal(shared[name], value) for name, value in thinned.items())
            out |= {} if equal else thinned
    return out | {f"sgd/{key}": value for key, value in sgd.items()}


def of_spare_head(golden: Arrays, key: str) -> bool:
    """Whether a mask is by a head of no step: the reference's cascade has as many again as it uses."""
    head = re.match(r"mask/pred(\d+)", key)
    return head is not None and f"loop{head[1]}/cls" not in golden


def compact_ops(golden: Arrays) -> Arrays:
    """The operators' numbers that tests/ops compares."""
    out: Arrays = {}
    for key in keys_of(golden):
        if key.startswith(OPS):
            limit = 2000 if key.startswith(("groie", "blocks")) or "out14x14" in key else 20000
            out |= thin(golden, key, limit)
    return out


def compact_sa_roi_align(golden: Arrays) -> Arrays:
    """Crops and gradients of Shape-aware RoIAlign."""
    out: Arrays = {}
    for key in keys_of(golden):
        if key.startswith(SA_ROI_ALIGN):
            out |= thin(golden, key, SAMPLES)
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
    write("sa_roi_align", compact_sa_roi_align(read(args.folder / "golden_mr_rcnn_ops.npz")))
    first = compact_model(read(args.folder / f"golden_{FIRST}.npz"), {}, shared={})
    for model in args.models:
        if own := read(args.folder / f"inputs_{model}.npz"):
            if "gt_masks" in own:
                own["gt_masks"] = np.packbits(own["gt_masks"], axis=-1)
            write(f"inputs_{model}", own)
        golden, sgd = (read(args.folder / f"{kind}_{model}.npz") for kind in ("golden", "golden_sgd5"))
        write(model, compact_model(golden, sgd, shared={} if model in WITH_FEATURES else first))


if __name__ == "__main__":
    main()
