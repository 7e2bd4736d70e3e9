"""Data: sources of COCO-format records, and the batches made of them.

Nothing is imported until it is used: configs need only the settings, and worker processes need no jax.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdet.data.images import load_image
    from jaxdet.data.pipeline.loaders import BatchIterator, eval_batches, image_batch, single_batch, train_batches
    from jaxdet.data.records import Annotation, Category, Record, Source
    from jaxdet.data.scenes.write import write_scenes
    from jaxdet.data.settings import (
        CocoFolder,
        CopyPaste,
        Data,
        Expand,
        LargeScaleJitter,
        MinIoUCrop,
        Mosaic,
        OwnAugmentation,
        OwnSource,
        PhotometricDistortion,
        Scenes,
        ShortSide,
        SourceSettings,
        Tfds,
    )
    from jaxdet.data.sources.listed import listed_source
    from jaxdet.data.sources.open import open_source

#: Which module of this package defines a name.
_HOME = {
    "load_image": "images",
    "BatchIterator": "pipeline.loaders",
    "eval_batches": "pipeline.loaders",
    "image_batch": "pipeline.loaders",
    "single_batch": "pipeline.loaders",
    "train_batches": "pipeline.loaders",
    "Annotation": "records",
    "Category": "records",
    "Record": "records",
    "Source": "records",
    "write_scenes": "scenes.write",
    "CocoFolder": "settings",
    "CopyPaste": "settings",
    "Data": "settings",
    "Expand": "settings",
    "LargeScaleJitter": "settings",
    "MinIoUCrop": "settings",
    "Mosaic": "settings",
    "OwnAugmentation": "settings",
    "OwnSource": "settings",
    "PhotometricDistortion": "settings",
    "Scenes": "settings",
    "ShortSide": "settings",
    "SourceSettings": "settings",
    "Tfds": "settings",
    "listed_source": "sources.listed",
    "open_source": "sources.open",
}

__all__ = [
    "Annotation",
    "BatchIterator",
    "Category",
    "CocoFolder",
    "CopyPaste",
    "Data",
    "Expand",
    "LargeScaleJitter",
    "MinIoUCrop",
    "Mosaic",
    "OwnAugmentation",
    "OwnSource",
    "PhotometricDistortion",
    "Record",
    "Scenes",
    "ShortSide",
    "Source",
    "SourceSettings",
    "Tfds",
    "eval_batches",
    "image_batch",
    "listed_source",
    "load_image",
    "open_source",
    "single_batch",
    "train_batches",
    "write_scenes",
]


def __dir__() -> list[str]:
    """All names, also those that are no attributes before their first use: completion and ``dir`` ask here."""
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'jaxdet.data' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"jaxdet.data.{_HOME[name]}"), name)
