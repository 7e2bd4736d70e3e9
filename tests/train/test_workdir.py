"""The folder of a run among several processes."""

from pathlib import Path

from jaxdet.config import to_data
from jaxdet.experiment import Run
from jaxdet.train_lib.workdir import claim
from tests.devices import free_address, outputs, start

SCRIPT = """
import sys, jax
from pathlib import Path
address, process, folder, seed = sys.argv[1:]
jax.distributed.initialize(address, num_processes=2, process_id=int(process))
from jaxdet.config import to_data
from jaxdet.experiment import Run
from jaxdet.train_lib.workdir import claim
run = Run(seed=int(seed))
try:
    claim(Path(folder), run, to_data(run), accept_changes=False)
except ValueError as error:
    print("refused:", error)
else:
    print("claimed")
"""


def claim_by_two(folder: Path, seed: int) -> list[str]:
    """What the two processes of a job say."""
    address = free_address()
    return outputs([start(["-c", SCRIPT, address, str(index), str(folder), str(seed)], 1) for index in range(2)])


def test_all_processes_are_refused_together(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    claim(tmp_path, Run(seed=1), to_data(Run(seed=1)), accept_changes=False)
    assert all(said.endswith("claimed\n") for said in claim_by_two(tmp_path, seed=1))  # gloo talks before
    first, second = claim_by_two(tmp_path, seed=2)
    assert "seed: 1 -> 2" in first
    assert "the first process could not take this folder" in second
