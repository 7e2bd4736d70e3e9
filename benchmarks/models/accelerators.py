"""Compiles models for GPUs and TPUs that need not be there, and says what would go wrong and what the programs are.

    make accelerators                                     # installs XLA's compilers below build/, and runs this
    python -m benchmarks.models.accelerators --configs sbr_cnn --targets h200 v5e:2x4 --programs training --loops

Each program is that of a run: the training step as ``train.py`` compiles it, with the optimizer of the config and the
shapes that its data have, or the prediction of an evaluation.  It is compiled in a process of its own, since XLA's
compilers end the process where they fail.  Nothing is run, and no times but those of compiling come of it.

It fails, and says why, where a compiler aborts, a program does not fit into the memory of its device, calls the host,
convolves float32 although the model computes in bfloat16, moves more between devices than its gradient, lets devices
wait for each other in a loop whose length the data decide, or would be compiled again for the second batch.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import hlo
from benchmarks.measure import markdown, products
from jaxdet.config import load_config, override
from jaxdet.data import Data, image_batch, listed_source, train_batches
from jaxdet.evaluation.inference import predict_on_mesh
from jaxdet.experiment import Experiment
from jaxdet.ops.devices import traced_for
from jaxdet.runtime.mesh import data_mesh, layout_of
from jaxdet.structures import Batch
from jaxdet.training.optimizer import frozen_parameters, learning_rate, update_direction
from jaxdet.training.state import init_state, init_variables
from jaxdet.training.step import step_of_run

ROOT = Path(__file__).parents[2]
#: Where `make` puts XLA's compilers for the environment that this runs in.
PACKAGES = ROOT / "build" / "accelerators" / Path(sys.prefix).name
FAMILIES = (
    "mask_rcnn_r50_fpn",
    "htc_r50_fpn",
    "sbr_cnn",
    "mr_rcnn_r50_fpn",
    "retinanet_r50_fpn",
    "rdsnet_refine_r50_fpn",
    "condinst_r50_fpn",
)
"""A model of each family."""

PROGRAMS = ("training", "prediction")
DTYPES = ("bfloat16", "float32")

GIBI = 2**30
#: Of a device, by the generation of TPUs, bytes (Google Cloud's pages on each).
TPU_MEMORY = {"v4": 32 * GIBI, "v5e": 16 * GIBI, "v5p": 95 * GIBI, "v6e": 32 * GIBI}
#: Of an H200 jax takes three quarters, as XLA_PYTHON_CLIENT_MEM_FRACTION says.
H200_MEMORY = 0.75 * 150_754_820_096

# An H200 as XLA describes devices: 132 multiprocessors, 4.8 TB/s, 141 GB (NVIDIA's data sheet and cudaDeviceProp).
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 150754820096 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H200"
"""


