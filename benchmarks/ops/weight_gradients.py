"""Weight gradients of convolutions: XLA's own beside one product for each tap, alone and inside a loop.

    python -m benchmarks.ops.weight_gradients --repeats 3

A loop is a `jax.lax.scan` of two turns; its times are those of one turn, and only for small maps: XLA takes minutes for
a large one.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.measure import compiled, machine, markdown, milliseconds
from jaxdet.ops.conv.direct import CHANNELS_LAST, weight_gradient
from jaxdet.runtime.large_pages import ask_for_large_pages

SHAPES = {  # of the input, and the number of filters
    "FPN, stride 4": ((1, 200, 336, 256), 256),
    "FPN, stride 8": ((1, 100, 168, 256), 256),
    "ResNet-50, second stage": ((1, 200, 336, 64), 64),
    "ResNet-50, third stage": ((1, 100, 168, 128), 128),
    "ResNet-50, fourth stage": ((1, 50, 84, 256), 256),
    "ResNet-50, fifth stage": ((1, 25, 42, 512), 512),
    "mask head, 128 crops": ((128, 14, 14, 256), 256),
    "mask IoU, 64 small crops": ((64, 14, 14, 48), 48),
}
IN_LOOPS = ("ResNet-50, fifth stage", "mask IoU, 64 small crops")
TURNS = 2


def by_xla(x: jax.Array, dy: jax.Array) -> jax.Array:
    """As `jax.grad` of the convolution has it."""

    def convolve(kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=CHANNELS_LAST)

    return jax.linear_transpose(convolve, jnp.zeros((3, 3, x.shape[-1], dy.shape[-1])))(dy)[0]


def by_products(x: jax.Array, dy: jax.Array) -> jax.Array:
    """A product for each tap."""
    return weight_gradient(x, dy, (3, 3), 1, (1, 1))


def in_loop(gradient: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, dy: jax.Array) -> jax.Array:
    """Several, added up, each of another input."""

    def one(found: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        return found + gradient(scale * x, dy), None

    return jax.lax.scan(one, jnp.zeros((3, 3, x.shape[-1], dy.shape[-1])), jnp.arange(1.0, 1.0 + TURNS))[0]


def line(name: str, repeats: int) -> list[Any]:
    """A line of the table."""
    shape, filters = SHAPES[name]
    x = jax.random.normal(jax.random.key(0), shape)
    dy = jax.random.normal(jax.random.key(1), (*shape[:3], filters))
    gradients = [by_xla, by_products]
    if name in IN_LOOPS:
        gradients += [partial(in_loop, by_xla), partial(in_loop, by_products)]
    programs = [compiled(gradient, x, dy) for gradient in gradients]
    alone, loops = _pairs(milliseconds(*(partial(program.call, x, dy) for program in programs), repeats=repeats))
    gflop = 2 * 9 * dy.size * shape[-1] / 1e9
    return [name, gflop, *alone, *loops]


def _pairs(times: list[float]) -> tuple[list[Any], list[Any]]:
    """Both ways and the factor between them, alone and in a turn of a loop."""
    xla, products, *loops = times
    in_turn = [ms / TURNS for ms in loops]
    return [xla, products, xla / products], [*in_turn, in_turn[0] / in_turn[1]] if loops else [None] * 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    head = ["3x3", "GFLOP", "by XLA ms", "by products", "factor", "by XLA, in a loop", "by products", "factor"]
    print(f"{machine()}; float32\n\n{markdown(head, [line(name, args.repeats) for name in SHAPES])}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
