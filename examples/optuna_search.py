"""Search for settings with Optuna, where trials that do badly are ended early (``pip install 'jaxdet[optuna]'``).

    python examples/optuna_search.py --config demo --trials 20 --workdir runs/search

A trial is a run in a folder of its own, ``trial_0`` and so on.  Trials lie in a file beside them, so that the same
command adds more.  What is drawn is in `draw`: change it.
"""

import argparse
from pathlib import Path
from typing import Literal

import jaxdet
from jaxdet.config import load_config, override
from jaxdet.experiment import Experiment

try:
    import optuna
except ModuleNotFoundError:
    raise SystemExit("this search needs optuna: pip install 'jaxdet[optuna]'") from None


def draw(trial: optuna.Trial) -> list[str]:
    """The settings of a trial, by dotted keys."""
    return [
        f"optimizer.lr={trial.suggest_float('lr', 1e-4, 1e-2, log=True)}",
        f"optimizer.weight_decay={trial.suggest_float('weight_decay', 1e-5, 1e-1, log=True)}",
        f"run.seed={trial.number}",
    ]


def search(base: Experiment, workdir: Path, trials: int, score: str, pruner: optuna.pruners.BasePruner) -> optuna.Study:
    """Run trials, each of which trains ``base`` with other settings, and return the study."""

    def objective(trial: optuna.Trial) -> float:
        def on_eval(step: int, scores: dict[str, float]) -> Literal["stop"] | None:
            trial.report(scores[score], step)
            return "stop" if trial.should_prune() else None

        scores = jaxdet.train(override(base, draw(trial)), workdir / f"trial_{trial.number}", on_eval=on_eval)
        if trial.should_prune():
            raise optuna.TrialPruned
        return scores[score]

    workdir.mkdir(parents=True, exist_ok=True)
    storage = f"sqlite:///{workdir / 'study.db'}"
    study = optuna.create_study(
        storage=storage, study_name="jaxdet", load_if_exists=True, direction="maximize", pruner=pruner
    )
    study.optimize(objective, n_trials=trials)
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="name of a model, or FILE.py with get_config()")
    parser.add_argument("--workdir", type=Path, default=Path("runs/search"), help="folder of the trials")
    parser.add_argument("--trials", type=int, default=20, help="how many to add")
    parser.add_argument("--score", default="segm/AP", help="what is to be high")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of all trials")
    options = parser.parse_intermixed_args()
    # An evaluation each tenth of a trial, after the first three of which it may be ended.
    base = override(load_config(options.config), ["run.eval_every=none", *options.overrides])
    pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=1)
    study = search(base, options.workdir, options.trials, options.score, pruner)
    print(f"best {options.score} {study.best_value:.3f} with {study.best_params}, of {len(study.trials)} trials")


if __name__ == "__main__":  # workers that prepare data import this file again
    main()
