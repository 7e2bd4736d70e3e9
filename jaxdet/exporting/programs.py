"""A model's prediction as a StableHLO program for one kind of device, one canvas and one batch size.

Programs are traced on this machine for devices that it need not have.  Which convolutions, divisions and loops a model
takes depends on the device (`ops.devices.backend`), so that each platform has a program of its own: one for several
platforms would have the choices of the machine that it was made on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxdet.checkpoints.tree import unflatten
from jaxdet.evaluation.inference import for_host
from jaxdet.models.detector import Detector
from jaxdet.ops.devices import portable, traced_for
from jaxdet.structures import Batch, Detections

#: Platforms as ``jax.export`` names them, and what ``jax.default_backend()`` is there.
PLATFORMS = {"cpu": "cpu", "cuda": "gpu", "rocm": "gpu", "tpu": "tpu"}


@dataclass(frozen=True)
class Program:
    """What a program is for."""

    platform: str  #: one of `PLATFORMS`
    canvas: tuple[int, int]  #: height and width
    batch: int  #: images at once

    @property
    def file(self) -> str:
        """Its path in the folder."""
        height, width = self.canvas
        return f"programs/{self.platform}-{height}x{width}-{self.batch}.stablehlo"


def trace(model: Detector, weights: Mapping[str, Any], program: Program) -> Any:
    """Trace a model's prediction.

    Args:
        model: any `Detector`.
        weights: its variables by names such as ``params/neck/...``, or their shapes: they are arguments of the program.
        program: for which device, canvas and batch.

    Returns:
        A ``jax.export.Exported`` of ``(weights, image [B, h, w, 3] uint8, true_hw [B, 2] float32)`` -> `named_outputs`.

    Raises:
        ValueError: the model cannot take such a canvas.
    """
    import jax.export

    def predict(weights: Mapping[str, Any], image: jax.Array, true_hw: jax.Array) -> dict[str, jax.Array]:
        variables = unflatten({tuple(name.split("/")): value for name, value in weights.items()})
        found: Detections = model.apply(variables, batch_of(image, true_hw), method="predict")
        return named_outputs(for_host(found))

    shapes = {name: jax.ShapeDtypeStruct(np.shape(value), value.dtype) for name, value in weights.items()}
    image = jax.ShapeDtypeStruct((program.batch, *program.canvas, 3), np.uint8)
    true_hw = jax.ShapeDtypeStruct((program.batch, 2), np.float32)
    with traced_for(PLATFORMS[program.platform]), portable():
        try:
            return jax.export.export(jax.jit(predict), platforms=[program.platform])(shapes, image, true_hw)
        except (TypeError, ValueError) as error:
            height, width = program.canvas
            raise ValueError(
                f"the model cannot be traced on a canvas of {height} x {width} pixels: {error}\nThe canvas follows "
                "from data.short_side, data.long_side and data.pad_multiple, which is 32 for most models"
            ) from error


def batch_of(image: Any, true_hw: Any) -> Batch:
    """A batch of images for prediction, which asks for pixels and sizes alone."""
    number = len(image)
    return Batch(
        image=image,
        true_hw=true_hw,
        scale=np.ones((number, 2), np.float32),
        original_hw=np.ones((number, 2), np.int32),
        index=np.arange(number, dtype=np.int32),
        valid=np.ones(number, bool),
    )


def named_outputs(found: Detections) -> dict[str, Any]:
    """The arrays of detections by the names that they have in the program, without those that there are none of."""
    masks = found.masks
    arrays = {"boxes": found.boxes, "scores": found.scores, "labels": found.labels, "valid": found.valid}
    if masks is not None:
        arrays |= {"masks": masks.values, "mask_frames": masks.frames, "mask_crop": masks.crop}
    return {name: value for name, value in (arrays | {"mask_scores": found.mask_scores}).items() if value is not None}


def detections_of(model: Detector, weights: Mapping[str, Any], canvas: tuple[int, int]) -> Detections:
    """The shapes of a model's detections in one image, as they leave the device, and how its masks are painted."""

    def predict(weights: Mapping[str, Any]) -> Detections:
        variables = unflatten({tuple(name.split("/")): value for name, value in weights.items()})
        batch = batch_of(np.zeros((1, *canvas, 3), np.uint8), np.array([canvas], np.float32))
        found: Detections = model.apply(variables, batch, method="predict")
        return for_host(found)

    found: Detections = jax.eval_shape(predict, dict(weights))
    return found
