"""examples/: the search with Optuna ends trials that do badly, and goes on with a study."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jaxdet
from jaxdet.config import load_config, override
from tests.modules import module_at
from tests.test_documents import ROOT

optuna = pytest.importorskip("optuna")


@pytest.fixture(scope="module")
def example() -> Any:
    return module_at(ROOT / "examples" / "optuna_search.py")


def tiny(folder: Path, *more: str) -> Any:
    scenes = [f"data.{split}.directory={folder / 'scenes'}" for split in ("train", "val")]
    return override(load_config(ROOT / "tests" / "training" / "tiny.py"), [*scenes, *more])


@pytest.mark.filterwarnings("ignore::Warning:optuna")
def test_trials_below_the_median_are_ended(example: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[Path, float]]()

    def train(config: Any, workdir: Path, on_eval: Callable[[int, dict[str, float]], str | None]) -> dict[str, float]:
        """Each trial is worse than the one before."""
        seen.append((workdir, config.optimizer.lr))
        scores = {"bbox/AP": 1 / (1 + config.run.seed)}
        for step in (2, 4, 6):
            if on_eval(step, scores) == "stop":
                break
        return scores

    monkeypatch.setattr(jaxdet, "train", train, raising=False)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=1)
    for _ in range(2):  # the second time the same study goes on
        study = example.search(tiny(tmp_path), tmp_path / "search", 2, "bbox/AP", pruner)
    assert [workdir.name for workdir, _ in seen] == [f"trial_{i}" for i in range(4)]
    assert len({rate for _, rate in seen}) == 4
    states = [trial.state.name for trial in study.trials]
    assert states == ["COMPLETE", "COMPLETE", "PRUNED", "PRUNED"]
    assert study.best_trial.number == 0


@pytest.mark.filterwarnings("ignore::Warning:optuna")
def test_a_trial_is_a_run(example: Any, tmp_path: Path) -> None:
    # Boxes alone, of which the programs are half as large.
    base = tiny(tmp_path, "optimizer.schedule.length=2", "optimizer.schedule.drops=()", "run.eval_every=1")
    model = base.model.clone(parts=())
    base = dataclasses.replace(base, model=model, data=dataclasses.replace(base.data, masks=False))
    study = example.search(base, tmp_path / "search", 1, "bbox/AP", optuna.pruners.NopPruner())
    (trial,) = study.trials
    assert sorted(trial.intermediate_values) == [1, 2]
    assert (tmp_path / "search" / "trial_0" / "metrics.json").exists()
