"""Tests on several devices and processes: in processes of their own, as their number is fixed when jax starts."""

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(arguments: Sequence[str], devices: int) -> subprocess.Popen[str]:
    """``python ARGUMENTS`` in the project's root, with that many CPU devices."""
    own = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(processes: Sequence[subprocess.Popen[str]], timeout: float) -> list[tuple[str, str]]:
    """What each wrote to standard output and to standard error; none is left behind."""
    try:
        with ThreadPoolExecutor(len(processes)) as pool:  # all are read at once: a full pipe would stop its writer
            return list(pool.map(lambda process: process.communicate(timeout=timeout), processes))
    finally:
        for process in processes:  # one may wait for another that failed
            process.kill()
            process.communicate()


def outputs(processes: Sequence[subprocess.Popen[str]], timeout: float = 900) -> list[str]:
    """What each wrote to standard output; all must end well."""
    said = wait(processes, timeout)
    failed = [errors[-3000:] for process, (_, errors) in zip(processes, said, strict=True) if process.returncode]
    assert not failed, "\n".join(failed)
    return [out for out, _ in said]


def run_on_devices(file: str, number: int = 8) -> list[str]:
    """The words that the test file prints, run as a program that sees so many CPU devices."""
    return outputs([start([file], number)])[0].split()


def free_address() -> str:
    """A place on this machine that nothing listens to, as HOST:PORT."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def host_flags(number: int) -> list[list[str]]:
    """For each of that many processes the flags by which it joins the others (`jaxdet.runtime.hosts`)."""
    common = ["--coordinator", free_address(), "--num-processes", str(number)]
    return [[*common, "--process-id", str(index)] for index in range(number)]
