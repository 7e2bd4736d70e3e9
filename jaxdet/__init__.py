"""jaxdet: instance segmentation in JAX.

Four verbs, what loads a checkpoint once for several of them, and the models by name::

    jaxdet.train(config, workdir="runs/mine")
    jaxdet.evaluate("runs/mine")
    jaxdet.predict("runs/mine", "photo.jpg")[0].plot("found.png")
    model = jaxdet.load("runs/mine")
    jaxdet.export("runs/mine", "exported")
    jaxdet.list_models("mask_rcnn*")
    jaxdet.build("mask_rcnn_r50_fpn", num_classes=3)

Nothing else is imported until one of them is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet.evaluation.evaluate import evaluate_checkpoint as evaluate
    from jaxdet.exporting import export
    from jaxdet.prediction import Prediction, Predictor, predict
    from jaxdet.trained import load
    from jaxdet.training import train
    from jaxdet.zoo import build, list_models

__version__ = "0.1.0"

_HOME = {
    "build": ("jaxdet.zoo", "build"),
    "evaluate": ("jaxdet.evaluation.evaluate", "evaluate_checkpoint"),
    "export": ("jaxdet.exporting", "export"),
    "list_models": ("jaxdet.zoo", "list_models"),
    "load": ("jaxdet.trained", "load"),
    "predict": ("jaxdet.prediction", "predict"),
    "Prediction": ("jaxdet.prediction", "Prediction"),
    "Predictor": ("jaxdet.prediction", "Predictor"),
    "train": ("jaxdet.training", "train"),
}

__all__ = [
    "Prediction",
    "Predictor",
    "__version__",
    "build",
    "evaluate",
    "export",
    "list_models",
    "load",
    "predict",
    "train",
]


def __dir__() -> list[str]:
    """The verbs too, which are no attributes before their first use: completion and ``dir`` ask here."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxdet' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
