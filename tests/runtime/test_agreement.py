"""Processes of a job that go on together or stop together."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdet.config import to_data
from jaxdet.data import Category
from jaxdet.data.sources.open import fingerprint
from jaxdet.experiment import Run
from jaxdet.runtime.agreement import alike, from_all, refuse_differences
from jaxdet.training.workdir import claimed
from tests.devices import host_flags, outputs, start

SCRIPT = """
import argparse, sys
from pathlib import Path
from jaxdet.runtime.hosts import add_host_flags, join_hosts
parser = argparse.ArgumentParser()
add_host_flags(parser)
options = parser.parse_args(sys.argv[2:])
join_hosts(options)
from jaxdet.runtime.agreement import alike, from_all
from jaxdet.config import to_data
from jaxdet.experiment import Run
from jaxdet.training.workdir import claimed

def claim(run):
    with claimed(Path(sys.argv[1]), run, to_data(run), accept_changes=False):
        pass

def attempt(name, work):
    try:
        print(name, "gave", work())
    except (ValueError, ZeroDivisionError) as error:
        print(name, "raised", type(error).__name__, str(error).replace(chr(10), " "))

here = options.process_id
for seed in (1, 2):
    run = Run(seed=seed)
    attempt(f"claim {seed}", lambda: claim(run))
attempt("same", lambda: alike(lambda: 10 * here, lambda result: {"images": 27}))
attempt("other", lambda: alike(lambda: 10 * here, lambda result: {"images": 27 - here}))
attempt("failed", lambda: from_all(lambda: 1 / (1 - here)))
attempt("long", lambda: [len(said) for said in from_all(lambda: "x" * (3 + 1000 * here))])
"""


def test_all_of_two_processes_go_on_or_stop(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    with claimed(tmp_path, Run(seed=1), to_data(Run(seed=1)), accept_changes=False):
        pass
    said = outputs([start(["-c", SCRIPT, str(tmp_path), *flags], 1) for flags in host_flags(2)])
    lines = [out.splitlines()[-6:] for out in said]  # gloo talks before
    differ = "the processes of this job differ (process 0 -> the one that is named):   process 1: images: 27 -> 26"
    for number, (one, two, same, other, failed, long) in enumerate(lines):
        assert one == "claim 1 gave None"
        assert two.startswith("claim 2 raised ValueError")
        assert ("process 0: " in two) == (number == 1)
        assert "seed: 1 -> 2" in two
        assert same == f"same gave {10 * number}"
        assert other.startswith(f"other raised ValueError {differ}")
        if number == 0:
            assert failed == "failed raised ValueError process 1: division by zero"
        else:
            assert failed == "failed raised ZeroDivisionError division by zero"
        assert long == "long gave [3, 1003]"


def test_a_process_alone_agrees() -> None:
    assert from_all(lambda: (1, {2: "any object"})) == [(1, {2: "any object"})]
    assert alike(lambda: 3, lambda result: {"images": result}) == 3
    with pytest.raises(ZeroDivisionError):
        from_all(lambda: 1 / 0)


def test_every_difference_is_named() -> None:
    first: dict[str, Any] = {"config": {"lr": 0.1, "steps": 5}, "val": None}
    refuse_differences([first, first])
    third = {"config": {"lr": 0.2, "steps": 5}, "val": {"images": 3}}
    with pytest.raises(ValueError, match="differ") as error:
        refuse_differences([first, first, third])
    lines = str(error.value).splitlines()
    assert lines[1:3] == ["  process 2: config.lr: 0.1 -> 0.2", "  process 2: val: None -> {'images': 3}"]
    assert len(lines) == 4


class Images:
    """A source that has no images to read."""

    def __init__(self, ids: list[int], sizes: list[list[int]], usable: list[int], names: str = "ab") -> None:
        self.image_ids, self.sizes = np.array(ids, np.int64), np.array(sizes, np.int32)
        self.usable = np.array(usable, np.int32)
        self.categories = tuple(Category(number, name) for number, name in enumerate(names))

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("no image is to be read")

    def ground_truth(self) -> dict[str, Any]:
        raise AssertionError("no json is to be read")


WHOLE = Images([7, 3], [[4, 5], [6, 5]], [1, 2])


@pytest.mark.parametrize(
    "other",
    [
        Images([7], [[4, 5]], [1]),
        Images([3, 7], [[4, 5], [6, 5]], [1, 2]),
        Images([7, 3], [[5, 4], [6, 5]], [1, 2]),
        Images([7, 3], [[4, 5], [6, 5]], [2, 1]),
        Images([7, 3], [[4, 5], [6, 5]], [1, 2], names="ac"),
    ],
    ids=["fewer", "order", "sizes", "annotations", "categories"],
)
def test_other_data_has_another_fingerprint(other: Images) -> None:
    same = Images([7, 3], [[4, 5], [6, 5]], [1, 2])
    assert fingerprint(same) == fingerprint(WHOLE)
    with pytest.raises(ValueError, match="process 1: data"):
        refuse_differences([{"data": fingerprint(WHOLE)}, {"data": fingerprint(other)}])
