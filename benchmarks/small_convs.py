"""Convolutions of many small crops: the direct and the spectral method, on the shapes of R3-CNN, GRoIE and SBR-CNN.

    python -m benchmarks.small_convs                              # float32, forward, and with gradients
    python -m benchmarks.small_convs --types float32 bfloat16 --only inference

GFLOP are 2 times :func:`jaxdet.ops.spectral.multiplications`; MB are the least traffic of the spectral method: crops,
outputs and the spectra of the weights, once each.  Milliseconds are the fastest of several runs, methods in turn;
"factor" is direct / spectral, "predicted" what the rule of Conv expects of it; errors are the root mean square against
float64, relative to the outputs' spread.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdet.nn.layers import Method, convolve, fastest_method
from jaxdet.ops.overlap_save import best_tiles, in_tiles, predicted_gain
from jaxdet.ops.spectral import multiplications, products

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


def fastest(works: list[Callable[[], object]], repeats: int, clock: Callable[[], float]) -> list[float]:
    """Milliseconds a call, the least of ``repeats`` bursts, after one call that does not count."""
    calls = 1 if jax.default_backend() == "cpu" else 10
    best = [float("inf")] * len(works)
    for repeat in range(repeats + 1):
        for index, run in enumerate(works):
            start = clock()
            jax.block_until_ready([run() for _ in range(calls if repeat else 1)])
            if repeat:
                best[index] = min(best[index], (clock() - start) / calls * 1e3)
    return best


def row(case: Case, dtype: str, gradients: bool, repeats: int, clock: Callable[[], float]) -> str:
    """One line of the table."""
    x, kernel = arrays(case, dtype)
    times = fastest([work(case, method, x, kernel, gradients) for method in METHODS], repeats, clock)
    setting = case.crops, case.weights, case.padding
    maps, padding = in_tiles(*setting, best_tiles(*setting))
    counts = multiplications(*setting)[0], multiplications(maps, case.weights, padding)[1]
    flops = [2e-9 * count * (3 if gradients else 1) for count in counts]
    outputs = np.prod([n + 2 * p - k + 1 for n, p, k in zip(case.crops[1:3], case.padding, case.kernel, strict=True)])
    values = x.size + case.crops[0] * outputs * case.features
    values += products(maps[1:3], padding) * case.crops[3] * case.features
    rates = [flop / ms * 1e3 for flop, ms in zip(flops, times, strict=True)]
    return (
        f"{case.name:24s}{case.crops[0]:6d} x {case.crops[1]:2d}x{case.crops[2]:<2d} "
        f"{flops[0]:8.1f} {flops[1]:8.1f} {values * x.dtype.itemsize / 1e6:6.0f} {times[0]:9.2f} {times[1]:9.2f} "
        f"{times[0] / times[1]:7.2f} {predicted_gain(*setting):9.2f} "
        f"{rates[0]:9.0f} {rates[1]:9.0f} "
        f"{error(case, 'direct', x, kernel):8.0e} {error(case, 'spectral', x, kernel):8.0e}  "
        f"{fastest_method(x, kernel, 1, case.padding)}"
    )


HEADER = (
    f"{'convolution':24s}{'crops':>14s}   GFLOP: d        s     MB     ms: d         s  factor predicted "
    " GFLOP/s: d        s error: d        s  chosen"
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description="Direct and spectral convolutions of small crops")
    parser.add_argument("--types", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--only", choices=["inference", "training"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processor_time", action="store_true", help="not wall time: for a machine with other work")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    for dtype in options.types:
        for kind, cases, gradients in (("inference", INFERENCE, False), ("training", TRAINING, True)):
            if options.only not in (None, kind):
                continue
            print(f"\n{kind}{', forward and backward' if gradients else ''}, {dtype}, {jax.devices()[0].device_kind}")
            print(HEADER)
            for case in cases:
                print(row(case, dtype, gradients, options.repeats, clock), flush=True)


if __name__ == "__main__":
    main()
