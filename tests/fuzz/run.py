"""Many examples of one kind, each read by a worker, and what became of them."""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from tests.fuzz import checkpoints, data_sets, judges
from tests.fuzz.worker import Files, Judge, Outcome, Worker

TARGETS: dict[Judge, dict[str, st.SearchStrategy[Files]]] = {
    judges.judge_data_set: data_sets.KINDS,
    judges.judge_results: data_sets.RESULT_KINDS,
    judges.judge_checkpoint: checkpoints.KINDS,
}
VALID: dict[Judge, Callable[[], list[Files]]] = {
    judges.judge_data_set: lambda: [data_sets.valid()],
    judges.judge_results: lambda: [data_sets.valid_results()],
    judges.judge_checkpoint: checkpoints.valid,
}
set_hypothesis_home_dir(tempfile.mkdtemp(prefix="jaxdet-hypothesis-"))  # else it leaves a folder where it is run


@dataclass
class Tally:
    """What became of the examples of a kind."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[tuple[Files, Outcome]] = field(default_factory=list)


def examine(strategy: st.SearchStrategy[Files], worker: Worker, examples: int, seed: int | None) -> Tally:
    """Judge ``examples`` of a strategy; without a seed always the same ones."""
    tally = Tally()

    @settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def judge(files: Files) -> None:
        outcome = worker.judge(files)
        tally.counts[outcome.kind] += 1
        if outcome.kind == "WRONG":
            tally.wrong.append((files, outcome))

    (judge if seed is None else hypothesis.seed(seed)(judge))()
    return tally