@dataclass(frozen=True)
class Target:
    """Devices that a program is compiled for: ``h200``, ``h200x8``, or a slice of TPUs by its sides, ``v5e:2x4``."""

    name: str

    def __post_init__(self) -> None:
        if not re.fullmatch(rf"h200(x\d+)?|({'|'.join(TPU_MEMORY)}):\d+(x\d+)+", self.name):
            raise ValueError(f"target: expected h200, h200x8 or a slice such as v5e:2x4, got {self.name!r}")

    @property
    def kind(self) -> str:
        """As `jaxdet.ops.devices.backend` names it."""
        return "gpu" if self.name.startswith("h200") else "tpu"

    @property
    def memory(self) -> float:
        """Bytes that a program may take of a device."""
        return H200_MEMORY if self.kind == "gpu" else TPU_MEMORY[self.name.partition(":")[0]]

    @property
    def images(self) -> int:
        """Images of a batch on each device, if nothing else is asked for."""
        return 4 if self.kind == "gpu" else 2

    @property
    def packages(self) -> str:
        """The lock file that names the compiler, and the folder that it is installed in."""
        return "cuda12" if self.kind == "gpu" else "tpu"

    def environment(self) -> dict[str, str]:
        """Variables without which the compilers look for devices."""
        if self.kind == "gpu":
            # Autotuning would run kernels.
            flags = f"--xla_gpu_autotune_level=0 {os.environ.get('XLA_FLAGS', '')}"
            return {"CUDA_VISIBLE_DEVICES": "-1", "JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "XLA_FLAGS": flags}
        host = {"TPU_WORKER_HOSTNAMES": "localhost", "TPU_WORKER_ID": "0", "TPU_ACCELERATOR_TYPE": "v5litepod-8"}
        # Else only one process at a time may load the compiler, as if it had the devices.
        return {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", **host}

    def mesh(self) -> Mesh:
        """The described devices, along the axis ``data``."""
        if self.kind == "gpu":
            number = self.name.partition("x")[2] or "1"
            found = topologies.get_topology_desc(platform="cuda", target_config=H200, topology=f"1x1x{number}")
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=self.name)
        return data_mesh(found.devices)


@dataclass(frozen=True)
class Row:
    """A program to compile."""

    config: str
    program: str  #: of `PROGRAMS`
    dtype: str  #: of `DTYPES`
    target: str  #: see `Target`
    images: int  #: on each device
    settings: tuple[str, ...] = ()  #: changes of the config, by dotted keys

    def __str__(self) -> str:
        return f"{self.config}, {self.program}, {self.dtype}, {self.target}"


@dataclass(frozen=True)
class Found:
    """What a program is."""

    arguments: int  #: bytes on each device, those that the result takes over included
    temporary: int  #: bytes on each device beside them, results included
    kernels: int  #: launched in a call; of a loop of unknown length one round counts
    loops: list[list[Any]]  #: of each its depth, rounds (None: unknown), kernels of a round and place
    collectives: dict[str, list[int]]  #: bytes by kind, and how many there are
    beside: int  #: of the kernels, those that run while more than `hlo.LITTLE` of them is on its way
    flops: float  #: of products and convolutions, on each device
    bytes: int  #: that kernels read and write, if each reads its operands whole
    seconds: float  #: to compile, of one core; without the processes that XLA starts, which is the assembler of GPUs
    wrong: list[str]  #: what must not be, each with what to do


class Program(NamedTuple):
    """A traced program, and what it is judged by."""

    traced: Any
    state: Any  #: its first argument and its first result, where they are to be of the same types and places
    trained: Any  #: the parameters that have a gradient
    gathered: int  #: bytes of variables that devices keep in parts, and gather (`run.shard_parameters`)


def compile_row(row: Row) -> Found:
    """Compile a program, in the environment that its target asks for."""
    target = Target(row.target)
    experiment = override(load_config(row.config), [f"model.dtype={row.dtype}", *row.settings])
    mesh = target.mesh()
    with traced_for(target.kind, mesh.size):
        program = {"training": training, "prediction": prediction}[row.program](experiment, mesh, row.images)
        begin = time.process_time()
        compiled = program.traced.lower(lowering_platforms=("cuda" if target.kind == "gpu" else "tpu",)).compile()
    seconds = time.process_time() - begin
    memory = compiled.memory_analysis()
    contents = hlo.contents(compiled.as_text())
    temporary = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    wrong = [
        *too_large(memory.argument_size_in_bytes + temporary, target),
        *calls_of_the_host(contents),
        *wide_convolutions(contents, row.dtype),
        *moved_too_much(contents, 4 * sum(leaf.size for leaf in jax.tree.leaves(program.trained)), program.gathered),
        *waits_in_loops(contents),
        *compiled_again(program, compiled),
    ]
    loops = [[each.depth, each.rounds, each.kernels, each.where] for each in contents.loops]
    kinds = Counter(each.kind for each in contents.collectives)
    return Found(
        arguments=memory.argument_size_in_bytes,
        temporary=temporary,
        kernels=contents.launches,
        loops=loops,
        collectives={kind: [contents.moved(kind), kinds[kind]] for kind in sorted(kinds)},
        beside=contents.beside,
        flops=products(program.traced.jaxpr.jaxpr) / mesh.size,
        bytes=contents.bytes,
        seconds=seconds,
        wrong=wrong,
    )


def training(experiment: Experiment, mesh: Mesh, images: int) -> Program:
    """The training step."""
    model, optimizer = experiment.model, experiment.optimizer
    direction = update_direction(optimizer, frozen_parameters(model, experiment.run.train_only))
    averaged = optimizer.ema is not None
    state = jax.eval_shape(lambda: init_state(init_variables(model, jax.random.key(0)), direction, averaged=averaged))
    layout = layout_of(state, mesh, split=experiment.run.shard_parameters)
    step: Any = step_of_run(experiment, direction, learning_rate(optimizer, images * mesh.size, 1000), mesh, layout)
    whole = NamedSharding(mesh, P())
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = _spread(_training_batch(experiment.data.in_training()), mesh, images)
    placed = jax.tree.map(_placed, state, layout)
    return Program(step.trace(placed, batch, _placed(key, whole)), placed, state.params, _gathered(placed.variables))


def prediction(experiment: Experiment, mesh: Mesh, images: int) -> Program:
    """The prediction of a batch."""
    variables = jax.eval_shape(lambda: init_variables(experiment.model, jax.random.key(0)))
    variables = jax.tree.map(_placed, variables, layout_of(variables, mesh, split=experiment.run.shard_parameters))
    data = experiment.data
    batch = _spread(image_batch([np.zeros((data.short_side, data.long_side, 3), np.uint8)], data, 1), mesh, images)
    program = jax.jit(predict_on_mesh, static_argnums=(0, 1))
    traced = program.trace(experiment.model, mesh, variables, batch, None)
    return Program(traced, None, None, _gathered(variables))


def _training_batch(data: Data) -> Batch:
    """A batch of one image as the pipeline makes it: without an object, so that nothing is drawn again and again."""
    hw = {"height": data.short_side, "width": data.long_side}
    box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0}
    content = {
        "images": [{"id": 1, "file_name": "black", **hw}],
        "annotations": [box | {"segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    source = listed_source(content, lambda _: np.zeros((*hw.values(), 3), np.uint8))
    one = replace(data, batch_size=1, workers=0, augment=(), min_side=1)
    return next(iter(train_batches(source, one, seed=0, start_step=0, steps=1)))


def _spread(batch: Batch, mesh: Mesh, images: int) -> Batch:
    """The shapes of that batch with so many images on each device."""
    split = NamedSharding(mesh, P("data"))

    def place(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((images * mesh.size, *leaf.shape[1:]), leaf.dtype, sharding=split)

    spread: Batch = jax.tree.map(place, batch)
    return spread


def _placed(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _gathered(variables: Any) -> int:
    """Bytes of the arrays that are not whole on each device."""
    leaves = jax.tree.leaves(variables)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves if not leaf.sharding.is_fully_replicated)


def too_large(needed: int, target: Target) -> list[str]:
    """Whether the program takes more memory than there is."""
    if needed <= target.memory:
        return []
    return [
        f"it needs {needed / 1e9:.1f} GB of a device that has {target.memory / 1e9:.1f}: take fewer images a device "
        "(data.batch_size, here --images), or model.backbone.remat=true"
    ]


def calls_of_the_host(contents: hlo.Contents) -> list[str]:
    """Whether the devices wait for Python."""
    if not contents.callbacks:
        return []
    return [
        f"it calls the host ({', '.join(sorted(set(contents.callbacks)))}), for which all devices wait: leave out "
        "jax.debug.print, pure_callback and io_callback, or what is built on them"
    ]


def wide_convolutions(contents: hlo.Contents, dtype: str) -> list[str]:
    """Whether a model in bfloat16 convolves float32."""
    wide = sum(count for read, count in contents.convolutions.items() if "f32" in read)
    if dtype != "bfloat16" or not wide:
        return []
    return [
        f"{wide} of {contents.convolutions.total()} convolutions read float32 although the model computes in bfloat16: "
        "cast what they read, as the modules of jaxdet/nn do with their `dtype`"
    ]


def moved_too_much(contents: hlo.Contents, gradient: int, gathered: int) -> list[str]:
    """Whether more passes between devices than the gradient's sum, and the variables where they are gathered."""
    sums = contents.moved("all-reduce")
    others = sorted((each for each in contents.collectives if each.kind != "all-reduce"), key=lambda each: -each.bytes)
    found = []
    if sums > gradient + hlo.LITTLE:
        found.append(
            f"it sums {sums / 1e6:.1f} MB over the devices, where the gradient has {gradient / 1e6:.1f} in float32: "
            "activations are summed too; keep what is computed of an image on its device (jax.vmap over images)"
        )
    if (moved := contents.moved() - sums) > gathered + hlo.LITTLE:
        found.append(
            f"it moves {moved / 1e6:.1f} MB between devices beside sums, the most by {others[0].kind} at "
            f"{others[0].where!r}: XLA cannot split an operation along the images; write it for one image under "
            "jax.vmap, and leave out what cannot be split, as `top_k` in jaxdet/ops/selection.py does"
        )
    return found


def waits_in_loops(contents: hlo.Contents) -> list[str]:
    """Whether devices ask each other in every round of a loop whether there is another one."""
    if not contents.waiting:
        return []
    return [
        f"in {len(contents.waiting)} loops, whose length the data decide, all devices wait for each other in every "
        f"round, first in {contents.waiting[0]!r}: let each device go on by itself (`on_own_images` in "
        "jaxdet/ops/devices.py)"
    ]


def compiled_again(program: Program, compiled: Any) -> list[str]:
    """Whether the new state is of another type or lies otherwise than the old one, so that the next step is another."""
    leaves = jax.tree_util.tree_leaves_with_path(program.state)
    types, places = program.traced.jaxpr, jax.tree.leaves(compiled.output_shardings)
    other = [
        jax.tree_util.keystr(path)
        for (path, leaf), old, new, place in zip(leaves, types.in_avals, types.out_avals, places, strict=False)
        if _type(old) != _type(new) or not leaf.sharding.is_equivalent_to(place, leaf.ndim)
    ]
    if not other:
        return []
    return [
        f"the next step is another program: {len(other)} arrays of the state change their type or place in a step, the "
        f"first is {other[0]}; give the new value the dtype of the old one, without weak types"
    ]


def _type(aval: Any) -> tuple[Any, ...]:
    return aval.shape, aval.dtype, aval.weak_type


def run_row(row: Row, packages: Path, limit: float) -> Found | str:
    """Compile a program in a process of its own; what went wrong, where nothing came of it."""
    target = Target(row.target)
    folder = packages / target.packages
    if not folder.is_dir():
        return f"there is no compiler for it in {folder}: make accelerators installs it"
    path = os.pathsep.join([str(folder), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    # The cache of compiled programs would say nothing of compiling.
    own = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    argument = json.dumps(row.__dict__)
    command = [sys.executable, "-m", "benchmarks.models.accelerators", "--row", argument]
    try:
        done = subprocess.run(
            command, env=os.environ | own | target.environment(), capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return f"it was not compiled after {limit:.0f} s: allow more by --seconds, or look at its parts one by one"
    if done.returncode == 0:
        return Found(**json.loads(done.stdout.splitlines()[-1]))
    return failure(done.returncode, done.stderr)


def failure(code: int, errors: str) -> str:
    """What a process that failed has to say."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    if code < 0:
        reason = next((line for line in lines if "Check failed" in line), lines[-1] if lines else "without a word")
        return (
            f"the compiler aborted with signal {-code}: {reason[:300]}. It is a fault of XLA's: find the operation by "
            "compiling parts of the model, and write it otherwise for that device, as `convolve` in "
            "jaxdet/nn/blocks/layers.py does"
        )
    reason = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "without a word")
    if "RESOURCE_EXHAUSTED" in errors:
        return (
            f"it does not fit into the memory of its device: {reason[:300]}. Take fewer images a device "
            "(data.batch_size, here --images), or model.backbone.remat=true"
        )
    return f"it ended with exit code {code}: {reason[:300]}"


HEAD = [
    *("", "images a device", "arguments MB", "temporary MB", "of the memory", "kernels", "loops", "of unknown length"),
    *("between devices MB", "GFLOP", "GB", "compile, s of a core"),
]


def line(row: Row, found: Found) -> list[Any]:
    """A line of the table."""
    share = (found.arguments + found.temporary) / Target(row.target).memory
    dynamic = sum(rounds is None for _, rounds, _, _ in found.loops)
    moved = sum(size for size, _ in found.collectives.values()) / 1e6
    return [
        *(str(row), row.images, found.arguments / 1e6, found.temporary / 1e6, f"{share:.0%}"),
        *(found.kernels, len(found.loops), dynamic, moved, found.flops / 1e9, found.bytes / 1e9, found.seconds),
    ]


def details(row: Row, found: Found) -> str:
    """Loops of a program and what passes between devices, a line for each."""
    said = [f"{row}:"]
    for depth, rounds, kernels, where in found.loops:
        turns = "an unknown number of" if rounds is None else str(rounds)
        said.append(f"{'  ' * (depth + 1)}{turns} rounds of {kernels} kernels: {where[-100:]}")
    said += [f"  {kind}: {size / 1e6:.2f} MB in {number}" for kind, (size, number) in found.collectives.items()]
    if found.collectives:
        said.append(f"  {found.beside} of {found.kernels} kernels run beside that")
    return "\n".join(said)


def rows(args: argparse.Namespace) -> list[Row]:
    """What the command line asks for."""
    return [
        Row(config, program, dtype, target, images, tuple(args.set))
        for target in args.targets
        for config in args.configs
        for program in args.programs
        for dtype in args.dtypes
        for images in args.images or [Target(target).images]
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and what is wrong; exit code 1 if something is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=FAMILIES)
    parser.add_argument("--targets", nargs="+", default=("h200", "h200x8"), help="h200, h200xN, or a slice: v5e:2x4")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=("bfloat16",))
    parser.add_argument("--images", type=int, nargs="+", help="on each device; 4 of a GPU, 2 of a TPU if not given")
    parser.add_argument("--set", nargs="+", default=(), metavar="KEY=VALUE", help="settings of all configs")
    parser.add_argument("--seconds", type=float, default=3600, help="that a program may take")
    parser.add_argument("--loops", action="store_true", help="list loops and collectives too")
    parser.add_argument("--packages", type=Path, default=PACKAGES, help="XLA's compilers")
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.row:
        asked = json.loads(args.row)
        print(json.dumps(compile_row(Row(**asked | {"settings": tuple(asked["settings"])})).__dict__))
        return
    lines, said, wrong = [], [], []
    for row in rows(args):
        found = run_row(row, args.packages, args.seconds)
        problems = [found] if isinstance(found, str) else found.wrong
        wrong += [f"{row}: {problem}" for problem in problems]
        for problem in problems:
            print(f"{row}: {problem}", file=sys.stderr, flush=True)
        if not isinstance(found, str):
            lines.append(line(row, found))
            said.append(details(row, found))
    print(f"jax {jax.__version__}\n\n{markdown(HEAD, lines)}")
    if args.loops:
        print("\n" + "\n".join(said))
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(rows(args))} programs are wrong")


if __name__ == "__main__":
    main()
