"""RoIAlign and NMS beside those of other code in JAX: axlearn's and scenic's.

    pip download --no-deps axlearn && unzip -q axlearn-*.whl -d axlearn
    git clone --depth 1 https://github.com/google-research/scenic
    python -m benchmarks.peers.jax_ops --axlearn axlearn --scenic scenic

The files of their operations are loaded by themselves: to import the packages would take dependencies of other years.
scenic's needs einops.  All take turns in one process.

RoIAlign: 7 x 7 bins of 2 x 2 samples on a pyramid of 256 channels.  At the borders of a map the rules differ (here the
nearest pixel counts for one pixel more, with axlearn a sample fades out, with scenic what is outside is 0), so that
"apart" is that of boxes which lie inside.  NMS: axlearn's; scenic's is a copy of the same code.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.inputs import HW, random_boxes
from benchmarks.measure import beside_peak, machine, markdown
from benchmarks.ops.nms import chain
from benchmarks.ops.roi_align import BINS, STRIDES, inputs
from jaxdet.ops.roi_align import roi_align
from jaxdet.ops.suppression import nms
from jaxdet.runtime.large_pages import ask_for_large_pages

RATIO = 2  # samples along an axis of a bin
THRESHOLD = 0.7

Works = dict[str, Callable[[], Any]]


def load(file: Path) -> ModuleType:
    """A module from its file alone."""
    # Of axlearn's own modules these files use a name for annotations.
    shared = ModuleType("axlearn.common.utils")
    shared.__dict__["Tensor"] = jax.Array
    sys.modules |= {name: ModuleType(name) for name in ("axlearn", "axlearn.common")} | {shared.__name__: shared}
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None or not file.exists():
        raise SystemExit(f"{file}: expected a file of the package, there is none")
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def crops(peers: Mapping[str, ModuleType], number: int) -> tuple[Works, Works, np.ndarray]:
    """RoIAlign of each: forward, and with the gradient of the maps; and which boxes lie well inside the image."""
    pyramid, boxes, level, cotangent = inputs(number)
    maps = [jnp.asarray(m) for m in pyramid]
    margin = max(STRIDES)
    inside = np.all((boxes > margin) & (boxes < np.tile(HW[::-1], 2) - margin), axis=1)
    cotangent *= inside[:, None, None, None]
    batch, which = jnp.asarray(boxes)[None], jnp.asarray(level)[None]
    scaled = batch / jnp.asarray(STRIDES, jnp.float32)[which][..., None]

    def ours(maps: list[jax.Array]) -> jax.Array:
        real = jnp.ones(which.shape, bool)
        return roi_align(maps, [1 / s for s in STRIDES], batch, which, real, size=(BINS, BINS), sampling_ratio=RATIO)

    def axlearn(maps: list[jax.Array]) -> jax.Array:
        # Its coordinates are y before x and count pixel centres.
        rois = scaled[..., jnp.array([1, 0, 3, 2])] - 0.5
        samples = {"num_samples_per_cell_y": RATIO, "num_samples_per_cell_x": RATIO}
        found: jax.Array = peers["axlearn"].roi_align(
            features=maps, boxes=rois, box_levels=which, output_size=(BINS, BINS), **samples
        )
        return found

    def scenic(maps: list[jax.Array]) -> jax.Array:
        found: jax.Array = peers["scenic"].multilevel_roi_align(maps, scaled, which, BINS, RATIO)
        return found

    functions = {"jaxdet": ours, "axlearn": axlearn, "scenic": scenic}
    functions = {name: function for name, function in functions.items() if name == "jaxdet" or name in peers}
    forward: Works = {name: partial(jax.jit(function), maps) for name, function in functions.items()}

    def with_gradient(function: Callable[[list[jax.Array]], jax.Array]) -> Callable[[], Any]:
        return partial(jax.jit(jax.value_and_grad(lambda maps: (function(maps)[0] * cotangent).sum())), maps)

    return forward, {name: with_gradient(function) for name, function in functions.items()}, inside


def kept(peer: ModuleType, number: int, chained: bool) -> Works:
    """NMS of each: the boxes ``[number, 4]`` that stay, others are 0."""
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, number), rng.uniform(size=number).astype(np.float32)
    if chained:
        boxes, scores = chain(number)
    # axlearn's takes boxes in order of their scores, and one of zeros as none.
    order = np.argsort(-scores, kind="stable")
    ranked, best = jnp.asarray(boxes[order]), jnp.asarray(scores[order])

    def ours(ranked: jax.Array, best: jax.Array) -> jax.Array:
        found = nms(ranked, best, jnp.ones(number, bool), threshold=THRESHOLD, limit=number)
        return jnp.where(found.valid[:, None], ranked[found.index], 0.0)

    def theirs(ranked: jax.Array, best: jax.Array) -> jax.Array:
        found: jax.Array = peer.non_max_suppression_padded(best[None], ranked[None], number, THRESHOLD)[1][0]
        return found

    return {name: partial(jax.jit(f), ranked, best) for name, f in (("jaxdet", ours), ("axlearn", theirs))}


def row(what: str, works: Works, repeats: int, note: Callable[[Any, Any], str]) -> list[Any]:
    """Milliseconds of ours, those of each peer with how many times they are ours, and a note for each."""
    results = {name: jax.device_get(work()) for name, work in works.items()}
    ms, _ = beside_peak(*works.values(), repeats=repeats)
    mine, cells, notes = ms[0], [], []
    for name in ("axlearn", "scenic"):
        its = dict(zip(works, ms, strict=True)).get(name)
        cells += [its, None if its is None else its / mine]
        if its is not None:
            notes.append(f"{name} {note(results['jaxdet'], results[name])}")
    return [what, mine, *cells, "; ".join(notes)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axlearn", type=Path, required=True, help="folder that has axlearn/")
    parser.add_argument("--scenic", type=Path, help="a clone of scenic")
    parser.add_argument("--boxes", type=int, nargs=2, default=(1000, 4000), help="of RoIAlign and of NMS")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    vision = args.axlearn / "axlearn" / "vision"
    peers = {"axlearn": load(vision / "spatial_transform_ops.py")}
    if args.scenic:
        peers["scenic"] = load(args.scenic / "scenic/projects/baselines/centernet/modeling/roi_align.py")
    rois, boxes = args.boxes
    forward, both, inside = crops(peers, rois)

    def apart(ours: Any, theirs: Any) -> str:
        return f"apart by {np.abs(ours[0][inside] - theirs[0][inside]).max():.1e}"

    def gradients(ours: Any, theirs: Any) -> str:
        norms = [(np.linalg.norm(a - b), np.linalg.norm(a)) for a, b in zip(ours[1], theirs[1], strict=True)]
        distance, norm = np.linalg.norm(norms, axis=0)
        return f"{distance / norm:.1%} apart"

    def differing(ours: Any, theirs: Any) -> str:
        mine, other = ({tuple(box) for box in found if box.any()} for found in (ours, theirs))
        return f"{len(mine ^ other)} of {len(mine)} boxes differ"

    rows = [
        row(f"RoIAlign of {rois} boxes, forward", forward, args.repeats, apart),
        row(f"RoIAlign of {rois} boxes, with gradient", both, args.repeats, gradients),
    ]
    suppression = load(vision / "nms.py")
    for chained, what in ((False, "at random"), (True, "in one chain")):
        works = kept(suppression, boxes, chained)
        rows.append(row(f"NMS of {boxes} boxes {what}", works, args.repeats, differing))
    head = ["", "jaxdet ms", "axlearn ms", "axlearn / jaxdet", "scenic ms", "scenic / jaxdet", ""]
    print(f"{machine()}\n\n{markdown(head, rows)}")


if __name__ == "__main__":
    ask_for_large_pages()
    main()
