"""Efficiency of data parallelism on many devices, predicted from the step time of one: the tables of docs/SCALING.md.

    python -m benchmarks.models.scaling
    python -m benchmarks.models.scaling --step-ms 40 --images 4 --parameters 44170992      # a step that you measured

Nothing is run.  A step computes, and sums the gradient over all devices: in a ring inside each host, then between
hosts, each device with its own part of the gradient.  What of the sum hides behind the backward pass is not known
beforehand, so the table has both ends: all of it and nothing of it.  A step takes at least as long as the cores of the
host need to prepare its images.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Work:
    """A step on one device."""

    name: str
    step_ms: float
    images: int  #: of a step, on one device
    parameters: int  #: trained
    core_ms: float = 8.0  #: of one core, to prepare an image: photographs of COCO, docs/BENCHMARKS.md, input pipeline
    image_kb: float = 163.0  #: of a file: those of COCO train2017, 19.3 GB in 118,287 files


@dataclass(frozen=True)
class Cluster:
    """Links and hosts."""

    per_host: int  #: devices
    inside: float  #: GB/s that a device sends to others of its host
    between: float  #: GB/s that a device sends to other hosts, its share of the host's network
    latency_us: float  #: of one message between hosts
    share: float  #: of these speeds that large messages reach
    cores: float  #: that prepare images, for each device


@dataclass(frozen=True)
class Prediction:
    """One row."""

    devices: int
    sum_ms: float  #: of the gradient over all devices
    hidden: float  #: efficiency if the sum takes place during the backward pass
    exposed: float  #: efficiency if the sum begins after it
    images_per_second: float  #: exposed, all devices
    cores: float  #: that one device keeps busy
    read_gbs: float  #: image files, all devices


# Measured on an H200 (docs/RESULTS.md, the earlier attempt with AdamW).  Its images cost 1.5 to 1.9 ms of a core:
# python -m benchmarks.peers.pipeline --size 160 --batch_size 16, three times beside other jobs, the median here.
SMALL = Work("small Mask R-CNN on 160 x 160", 6.9, 16, 4_052_356, core_ms=1.5, image_kb=23)
# Not measured: the rate of MLPerf Training 3.1's record, 143 images/s on each H100, taken as the goal.
GOAL = Work("Mask R-CNN R50-FPN on 800 x 1333 at the goal's speed", 4000 / 143, 4, 44_170_992)
# NVIDIA DGX H200: 900 GB/s of NVLink in both directions together, eight ports of 400 Gb/s, 112 cores.
DGX = Cluster(per_host=8, inside=450, between=400 / 8, latency_us=10, share=0.7, cores=14)
ETHERNET = Cluster(per_host=8, inside=450, between=25 / 8 / 8, latency_us=50, share=0.7, cores=14)


def predict(work: Work, cluster: Cluster, devices: int) -> Prediction:
    """What that many devices do together, each with the images of one."""
    local = min(devices, cluster.per_host)
    hosts = -(-devices // cluster.per_host)
    gradient = 4 * work.parameters  # bytes, float32
    # A ring of n sends 2 (n - 1) / n of the data from each member: once to sum, once to give the sums back.
    inside = 2 * (local - 1) / local * gradient / (cluster.share * cluster.inside * 1e9)
    between = 2 * (hosts - 1) / hosts * gradient / local / (cluster.share * cluster.between * 1e9)
    sum_ms = 1000 * (inside + between) + 2 * (hosts - 1) * cluster.latency_us / 1000
    input_ms = work.images * work.core_ms / cluster.cores
    exposed_ms = max(work.step_ms + sum_ms, input_ms)
    rate = devices * work.images / exposed_ms * 1000
    return Prediction(
        devices=devices,
        sum_ms=sum_ms,
        hidden=work.step_ms / max(work.step_ms, sum_ms, input_ms),
        exposed=work.step_ms / exposed_ms,
        images_per_second=rate,
        cores=work.images / work.step_ms * work.core_ms,
        read_gbs=rate * work.image_kb / 1e6,
    )


def show(work: Work, cluster: Cluster, name: str, numbers: Sequence[int]) -> None:
    """The table of one work on one cluster."""
    title = f"{work.name}: {work.step_ms:.1f} ms a step of {work.images} images, {name}"
    table = Table(title=title, title_justify="left")
    heads = ("devices", "global batch", "sum of the gradient, ms", "efficiency, hidden", "exposed", "images/s")
    for head in (*heads, f"cores a device (of {cluster.cores:g})", "read, GB/s"):
        table.add_column(head, justify="right")
    for devices in numbers:
        row = predict(work, cluster, devices)
        shares = (f"{row.hidden:.1%}", f"{row.exposed:.1%}")
        input_side = (f"{row.cores:.1f}", f"{row.read_gbs:.2f}")
        batch = f"{devices * work.images:,}"
        table.add_row(str(devices), batch, f"{row.sum_ms:.2f}", *shares, f"{row.images_per_second:,.0f}", *input_side)
    Console(width=150).print(table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-ms", type=float, help="a measured step of one device, in place of the built-in ones")
    parser.add_argument("--images", type=int, default=GOAL.images, help="of that step")
    parser.add_argument("--parameters", type=int, default=GOAL.parameters, help="that are trained")
    parser.add_argument("--core-ms", type=float, default=GOAL.core_ms, help="of one core, to prepare an image")
    parser.add_argument("--devices", type=int, nargs="+", default=(1, 8, 64, 512))
    options = parser.parse_args()
    works = [SMALL, GOAL]
    if options.step_ms is not None:
        works = [Work("measured", options.step_ms, options.images, options.parameters, options.core_ms)]
    for work in works:
        show(work, DGX, "NVLink and 400 Gb/s for each device", options.devices)
        show(work, ETHERNET, "NVLink and 25 Gb/s for each host", options.devices)


if __name__ == "__main__":
    main()
