"""Prediction: a checkpoint applied to images from files, folders, addresses or memory."""

from jaxdet.prediction.files import RESULTS, Report, predict_files
from jaxdet.prediction.found import Prediction
from jaxdet.prediction.images import find_images
from jaxdet.prediction.predictor import Predictor, predict

__all__ = ["RESULTS", "Prediction", "Predictor", "Report", "find_images", "predict", "predict_files"]
