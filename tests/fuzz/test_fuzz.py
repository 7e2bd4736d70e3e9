"""A short form of ``python -m tests.fuzz``: always the same 528 examples."""

from collections.abc import Iterator

import pytest

from tests.fuzz.run import TARGETS, VALID, examine
from tests.fuzz.worker import Judge, Worker

EXAMPLES = 22
"""Of each of the 24 kinds."""


@pytest.fixture(scope="module", params=list(TARGETS), ids=lambda judge: judge.__name__)
def judge(request: pytest.FixtureRequest) -> Judge:
    return request.param


@pytest.fixture(scope="module")
def worker(judge: Judge) -> Iterator[Worker]:
    worker = Worker(judge)
    yield worker
    worker.close()


def test_the_unspoilt_are_taken(judge, worker):
    for files in VALID[judge]():
        assert worker.judge(files).kind == "taken"


def test_the_spoilt_are_taken_or_refused_with_a_clear_error(judge, worker):
    for kind, strategy in TARGETS[judge].items():
        tally = examine(strategy, worker, EXAMPLES, seed=None)
        assert not tally.wrong, f"{kind}: {tally.wrong[0][1].text}"
        assert tally.counts["refused"] > 0, kind
