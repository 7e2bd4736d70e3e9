"""Augmentations of one's own (``data.augment``): a record becomes another, before anything is drawn for its view."""

import numpy as np

from jaxdet.data.pipeline.transforms import canvas_hw
from jaxdet.data.records import Annotation, Record
from jaxdet.data.settings import Data, OwnAugmentation


def augmented(record: Record, data: Data, rng: np.random.Generator) -> Record:
    """Apply the augmentations of ``data.augment`` that are not jaxdet's, in their order.

    Args:
        record: an image of the training set, perhaps mixed with others.
        data: settings.
        rng: for all draws.

    Raises:
        ValueError: an augmentation returns what is no record, or one of another canvas.
    """
    for augmentation in data.augment:
        if isinstance(augmentation, OwnAugmentation):
            record = _checked(augmentation, record, augmentation.augmented(record, rng), data)
    return record


def _checked(augmentation: OwnAugmentation, before: Record, after: object, data: Data) -> Record:
    where = f"data.augment, {type(augmentation).__name__}.augmented, image {before.name}"
    if not isinstance(after, Record):
        raise ValueError(f"{where}: expected a Record, got {type(after).__name__}; dataclasses.replace makes one")
    image = after.image
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.shape} {image.dtype}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"{where}: expected image [H, W, 3] uint8 RGB, got {got}")
    # All images of a batch have one canvas, which is planned from the stored sizes before any image is read.
    canvas, planned = (canvas_hw((each.shape[0], each.shape[1]), data) for each in (image, before.image))
    if canvas != planned:
        raise ValueError(
            f"{where}: expected an image of the same canvas, which is {planned[0]} x {planned[1]}, got "
            f"{image.shape[0]} x {image.shape[1]} pixels, whose canvas is {canvas[0]} x {canvas[1]}"
        )
    if not all(isinstance(annotation, Annotation) for annotation in after.annotations):
        raise ValueError(f"{where}: expected annotations that are Annotation, got {after.annotations!r:.80}")
    return after
