"""``export.json``: what a program takes and gives, in words and numbers that need no jaxdet to be understood."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import jaxdet
from jaxdet.data import Category, Data
from jaxdet.data.pipeline.transforms import canvas_hw, canvas_sides
from jaxdet.evaluation.paste import LOGIT_RANGE
from jaxdet.exporting.loader import FORMAT
from jaxdet.exporting.programs import Program, named_outputs
from jaxdet.models.limits import suppression_of
from jaxdet.runtime.compiling import FREE_EARLY
from jaxdet.structures import Detections
from jaxdet.trained import Trained

WEIGHTS = "weights.npz"  #: in the folder
_MEANINGS = {
    "boxes": "x1, y1, x2, y2 in pixels of the resized image, (0, 0) its top left corner, width = x2 - x1; divide by "
    "resized / original size of each axis for pixels of the original",
    "scores": "0 to 1, largest first",
    "labels": "position in categories",
    "valid": "whether this slot holds a detection; others may hold anything",
    "masks": "bitmaps over mask_frames; pixel (i, j) is the cell of that row and column of the frame; what a value "
    "says is under masks",
    "mask_frames": "box that a bitmap covers, as boxes",
    "mask_crop": "box outside of which a mask is empty, as boxes",
    "mask_scores": "scores of the masks, where they differ from those of the boxes",
}


def describe(
    trained: Trained,
    categories: Sequence[Category],
    found: Detections,
    programs: Mapping[Program, Any],
    weights: Mapping[str, Any],
    score_threshold: float,
    sha256: Mapping[str, str],
) -> dict[str, Any]:
    """Make the content of ``export.json``.

    Args:
        trained: the model with its settings.
        categories: what its labels stand for.
        found: shapes of its detections (`programs.detections_of`).
        programs: each with its ``jax.export.Exported``.
        weights: arrays by name.
        score_threshold: below which the loader leaves detections out.
        sha256: of the files of programs and weights by their paths in the folder, by which the loader knows them again.
    """
    masks = found.masks
    return {
        "format": FORMAT,
        "jaxdet": jaxdet.__version__,
        "jax": jax.__version__,
        "model": type(trained.experiment.model).__name__,
        "step": trained.step,
        "categories": [{"id": category.id, "name": category.name} for category in categories],
        "score_threshold": score_threshold,
        "suppression": _suppression(trained.experiment.model),
        "preprocessing": _preprocessing(trained),
        "inputs": {
            "weights": "dictionary of arrays, as weights has them",
            "image": {
                "shape": ["batch", "height", "width", 3],
                "dtype": "uint8",
                "meaning": "RGB, resized, at the top left of the canvas, zero beyond; not normalised",
            },
            "true_hw": {
                "shape": ["batch", 2],
                "dtype": "float32",
                "meaning": "height and width of the resized image on the canvas; of a slot without image, those of the "
                "canvas",
            },
        },
        "outputs": {
            name: {"shape": ["batch", *array.shape[1:]], "dtype": str(array.dtype), "meaning": _MEANINGS[name]}
            for name, array in named_outputs(found).items()
        },
        "masks": masks
        and {
            "threshold": masks.threshold,
            "logits": masks.logits,
            "snapped": masks.snapped,
            "logit_range": LOGIT_RANGE,
            "meaning": "a pixel of the image asks the bitmap at its centre, bilinearly; inside is a probability from "
            "threshold on. logits: values are logits. uint8 values stand for 0 to 1, of logits for -logit_range to "
            "logit_range. snapped: frames are moved to whole pixels, see load.py",
        },
        "programs": [
            {
                "file": program.file,
                "platform": program.platform,
                "canvas": list(program.canvas),
                "batch": program.batch,
                "calling_convention_version": exported.calling_convention_version,
                "sha256": sha256[program.file],
            }
            for program, exported in programs.items()
        ],
        "compiler_options": {"cpu": FREE_EARLY},
        "weights": {
            "file": WEIGHTS,
            "sha256": sha256[WEIGHTS],
            "dtypes": {name: str(array.dtype) for name, array in weights.items()},
        },
    }


def canvases(data: Data, image: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """Heights and widths of a model's canvases, landscape and portrait, or that of images of one size."""
    if image is not None:
        return [canvas_hw(image, data)]
    short, longs = canvas_sides(data)
    return sorted({hw for long in longs for hw in ((short, long), (long, short))})


def _preprocessing(trained: Trained) -> dict[str, Any]:
    data = trained.experiment.data
    short, longs = canvas_sides(data)
    normalization = getattr(trained.experiment.model, "normalization", None)
    return {
        "colours": "RGB, 8 bits; pictures from files upright as their EXIF orientation says",
        "short_side": data.short_side,
        "long_side": data.long_side,
        "keep_ratio": data.keep_ratio,
        "canvas_short": short,
        "canvas_longs": list(longs),
        "scale": "limits are short_side for the shorter and long_side for the longer side (height is the longer one "
        "unless width > height); the scale is the largest that keeps both, sides are rounded half up, at least 1; "
        "without keep_ratio the image fills the limits",
        "resize": "bilinear without antialiasing, as cv2.INTER_LINEAR of 8 bits; load.py has it in NumPy",
        "padding": "the image lies at the top left of a canvas of canvas_short x the first of canvas_longs that has "
        "room for it, landscape or portrait as the image is, zero beyond it; the program sets the padding to the mean "
        "colour",
        "normalization": "inside the program",
        **({} if normalization is None else dataclasses.asdict(normalization)),
    }


def _suppression(model: Any) -> dict[str, Any] | None:
    """The thresholds of a model's last suppression, which are inside the program."""
    known: Any = suppression_of(model) if hasattr(type(model), "suppression_key") else None
    return known and dataclasses.asdict(known)
