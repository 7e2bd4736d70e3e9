"""Arrays are split over all devices, and over none where each device works for itself."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from benchmarks import hlo
from jaxdet.ops.devices import devices_of_arrays, on_own_images, split_over
from jaxdet.ops.roi_align import roi_align
from jaxdet.ops.suppression import nms
from jaxdet.runtime.mesh import data_mesh, split_batch
from tests.devices import run_on_devices

IMAGES, BOXES = 4, 150


def test_a_device_alone() -> None:
    assert devices_of_arrays() == jax.device_count()
    with split_over(data_mesh(jax.devices()[:1])):
        assert on_own_images(lambda *arrays: arrays, 1, 2) == (1, 2)


def test_on_several_devices() -> None:
    assert run_on_devices(__file__, 4) == ["4", "1", "4", "sums", "alone", "alike", "alone", "alike"]


def inside_and_outside_of_shard_map() -> None:
    def say(x: jax.Array) -> jax.Array:
        print(devices_of_arrays())
        return x

    for each in (say, jax.shard_map(jax.vmap(say), mesh=data_mesh(), in_specs=P("data"), out_specs=P("data")), say):
        jax.jit(each)(jnp.ones(8))
        jax.clear_caches()


def parameters_are_whole() -> None:
    """Their gradients are added up over the devices."""
    factor, x = jnp.float32(3), jnp.arange(8, dtype=jnp.float32)

    def total(factor: jax.Array, x: jax.Array) -> jax.Array:
        with split_over(data_mesh()):
            return on_own_images(lambda x, factor: x * factor, x, factor, whole=1).sum()

    assert jax.jit(jax.grad(total))(factor, x) == 28
    print("sums")


def suppressed(boxes: jax.Array, scores: jax.Array, maps: jax.Array) -> Any:
    found = jax.vmap(lambda b, s: nms(b, s, s > 0.1, threshold=0.5, limit=80))
    return on_own_images(found, boxes, scores)


def cut(boxes: jax.Array, scores: jax.Array, maps: jax.Array) -> Any:
    def sum_of_squares(maps: jax.Array) -> Any:
        crops = roi_align([maps], [0.25], boxes, jnp.zeros(scores.shape, jnp.int32), scores > 0.1, size=(3, 3))
        return jnp.square(crops).sum(), crops

    return jax.grad(sum_of_squares, has_aux=True)(maps)


def waits_for_no_other_device() -> None:
    """Suppression, and RoIAlign with its gradient, of images of which one takes more rounds than another."""
    rng = np.random.default_rng(0)
    start = rng.uniform(0, 60, (IMAGES, BOXES, 2)) / [[[1]], [[2]], [[8]], [[99]]]
    boxes = np.concatenate([start, start + rng.uniform(4, 60, start.shape)], -1).astype(np.float32)
    scores = rng.uniform(size=(IMAGES, BOXES)).astype(np.float32)
    maps = rng.standard_normal((IMAGES, 30, 30, 2)).astype(np.float32)
    for function in (suppressed, cut):

        def split(*arrays: jax.Array, function: Any = function) -> Any:
            with split_over(data_mesh()):
                return function(*arrays)

        arrays = split_batch((boxes, scores, maps), data_mesh())
        alone, together = (jax.jit(each).lower(*arrays).compile() for each in (split, function))
        found, other = hlo.contents(alone.as_text()), hlo.contents(together.as_text())
        # What the compiler splits asks all devices in a loop, whether there is a round, or how many.
        assert any("/while" in each.where for each in other.collectives)
        assert any(loop.rounds is None for loop in found.loops)
        assert found.moved() <= 4  # the sum of squares
        print("alone")
        for ours, theirs in zip(*map(jax.tree.leaves, (alone(*arrays), together(*arrays))), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
        print("alike")


if __name__ == "__main__":
    inside_and_outside_of_shard_map()
    parameters_are_whole()
    waits_for_no_other_device()
