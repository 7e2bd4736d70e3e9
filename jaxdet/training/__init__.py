"""Training: an experiment and a work directory in, a trained model with its COCO numbers out."""

from jaxdet.training.run import train

__all__ = ["train"]
