"""How far a model's outputs are from golden ones: a figure for each group, and the bound it has to keep."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"

FEATURE = 1e-3  #: largest difference of a tensor, in standard deviations of the golden one
LOSS = 5e-4  #: relative difference of a loss
GRADIENT = 5e-3  #: relative difference of a gradient's norm
MATCHED = 0.98  #: share of golden detections with a partner
STEPS_LOSS = 3e-3  #: difference of a loss during five steps, as a share of the largest that it is in them
STEPS_NORM = 5e-4  #: relative difference of a parameter's norm after them
TENSORS = re.compile(r"(backbone|fpn|rpn|head|semantic|proto|loop\d+|mask)/")  #: what is compared element by element
NOT_COMPARED = re.compile(r"rpn/proposals|mask/iou_labels|.*/rois")

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One comparison: what, how far apart (or, for detections, which share has no partner), and what is allowed."""

    name: str
    error: float
    bound: float

    def __str__(self) -> str:
        return f"{self.name}: {self.error:.3g} (bound {self.bound:g})"

    @property
    def holds(self) -> bool:
        """False for NaN too."""
        return self.error <= self.bound


def load(name: str) -> Arrays:
    """A compact golden file."""
    return dict(np.load(GOLDEN / f"{name}.npz"))


def load_inputs(model: str = "") -> Arrays:
    """The inputs that the golden models saw; some have a few of their own beside the common ones."""
    inputs = load("inputs")
    if (GOLDEN / f"inputs_{model}.npz").exists():
        inputs |= load(f"inputs_{model}")
    inputs["gt_masks"] = np.unpackbits(inputs["gt_masks"], axis=-1, count=inputs["image"].shape[-1])
    return inputs


