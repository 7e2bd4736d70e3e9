"""Heads on images that are split over devices: crops stay where they are, and the numbers are those of one device."""

import re
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxdet.models.parts.masks import MaskPrediction, MaskScoring
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.blocks import layers
from jaxdet.nn.blocks.context import NonLocal
from jaxdet.nn.extractors.groie import ConvReLU, GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.score import MaskIoUHead
from jaxdet.nn.heads.trunk import FCC
from jaxdet.ops.conv import spectral
from jaxdet.runtime.mesh import data_mesh
from jaxdet.structures import Features, Proposals
from tests.devices import run_on_devices
from tests.models.small import make_box_branch, make_mask_branch, make_model, make_targets

IMAGES, CHANNELS = 4, 8


def sbr_like() -> TwoStage:
    """A head with all kinds of layers that convolve crops by large kernels."""
    extractor = GRoIE(size=7, pre=ConvReLU(5), post=NonLocal(7), levels=(2, 3))
    head = make_box_branch(extractor=extractor, head=BoxHead(FCC((CHANNELS, CHANNELS)), class_agnostic=True))
    masks = MaskPrediction((make_mask_branch(extractor=GRoIE(size=14, pre=ConvReLU(1), levels=(2, 3))),))
    return make_model(heads=(head,), parts=(masks, MaskScoring(MaskIoUHead(FCC((CHANNELS, CHANNELS)), CHANNELS))))


def inputs() -> Any:
    """Pyramid, proposals, ground truth and sizes of images of their own; the last one shows nothing."""
    noise = np.random.default_rng(0)
    features = {
        level: noise.normal(size=(IMAGES, 64 >> level, 64 >> level, CHANNELS)).astype(np.float32) for level in (2, 3)
    }
    kinds = ["objects"] * (IMAGES - 1) + ["nothing"]
    targets = jax.tree.map(lambda *leaves: np.stack(leaves), *(make_targets(i, kind) for i, kind in enumerate(kinds)))
    boxes = np.tile(targets.boxes[:1, :3], (IMAGES, 7, 1))[:, :20] + noise.uniform(-6, 6, (IMAGES, 20, 4))
    proposals = Proposals(boxes.astype(np.float32), np.ones((IMAGES, 20), np.float32), np.ones((IMAGES, 20), bool))
    return Features(features), proposals, targets, np.tile(np.float32([60, 56]), (IMAGES, 1))


def compiled(model: TwoStage, number: int) -> tuple[Any, Any]:
    """Program and arguments of losses and gradients on so many devices."""
    mesh = data_mesh(jax.devices()[:number])
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), *inputs(), jax.random.key(1), method="stage_losses"))
    noise = np.random.default_rng(1)
    weights = jax.tree.map(lambda leaf: noise.normal(size=leaf.shape, scale=0.1).astype(np.float32), shapes)

    def total(weights: Any, batch: Any) -> tuple[jax.Array, Any]:
        terms, metrics = model.apply(weights, *batch, jax.random.key(1), method="stage_losses")
        return sum(terms.values()), (terms, metrics)

    step = jax.jit(jax.value_and_grad(total, has_aux=True), out_shardings=everywhere)
    arguments = jax.device_put(weights, everywhere), jax.device_put(inputs(), split)
    return step.lower(*arguments).compile(), arguments


def moved(program: Any) -> list[str]:
    """The arrays that the program brings from device to device; sums over devices are left out."""
    return re.findall(r"= \(?(\w+\[[\d,]*\])\S* (?:all-gather|all-to-all|collective-permute)", program.as_text())


def test_nothing_leaves_its_device_and_the_numbers_are_those_of_one() -> None:
    assert run_on_devices(__file__, IMAGES) == ["nothing", "equal"]


def compare_devices() -> None:
    layers.SPECTRAL_GAIN, spectral.MIN_CHUNK, spectral.CHUNK_BYTES = 0.0, 4, 1  # spectral everywhere, in chunks
    many, split = compiled(sbr_like(), IMAGES)
    print(*moved(many) or ["nothing"])
    one, whole = compiled(sbr_like(), 1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), many(*split), one(*whole))
    print("equal")


if __name__ == "__main__":
    compare_devices()
