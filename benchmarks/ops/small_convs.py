"""Convolutions of many small crops: the direct and the spectral method, on the shapes of R3-CNN, GRoIE and SBR-CNN.

    python -m benchmarks.ops.small_convs                              # float32, forward, and with gradients
    python -m benchmarks.ops.small_convs --dtype bfloat16 --only inference

GFLOP are 2 times :func:`jaxdet.ops.conv.spectral.multiplications`.  "factor" is direct / spectral, "predicted" what the
rule of Conv expects of it; errors are the root mean square against float64, relative to the outputs' spread.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import machine, markdown, milliseconds
from jaxdet.nn.blocks.layers import Method, convolve, fastest_method
from jaxdet.ops.conv.overlap_save import best_tiles, in_tiles, predicted_gain
from jaxdet.ops.conv.spectral import multiplications
from jaxdet.runtime.large_pages import ask_for_large_pages

METHODS: tuple[Method, Method] = ("direct", "spectral")


@dataclass(frozen=True)
class Case:
    """``crops [N, h, w, C]`` convolved to ``features`` by a ``kernel`` with ``padding``."""

    name: str
    crops: tuple[int, int, int, int]
    kernel: tuple[int, int]
    padding: tuple[int, int]
    features: int

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """Shape of the kernel's array."""
        return (*self.kernel, self.crops[3], self.features)


SQUARE = ((7, 7), (3, 3))
INFERENCE = (
    Case("GRoIE pre, boxes", (4000, 7, 7, 256), *SQUARE, 256),
    Case("NonLocal g, theta, phi", (1000, 7, 7, 256), *SQUARE, 384),
    Case("NonLocal out", (1000, 7, 7, 128), *SQUARE, 256),
    Case("rect 7x3 256->128", (1000, 7, 7, 256), (7, 3), (1, 1), 128),
    Case("rect 3x7 128->128", (1000, 3, 7, 128), (3, 7), (3, 3), 128),
    Case("rect 7x3 128->64", (1000, 7, 7, 128), (7, 3), (1, 1), 64),
    Case("rect 3x7 64->64", (1000, 3, 7, 64), (3, 7), (3, 3), 64),
    Case("FCC 7x7 256->128", (1000, 7, 7, 256), *SQUARE, 128),
    Case("FCC 7x7 128->64", (1000, 7, 7, 128), *SQUARE, 64),
    Case("GRoIE pre 5x5, boxes", (4000, 7, 7, 256), (5, 5), (2, 2), 256),
    Case("GRoIE pre 3x3, boxes", (4000, 7, 7, 256), (3, 3), (1, 1), 256),
    Case("GRoIE pre, masks", (400, 14, 14, 256), *SQUARE, 256),
    Case("NonLocal out, masks", (100, 14, 14, 128), *SQUARE, 256),
    Case("mask head 3x3", (100, 14, 14, 256), (3, 3), (1, 1), 256),
)
TRAINING = (
    Case("GRoIE pre, boxes", (2048, 7, 7, 256), *SQUARE, 256),
    Case("NonLocal g, theta, phi", (512, 7, 7, 256), *SQUARE, 384),
    Case("rect 7x3 256->128", (512, 7, 7, 256), (7, 3), (1, 1), 128),
    Case("rect 3x7 128->128", (512, 3, 7, 128), (3, 7), (3, 3), 128),
    Case("rect 7x3 128->64", (512, 7, 7, 128), (7, 3), (1, 1), 64),
    Case("GRoIE pre, masks", (512, 14, 14, 256), *SQUARE, 256),
    Case("mask head 3x3", (128, 14, 14, 256), (3, 3), (1, 1), 256),
)


def arrays(case: Case, dtype: str) -> tuple[jax.Array, jax.Array]:
    """Crops and weights; outputs have a spread of about 1."""
    first, second = jax.random.split(jax.random.key(0))
    scale = np.prod(case.weights[:3]) ** -0.5
    return jax.random.normal(first, case.crops, dtype), scale * jax.random.normal(second, case.weights, dtype)


def exact(x: NDArray[np.float64], kernel: NDArray[np.float64], padding: tuple[int, int]) -> NDArray[np.float64]:
    """The convolution in float64, tap by tap."""
    p, q = padding
    kh, kw = kernel.shape[:2]
    x = np.pad(x, ((0, 0), (p, p), (q, q), (0, 0)))
    rows, columns = x.shape[1] - kh + 1, x.shape[2] - kw + 1
    taps = [x[:, i : i + rows, j : j + columns] @ kernel[i, j] for i, j in np.ndindex(kh, kw)]
    return np.sum(taps, axis=0)


def error(case: Case, method: Method, x: jax.Array, kernel: jax.Array) -> float:
    """Relative to the spread, of the first crops."""
    x = x[:2]
    got = np.asarray(jax.jit(convolve, static_argnums=(2, 3, 4))(x, kernel, 1, case.padding, method), np.float64)
    expected = exact(np.asarray(x, np.float64), np.asarray(kernel, np.float64), case.padding)
    return float(np.sqrt(np.mean((got - expected) ** 2)) / np.std(expected))


def work(case: Case, method: Method, x: jax.Array, kernel: jax.Array, gradients: bool) -> Callable[[], object]:
    """The compiled convolution, forward alone or with the gradients of crops and weights."""

    def forward(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return convolve(x, kernel, 1, case.padding, method)

    def both(x: jax.Array, kernel: jax.Array, output_gradient: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(forward, x, kernel)
        return (y, *pull(output_gradient))

    if not gradients:
        run = jax.jit(forward).lower(x, kernel).compile()
        return lambda: run(x, kernel)
    shape = jax.eval_shape(forward, x, kernel)
    output_gradient = jax.random.normal(jax.random.key(1), shape.shape, shape.dtype)
    run_both = jax.jit(both).lower(x, kernel, output_gradient).compile()
    return lambda: run_both(x, kernel, output_gradient)


HEAD = (
    "convolution", "crops", "GFLOP direct", "spectral", "ms direct", "spectral", "factor", "predicted",
    "error direct", "spectral", "chosen",
)  # fmt: skip


def row(case: Case, dtype: str, gradients: bool, repeats: int) -> list[Any]:
    """One line of the table."""
    x, kernel = arrays(case, dtype)
    ms = milliseconds(*(work(case, method, x, kernel, gradients) for method in METHODS), repeats=repeats)
    setting = case.crops, case.weights, case.padding
    maps, padding = in_tiles(*setting, best_tiles(*setting))
    counts = multiplications(*setting)[0], multiplications(maps, case.weights, padding)[1]
    gflop = [2e-9 * count * (3 if gradients else 1) for count in counts]
    return [
        case.name + ", with gradient" * gradients,
        "{} of {}x{}".format(*case.crops),
        *gflop,
        *ms,
        ms[0] / ms[1],
        predicted_gain(*setting),
        *(f"{error(case, method, x, kernel):.0e}" for method in METHODS),
        fastest_method(x, kernel, 1, case.padding),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--only", choices=["inference", "training"])
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = [
        row(case, args.dtype, gradients, args.repeats)
        for kind, cases, gradients in (("inference", INFERENCE, False), ("training", TRAINING, True))
        if args.only in (None, kind)
        for case in cases
    ]
    print(f"{machine()}; {args.dtype}\n\n{markdown(HEAD, rows)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
