"""Evaluation: a model over a data source, on any number of devices, to COCO's numbers."""

from jaxdet.eval_lib.checkpoint import detect_all, evaluate_checkpoint, open_checkpoint
from jaxdet.eval_lib.detect import Progress, detect, evaluate, image_of, predict_batch, results_of

__all__ = [
    "Progress",
    "detect",
    "detect_all",
    "evaluate",
    "evaluate_checkpoint",
    "image_of",
    "open_checkpoint",
    "predict_batch",
    "results_of",
]
