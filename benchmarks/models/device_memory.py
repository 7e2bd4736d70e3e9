"""Memory that a running program takes, beside what XLA said of it when it compiled it.

    python -m benchmarks.models.device_memory --configs mask_rcnn_r50_fpn r3_cnn sbr_cnn
    python -m benchmarks.models.device_memory --dtype bfloat16 --batch 4       # an accelerator

Each program runs in a process of its own, which holds its arguments already.  "said" is what XLA sets aside besides
them: temporary values, and results that do not take an argument's place.  "taken" is by how much the peak during two
calls lies above what was in use before: of the device, or, on a CPU, of the process's resident memory (Linux).
"""

import argparse
import ctypes
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from benchmarks.measure import machine, markdown
from benchmarks.models.memory import resident
from benchmarks.programs import inference, make_inputs, make_model, make_weights, options, setting, training

MAKERS = {"inference": inference, "training step": training}


def taken(call: Callable[[], Any]) -> float:
    """MB at the peak of two calls above what is in use now."""
    if jax.default_backend() == "cpu":
        _forget_what_was_freed()
    before, _ = _in_use_and_peak()
    for _ in range(2):
        jax.block_until_ready(call())
    return _in_use_and_peak()[1] - before


def _in_use_and_peak() -> tuple[float, float]:
    """MB."""
    stats = jax.devices()[0].memory_stats()
    if stats is None:
        return resident("self"), resident("self", "VmHWM")
    return stats["bytes_in_use"] / 1e6, stats["peak_bytes_in_use"] / 1e6


def _forget_what_was_freed() -> None:
    """As what compiling took: it goes back to the system, and the peak of the process is counted anew."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def measure(config: str, kind: str, args: argparse.Namespace) -> list[Any]:
    """A row of the table; run in a process of its own."""
    net = make_model(config, args.dtype)
    program, call = MAKERS[kind](net, make_weights(net), make_inputs(tuple(args.image), args.batch))
    memory = program.call.memory_analysis()
    arguments = memory.argument_size_in_bytes / 1e6
    said = (memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes) / 1e6
    found = taken(call)
    return [f"{config}, {kind}", arguments, said, found, found / said]


def main() -> None:
    """Print the table."""
    parser = options(__doc__)
    parser.add_argument("--configs", nargs="+", default=("mask_rcnn_r50_fpn", "r3_cnn", "sbr_cnn"))
    parser.add_argument("--inference-only", action="store_true")
    args = parser.parse_args()
    lines = []
    context = multiprocessing.get_context("spawn")
    for config in args.configs:
        for kind in ("inference",) if args.inference_only else MAKERS:
            with ProcessPoolExecutor(1, mp_context=context) as alone:
                lines.append(alone.submit(measure, config, kind, args).result())
    head = ["", "arguments MB", "said MB", "taken MB", "taken / said"]
    print(f"{machine()}; {setting(args)}\n\n{markdown(head, lines)}")


if __name__ == "__main__":
    main()
