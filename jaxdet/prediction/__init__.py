"""Prediction: a checkpoint applied to images from files, folders, addresses or memory, and to videos."""

from jaxdet.evaluation.augmented import TestTimeAugmentation
from jaxdet.prediction.files import RESULTS, Report, predict_files
from jaxdet.prediction.found import Prediction
from jaxdet.prediction.images import find_images
from jaxdet.prediction.predictor import Predictor, predict
from jaxdet.prediction.video import frames, is_video, predict_video

__all__ = [
    "RESULTS",
    "Prediction",
    "Predictor",
    "Report",
    "TestTimeAugmentation",
    "find_images",
    "frames",
    "is_video",
    "predict",
    "predict_files",
    "predict_video",
]
