"""What is traced here for another kind of device has the choices of that kind, whatever was traced before."""

import contextlib
import dataclasses
import re
from collections import Counter
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdet
from jaxdet.exporting.programs import PLATFORMS, Program, trace
from jaxdet.nn.blocks.layers import convolve
from jaxdet.ops.conv.grouped import grouped_conv
from jaxdet.ops.devices import backend, devices_of_arrays, traced_for
from jaxdet.ops.rounding import quotient
from jaxdet.ops.selection import top_k
from tests.exporting.halves import Halves
from tests.models.small import initialize, make_batch, make_rdsnet, make_targets

KINDS = ("cpu", "gpu", "tpu")


def operations(function: Any, kind: str, *shapes: tuple[int, ...]) -> Counter[str]:
    """How many operations of each name the program of a function has for a kind of device."""
    (platform,) = (name for name, its in PLATFORMS.items() if its == kind and name != "rocm")
    arguments = [jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes]
    with traced_for(kind):
        exported = jax.export.export(jax.jit(function), platforms=[platform])(*arguments)
    assert exported.platforms == (platform,)
    return Counter(re.findall(r"(?:stablehlo|chlo)\.(\w+)", exported.mlir_module()))


def strided(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA:GPU aborts where it fuses the slice with the product, so it is a convolution there."""
    return convolve(x, kernel, 2, (0, 0))


def spectral(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return convolve(x, kernel, 1, (3, 3))


def in_groups(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return grouped_conv(x, kernel, 1, (1, 1))


@pytest.mark.parametrize("order", [KINDS, KINDS[::-1]], ids=str)
def test_each_kind_has_its_own_branch(order: tuple[str, ...]) -> None:
    """The functions are the same each time, so that what jax keeps of one kind could be taken for another."""
    found: dict[str, dict[str, bool]] = {}
    for kind in order:
        found[kind] = {
            "convolution with a stride": operations(strided, kind, (1, 8, 8, 16), (1, 1, 16, 16))["convolution"] > 0,
            "direct": operations(spectral, kind, (200, 7, 7, 256), (7, 7, 256, 256))["convolution"] > 0,
            "grouped by XLA": operations(in_groups, kind, (1, 8, 8, 64), (3, 3, 4, 64))["convolution"] == 1,
            "corrected quotient": operations(quotient, kind, (5,), (5,))["bitcast_convert"] > 0,
        }
    assert set(found["cpu"].values()) == {False}
    assert set(found["gpu"].values()) == set(found["tpu"].values()) == {True}


def test_models_ask_for_the_device_of_the_program() -> None:
    """And not for that of this process, which an exported program need not have."""
    package = Path(jaxdet.__file__).parent
    files = [file for part in ("ops", "nn", "models") for file in (package / part).rglob("*.py")]
    assert [file.name for file in files if "default_backend()" in file.read_text()] == ["devices.py"]


def test_compiled_here_is_for_here() -> None:
    """The devices of this process count again afterwards, and several of them are none of an exported program's."""
    here = backend()
    with traced_for("tpu"):
        assert (backend(), devices_of_arrays()) == ("tpu", 1)
        with traced_for("gpu"):
            assert backend() == "gpu"
        assert backend() == "tpu"
        with traced_for("tpu", 256):
            assert devices_of_arrays() == 256
    assert (backend(), devices_of_arrays()) == (here, jax.device_count())


def test_several_devices_here_are_none_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def program(devices: int) -> Counter[str]:
        monkeypatch.setattr(jax, "device_count", lambda: devices)
        return operations(lambda x: top_k(x, 3), "cpu", (9,))

    assert program(8) == program(1)
    with monkeypatch.context() as patch:
        patch.setattr("tests.exporting.test_programs.traced_for", lambda _: contextlib.nullcontext())
        assert program(8) != program(1), "the judge tells them apart"


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_model_for_elsewhere(platform: str) -> None:
    """No calls into Python, and none of what only this machine has; every weight is an argument."""
    model = make_rdsnet()
    variables = initialize(model, make_batch([make_targets(0)]))
    weights = {"/".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    exported = trace(model, weights, Program(platform, (64, 96), 2))
    text = exported.mlir_module()
    assert exported.platforms == (platform,)
    assert "custom_call" not in text
    assert "callback" not in text
    assert len(exported.in_avals) == len(weights) + 2
    (outputs,) = (jax.tree.unflatten(exported.out_tree, exported.out_avals),)
    assert {"boxes", "scores", "labels", "valid", "masks", "mask_frames", "mask_crop"} == set(outputs)
    assert (outputs["boxes"].shape, outputs["labels"].dtype) == ((2, 20, 4), jnp.int32)


class Odd(Halves):
    """Cannot take canvases of odd sides."""

    def apply(self, variables: Any, batch: Any, *, method: str) -> Any:
        found = super().apply(variables, batch, method=method)
        half = nn.avg_pool(jnp.asarray(batch.image, jnp.float32), (2, 2), (2, 2))
        doubled = half.repeat(2, 1).repeat(2, 2) - batch.image
        return dataclasses.replace(found, scores=found.scores + doubled.sum())


def test_a_canvas_that_the_model_cannot_take() -> None:
    weights = {"params/confidence": np.float32(1)}
    trace(Odd(), weights, Program("cpu", (32, 64), 1))
    with pytest.raises(ValueError, match=r"canvas of 33 x 64 pixels: .*(?s:.)*data\.pad_multiple"):
        trace(Odd(), weights, Program("cpu", (33, 64), 1))
