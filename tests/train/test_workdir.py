"""The folder of a run among several processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from jaxdet.config import to_data
from jaxdet.experiment import Run
from jaxdet.train_lib.workdir import claim

SCRIPT = """
import sys, jax
from pathlib import Path
port, process, folder, seed = sys.argv[1:]
jax.distributed.initialize(coordinator_address=f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
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
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(port), str(process), str(folder), str(seed)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said[0][1][-2000:] + said[1][1][-2000:]
    return [out for out, _ in said]


def test_all_processes_are_refused_together(tmp_path: Path) -> None:
    claim(tmp_path, Run(seed=1), to_data(Run(seed=1)), accept_changes=False)
    assert all(said.endswith("claimed\n") for said in claim_by_two(tmp_path, seed=1))  # gloo talks before
    first, second = claim_by_two(tmp_path, seed=2)
    assert "seed: 1 -> 2" in first
    assert "the first process could not take this folder" in second
