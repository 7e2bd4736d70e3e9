"""jaxdet: two-stage instance segmentation in JAX.

Three verbs, and what loads a checkpoint once for several of them::

    jaxdet.train(config, workdir="runs/mine")
    jaxdet.evaluate("runs/mine")
    jaxdet.predict("runs/mine", "photo.jpg")
    model = jaxdet.load("runs/mine")

Nothing else is imported until one of them is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet.eval_lib import evaluate_checkpoint as evaluate
    from jaxdet.predict_lib import predict
    from jaxdet.train_lib import train
    from jaxdet.trained import load

__version__ = "0.1.0"

_HOME = {
    "evaluate": ("jaxdet.eval_lib", "evaluate_checkpoint"),
    "load": ("jaxdet.trained", "load"),
    "predict": ("jaxdet.predict_lib", "predict"),
    "train": ("jaxdet.train_lib", "train"),
}

__all__ = ["__version__", "evaluate", "load", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxdet' has no attribute {name!r}; it has {', '.join(__all__)}")
    module, attribute = _HOME[name]
    return getattr(importlib.import_module(module), attribute)