def same_elements(golden: Arrays, key: str, ours: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The stored values of a tensor, flat, and our values of the same elements.  AssertionError on another shape."""
    if key in golden:
        step, shape, values = 1, golden[key].shape, golden[key]
    else:
        (step, *shape), values = golden[f"{key}@meta"].tolist(), golden[f"{key}@sub"]
    assert tuple(ours.shape) == tuple(shape), f"{key} has shape {ours.shape}, expected {tuple(shape)}"
    return values.reshape(-1), np.asarray(ours).reshape(-1)[::step]


def relative(ours: Any, golden: Any, floor: Any = 1e-6) -> float:
    """Largest difference, relative to the golden value or the floor, which may be one for each value."""
    ours, golden = np.asarray(ours, np.float64), np.asarray(golden, np.float64)
    return float(np.max(np.abs(ours - golden) / np.maximum(np.abs(golden), floor)))


def tensors(golden: Arrays, ours: Arrays) -> list[Row]:
    """Features and head outputs, a row for each group with its worst tensor."""
    errors: dict[str, dict[str, float]] = defaultdict(dict)
    for key in sorted({key.partition("@")[0] for key in golden}):
        if (group := TENSORS.match(key)) and not NOT_COMPARED.fullmatch(key):
            want, have = same_elements(golden, key, ours[key])
            errors[group[1]][key] = float(np.abs(have - want).max() / want.std())
    worst = (max(group, key=group.__getitem__) for group in errors.values())
    return [Row(f"tensor {key}", errors[key.partition("/")[0]][key], FEATURE) for key in worst]


def detections(golden: Arrays, ours: Arrays, prefix: str, hw: tuple[int, int]) -> Row:
    """Share of golden detections without a partner: same class, box, scores and, for the best ones, mask."""
    want, have = golden[f"{prefix}/boxes"], np.asarray(ours[f"{prefix}/boxes"])
    same = golden[f"{prefix}/labels"][:, None] == ours[f"{prefix}/labels"][None]
    scored = np.abs(want[:, None, 4:] - have[None, :, 4:]).max(-1) < 2e-3  # one score, or also that of the mask
    # Random weights give boxes without area, whose IoU is 0 even with themselves; these are alike by their corners.
    alike = (_iou(want, have) > 0.98) | (np.abs(want[:, None, :4] - have[None, :, :4]).max(-1) < 0.05)
    fits = same & alike & scored
    matched = fits.any(1)
    for row, bits in zip(
        golden.get(f"{prefix}/top12_index", ()), golden.get(f"{prefix}/top12_packbits", ()), strict=True
    ):
        mask = np.unpackbits(bits, count=hw[0] * hw[1]).reshape(hw).astype(bool)
        partner = ours[f"{prefix}/masks"][fits[row].argmax()]
        matched[row] &= (mask & partner).sum() >= 0.97 * (mask | partner).sum()  # two empty masks are equal
    return Row(f"{prefix} detections unmatched", float(1 - matched.mean()), 1 - MATCHED)


def resized(golden: Arrays, ours: Arrays) -> list[Row]:
    """RDSNet: share of golden detections without a partner, and of golden masks that have another area."""
    boxes = golden.get("test_rescale0/mbrm_boxes", golden["test_rescale0/det_bboxes"])
    same = golden["test_rescale0/det_labels"][:, None] == ours["resized/labels"][None]
    near = np.abs(boxes[:, None, :4] - ours["resized/boxes"][None, :, :4]).max(-1)
    scored = np.abs(boxes[:, None, 4] - ours["resized/boxes"][None, :, 4]) < 2e-3
    fits = same & scored & (near < 0.05)
    areas = np.abs(golden["test_rescale0/mask_area"][:, None] - ours["resized/mask_area"][None]) <= 2
    return [
        Row("detections unmatched", float(1 - fits.any(1).mean()), 1 - MATCHED),
        Row("detections with another mask", float(1 - (fits & areas).any(1).mean()), 1 - MATCHED),
    ]


def training(golden: Arrays, ours: Arrays, prefix: str = "train") -> list[Row]:
    """Every loss, and the norm of every parameter's gradient."""
    losses = [key for key in golden if key.startswith(f"{prefix}/") and "loss" in key]
    rows = [Row(key, relative(np.sum(ours[key]), np.sum(golden[key])), LOSS) for key in losses]
    norms = dict(zip(golden[f"{prefix}/grad_names"].tolist(), golden[f"{prefix}/grad_norms"], strict=True))
    norms = {name: norm for name, norm in norms.items() if norm >= 0}  # negative: nothing reads that parameter
    assert set(ours[f"{prefix}/grad_norms"]) == set(norms), "other parameters are trained"
    floor = 1e-4 * float(np.linalg.norm(list(norms.values())))
    errors = {name: relative(ours[f"{prefix}/grad_norms"][name], norm, floor) for name, norm in norms.items()}
    worst = max(errors, key=errors.__getitem__)
    return [*rows, Row(f"gradient norm of {worst}", errors[worst], GRADIENT)]


def steps(golden: Arrays, ours: Arrays) -> list[Row]:
    """Losses during five optimizer steps, and the norm of every parameter after them.

    A loss is compared on the scale that it has in these steps.  That of mask IoU falls from .64 to .05, and its targets
    are overlaps of masks that are cut at a half: an image that differs by a ten-millionth moves its last value by 1 %.
    """
    columns = [list(ours["loss_names"]).index(name) for name in golden["sgd/loss_names"].tolist()]
    scale = np.maximum(np.abs(golden["sgd/losses"]).max(0), 1e-3)
    losses = relative(np.asarray(ours["losses"])[:, columns], golden["sgd/losses"], scale)
    norms = dict(zip(golden["sgd/param_names"].tolist(), golden["sgd/param_norms_after"], strict=True))
    errors = {name: relative(ours["param_norms_after"][name], norm) for name, norm in norms.items()}
    worst = max(errors, key=errors.__getitem__)
    return [
        Row("losses of five steps", losses, STEPS_LOSS),
        Row(f"norm after them: {worst}", errors[worst], STEPS_NORM),
    ]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    shared = np.prod(np.maximum(high - low, 0), -1)
    areas = [np.prod(x[:, 2:4] - x[:, :2], -1) for x in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
