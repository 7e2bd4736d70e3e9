"""Shape-aware RoIAlign beside RoIAlign: the same boxes, pyramid and bins, and a map of 28 x 28 for each box.

    python -m benchmarks.ops.sa_roi_align --boxes 512

With gradient means that of the maps for both, and of the boxes' own maps too for the shape-aware one; "guide fixed" is
without these.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inputs import HW, random_boxes
from benchmarks.measure import machine, markdown, milliseconds
from benchmarks.ops.roi_align import BINS, CHANNELS, STRIDES
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.ops.roi_align import roi_align, sa_roi_align
from jaxdet.runtime.large_pages import ask_for_large_pages

SIDE = 28  # of a box's own map


def rows(repeats: int, number: int, ratio: int) -> list[list[Any]]:
    """What, milliseconds of RoIAlign and of the shape-aware one, and their ratio, all measured in turn."""
    rng = np.random.default_rng(0)
    maps = [jnp.asarray(rng.standard_normal((1, HW[0] // s, HW[1] // s, CHANNELS), np.float32)) for s in STRIDES]
    boxes = jnp.asarray(random_boxes(rng, number))
    prob = jnp.asarray(rng.random((1, number, SIDE, SIDE), np.float32))
    cotangent = jnp.asarray(rng.standard_normal((1, number, BINS, BINS, CHANNELS), np.float32))
    where = [1 / s for s in STRIDES], boxes[None], SingleLevel().level_of(boxes)[None], jnp.ones((1, number), bool)
    options: dict[str, Any] = {"size": (BINS, BINS), "sampling_ratio": ratio}

    def plain(maps: list[Any]) -> Any:
        return roi_align(maps, *where, **options)

    def shaped(maps: list[Any], prob: Any) -> Any:
        return sa_roi_align(maps, *where, prob, **options)

    def slopes(crops: Callable[..., Any], *places: int) -> Callable[..., Any]:
        return jax.jit(jax.value_and_grad(lambda *args: (crops(*args) * cotangent).sum(), places))

    forward, both = partial(jax.jit(plain), maps), partial(slopes(plain, 0), maps)
    ours: list[Callable[..., Any]] = [jax.jit(shaped), slopes(shaped, 0), slopes(shaped, 0, 1)]
    times = milliseconds(forward, both, *(partial(work, maps, prob) for work in ours), repeats=repeats)
    name = f"{number} boxes, {'adaptive' if ratio == 0 else f'{ratio} x {ratio} samples a bin'}"
    whats = ["forward", "with gradient, guide fixed", "with gradient"]
    beside = [times[0], times[1], times[1]]
    return [[f"{name}, {what}", base, ms, ms / base] for what, base, ms in zip(whats, beside, times[2:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    found = [row for ratio in (0, 2) for row in rows(args.repeats, args.boxes, ratio)]
    print(f"{machine()}\n\n{markdown(['', 'RoIAlign ms', 'shape-aware ms', 'ratio'], found)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
