"""An exported model beside the one that it was made of: size, time to export, to load and to run.

    python -m benchmarks.models.export --config demo

Weights are drawn, which changes no time but that of what follows a score.  "processor" are seconds of all cores that
work on it, "wall" those of the clock, which on a machine that does other things are more.
"""

import argparse
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxdet
from benchmarks.measure import machine, markdown
from jaxdet.config import load_config
from jaxdet.data import single_batch
from jaxdet.trained import Trained


def drawn(config: str) -> Trained:
    """The model of a config with drawn weights."""
    experiment = load_config(config)
    image = np.zeros((experiment.data.short_side, experiment.data.long_side, 3), np.uint8)
    batch = single_batch(image, experiment.data)
    shapes = jax.eval_shape(lambda: experiment.model.init(jax.random.key(0), batch, method="predict"))
    rng = np.random.default_rng(0)

    def values(leaf: Any) -> Any:
        fan_in = float(np.prod(leaf.shape[:-1])) or 1.0
        return (rng.normal(0, fan_in**-0.5, leaf.shape) if leaf.ndim > 1 else np.full(leaf.shape, 0.1)).astype(
            leaf.dtype
        )

    return Trained(experiment, jax.tree.map(values, shapes), (), 0)


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """What it returns, seconds of the processor, seconds of the clock."""
    start = time.process_time(), time.perf_counter()
    result = work()
    return result, time.process_time() - start[0], time.perf_counter() - start[1]


def loaded(folder: Path) -> Any:
    """The model of an exported folder, ready to run."""
    spec = importlib.util.spec_from_file_location("load", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model()
    model.warm_up()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo", help="name of a model, FILE.py or FILE.py:ROW")
    parser.add_argument("--repeats", type=int, default=15, help="images, of which the median counts")
    args = parser.parse_args()
    trained = drawn(args.config)
    data = trained.experiment.data
    image = np.random.default_rng(0).integers(0, 256, (data.short_side, data.long_side, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        out, *export = timed(lambda: jaxdet.export(trained, Path(folder) / "out", image=image.shape[:2]))
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
        model, *load = timed(lambda: loaded(out))
        predictor = jaxdet.Predictor(trained)
        _, *first = timed(lambda: predictor(image))
        each = [(timed(lambda: model(image))[1:], timed(lambda: predictor(image))[1:]) for _ in range(args.repeats)]
    ms = [[1e3 * statistics.median(pair[i][j] for pair in each) for j in (0, 1)] for i in (0, 1)]
    rows = [
        ["export, s", *export],
        ["load and compile, s", *load],
        ["Predictor's first image, s", *first],
        ["an image, exported, ms", *ms[0]],
        ["an image, Predictor, ms", *ms[1]],
    ]
    print(f"{args.config}, a canvas of {data.short_side} x {data.long_side}: a folder of {size:.1f} MB; {machine()}\n")
    print(markdown(["", "processor", "wall"], rows))


if __name__ == "__main__":
    main()
