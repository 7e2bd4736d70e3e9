"""In which dtype devices add up gradients of layers that compute in bfloat16."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractMesh, AxisType

from jaxdet.config import load_config
from jaxdet.experiment import Run
from jaxdet.nn.backbones.convnext import _Block
from jaxdet.nn.blocks.attention import Attention
from jaxdet.nn.blocks.context import GlobalContext, NonLocal
from jaxdet.nn.blocks.deform import DeformConv
from jaxdet.nn.blocks.layers import BatchNorm, Conv, GroupNorm, Linear
from jaxdet.nn.heads.codes import read_codes
from jaxdet.nn.heads.dense import FCOSHead
from jaxdet.nn.heads.grid import GridHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.ops.devices import split_over
from jaxdet.runtime.mesh import data_mesh, layout_of, replicated_key, split_batch
from jaxdet.structures import Batch
from jaxdet.training.state import init_state
from jaxdet.training.step import step_of_run
from tests.devices import run_on_devices
from tests.nn.blocks import random_variables
from tests.training.stub import batch_of


class Few(nn.Module):
    """A sum over what a few layers make of images, in bfloat16."""

    @nn.compact
    def __call__(self, batch: Batch) -> jax.Array:
        image = (jnp.asarray(batch.image, jnp.float32) / 128 - 1).astype(jnp.bfloat16)
        x = nn.relu(BatchNorm()(Conv(4, 3, 4)(image)))
        return jnp.square(Linear(3)(x.reshape(len(x), -1)).astype(jnp.float32)).mean()

    def losses(self, batch: Batch, key: jax.Array) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        return {"loss_sum": self(batch)}, {}

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        return False


class Every(nn.Module):
    """What layers of each kind make of maps ``[N, 8, 8, 8]``."""

    @nn.compact
    def __call__(self, x: jax.Array) -> Any:
        x = GroupNorm(groups=2)(BatchNorm(frozen=False)(DeformConv(8, kind="v2")(Conv(8, 3, groups=4)(x))))
        x = _Block()(Attention(heads=2)(GlobalContext()(NonLocal(3)(x))))
        dense, mask = FCOSHead(channels=8, convs=1, groups=2, code=4)(x, 3), FCN(channels=8, convs=1)
        assert dense.codes is not None
        codes = read_codes([dense.codes], jnp.zeros((len(x), 5), jnp.int32)), dense.codes.everywhere()
        labels = jnp.zeros(len(x), jnp.int32)
        return dense.logits, dense.deltas, codes, mask(x, 3), mask.classify(x, 3, labels), GridHead(2, 4, 1, 2, 1)(x)


def casts_of(program: Any, parameters: int) -> list[tuple[int, ...]]:
    """Shapes of what is cast to bfloat16 and made of nothing but the first arguments, in no inner program."""
    own = set(program.jaxpr.invars[:parameters])
    found = []
    for equation in program.jaxpr.eqns:
        inputs = [each for each in equation.invars if not hasattr(each, "val")]
        if inputs and own.issuperset(inputs):
            own |= set(equation.outvars)
            found += [each.aval.shape for each in equation.outvars if each.aval.dtype == jnp.bfloat16]
    return found


def test_every_layer_casts_its_parameters_where_each_device_has_its_own_images() -> None:
    x = jax.ShapeDtypeStruct((4, 8, 8, 8), jnp.bfloat16)
    variables = jax.eval_shape(lambda: Every().init(jax.random.key(0), jnp.zeros(x.shape, x.dtype)))
    parameters, rest = variables.pop("params"), variables

    def forward(parameters: Any, rest: Any, x: jax.Array) -> Any:
        return Every().apply({"params": parameters, **rest}, x)

    number = len(jax.tree.leaves(parameters))
    # Without the context they are cast in the open: whether a cast would be found.
    assert len(casts_of(jax.make_jaxpr(forward)(parameters, rest, x), number)) > number / 2
    with split_over(AbstractMesh((2,), ("data",), axis_types=(AxisType.Auto,))):
        program = jax.make_jaxpr(lambda *arguments: forward(*arguments))(parameters, rest, x)
    assert casts_of(program, number) == []


def test_the_step_sums_in_the_dtype_that_is_asked_for() -> None:
    """Read behind the pass that splits the program over devices, before all others.

    What XLA makes of it then says nothing: on CPUs it computes every sum of bfloat16 over devices in float32.
    """
    assert run_on_devices(__file__, 2) == ["f32", "bf16", "alike"]


def gradient(dtype: Any) -> tuple[set[str], Any]:
    """Dtypes of what devices add up under ``run.reduce_dtype``, scalars left out, and the gradient."""
    model, mesh, direction = Few(), data_mesh(), optax.identity()
    # A stored variance is not negative.
    state = init_state(jax.tree.map(np.abs, random_variables(model, batch_of(0))), direction)
    layout, rate = layout_of(state, mesh, split=False), lambda step: jnp.float32(1)
    experiment: Any = replace(load_config("tests/training/tiny.py"), model=model, run=Run(reduce_dtype=dtype))
    step: Any = step_of_run(experiment, direction, rate, mesh, layout)
    before = jax.tree.map(np.array, state.params)
    arguments = jax.device_put(state, layout), split_batch(batch_of(0), mesh), replicated_key(0, mesh)
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"}
        program = step.lower(*arguments).compile(compiler_options=options)
        (file,) = Path(folder).glob("*after_spmd-partitioning*")
        summed = re.findall(r"= (\w+)\[\d[\d,]*\]\S* all-reduce\(", file.read_text())
    after, _ = program(*arguments)
    return set(summed), jax.tree.map(np.subtract, before, after.params)


def main() -> None:
    (kinds, wide), (others, narrow) = gradient("float32"), gradient("bfloat16")
    print(*kinds, *others)
    for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(narrow), strict=True):
        assert np.linalg.norm(a - b) <= 0.02 * np.linalg.norm(a)
        assert np.any(a)
    print("alike")


if __name__ == "__main__":
    main()
