"""RoIAlign, NMS and ResNet-50 of jaxdet beside plain torch ones, on the same inputs and weights, in one run.

    pip install torch==2.13.0     # the CPU build: --index-url https://download.pytorch.org/whl/cpu
    python -m benchmarks.torch_side_by_side --repeats 5

torchvision's compiled RoIAlign and NMS are not used: the torch side is written here, vectorised where torch allows it.
Both sides are first compared, then timed in turn, so that whatever else the machine does hits both; medians are shown.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxdet.checkpoints.from_mmdet import to_mmdet
from jaxdet.nn.extractor import OneLevel
from jaxdet.nn.resnet import BLOCKS, ResNet
from jaxdet.ops.nms import nms
from jaxdet.ops.roi_align import roi_align

try:
    import torch
    from torch import nn
    from torch.nn import functional
except ImportError:
    sys.exit("torch is no dependency of jaxdet; for this comparison: pip install torch==2.13.0")

HW = (800, 1088)
STRIDES = (4, 8, 16, 32)
FROZEN = ("conv1", "bn1", "layer1")
Array = np.ndarray
Work = Callable[[], Any]


@dataclass(frozen=True)
class Row:
    """One comparison: names, seconds of each side, and how far their results are apart."""

    what: str
    torch_ms: float
    jax_ms: float
    difference: str


def in_turn(torch_work: Work, jax_work: Work, repeats: int) -> tuple[float, float]:
    """Median milliseconds of each, run alternately after one run each that does not count."""
    sides: tuple[tuple[Work, list[float]], ...] = ((torch_work, []), (lambda: jax.block_until_ready(jax_work()), []))
    for work, _ in sides:
        work()
    for _ in range(repeats):
        for work, times in sides:
            begin = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(sides[0][1]), statistics.median(sides[1][1])


def apart(torch_results: Sequence[Any], jax_results: Sequence[Any]) -> str:
    """Largest absolute difference of arrays in the same layout, and the largest value for scale."""
    pairs = [(t.detach().numpy(), np.asarray(j)) for t, j in zip(torch_results, jax_results, strict=True)]
    worst = max(float(np.abs(t - j).max()) for t, j in pairs)
    return f"{worst:.1e} of {max(float(np.abs(t).max()) for t, _ in pairs):.1e}"


def random_boxes(rng: np.random.Generator, number: int) -> Array:
    """Boxes ``[number, 4]`` of 16 to 600 pixels, in huddles, partly beyond the image."""
    centres = rng.uniform(0, 1, (number // 20 + 1, 2)) * HW[::-1]
    centre = centres[rng.integers(len(centres), size=number)] + rng.normal(0, 10, (number, 2))
    size = np.exp(rng.uniform(np.log(16), np.log(600), (number // 20 + 1, 2)))[rng.integers(len(centres), size=number)]
    size = size * np.exp(rng.normal(0, 0.1, (number, 2)))
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)


# --- RoIAlign -------------------------------------------------------------------------------------------------------


def torch_roi_align(maps: list[Any], boxes: Any, level: Any, size: int, ratio: int) -> Any:
    """``[N, C, size, size]``: one ``grid_sample`` for the boxes of a level that take equally many samples a bin."""
    out = torch.zeros(len(boxes), maps[0].shape[1], size, size)
    for index, (features, stride) in enumerate(zip(maps, STRIDES, strict=True)):
        on_level = torch.nonzero(level == index)[:, 0]
        scaled = boxes[on_level] / stride - 0.5
        bins = (scaled[:, 2:] - scaled[:, :2]) / size
        count = torch.ceil(bins).int().clamp(min=1) if ratio == 0 else torch.full_like(bins, ratio, dtype=torch.int32)
        for nx, ny in torch.unique(count, dim=0).tolist():
            chosen = (count == torch.tensor([nx, ny])).all(1)
            crops = _sampled(features, scaled[chosen], bins[chosen], (nx, ny), size)
            out = out.index_copy(0, on_level[chosen], crops)
    return out


def _sampled(features: Any, boxes: Any, bins: Any, count: tuple[int, int], size: int) -> Any:
    """Means over ``count`` (x, y) samples a bin of ``boxes``, which are in pixels of ``features [1, C, H, W]``."""
    limits = features.shape[3], features.shape[2]
    axes = []
    for axis in (0, 1):
        cells = (torch.arange(size * count[axis]) + 0.5) / count[axis]
        axes.append(boxes[:, axis, None] + cells * bins[:, axis, None])
    x, y = (p.clamp(0, limit - 1) * 2 / (limit - 1) - 1 for p, limit in zip(axes, limits, strict=True))
    inside = [((p >= -1) & (p <= limit)).float() for p, limit in zip(axes, limits, strict=True)]
    n, rows, columns = len(boxes), y.shape[1], x.shape[1]
    grid = torch.stack([x[:, None].expand(n, rows, columns), y[:, :, None].expand(n, rows, columns)], -1)
    samples = functional.grid_sample(features, grid.reshape(1, n * rows, columns, 2), align_corners=True)
    samples = samples[0].reshape(-1, n, rows, columns) * (inside[1][:, :, None] * inside[0][:, None])
    crops = samples.reshape(-1, n, size, count[1], size, count[0]).mean((3, 5))
    return crops.transpose(0, 1)


def roi_align_rows(repeats: int, boxes: int, ratio: int) -> list[Row]:
    """Forward, and forward with backward, on a pyramid of 256 channels, 7x7 bins."""
    rng = np.random.default_rng(0)
    pyramid = [rng.standard_normal((1, HW[0] // s, HW[1] // s, 256), np.float32) for s in STRIDES]
    rois = random_boxes(rng, boxes)
    cotangent = rng.standard_normal((boxes, 7, 7, 256), np.float32)
    level = np.asarray(OneLevel().level_of(jnp.asarray(rois)))

    def ours(maps: list[Any]) -> Any:
        valid = jnp.ones((1, boxes), bool)
        scales = [1 / s for s in STRIDES]
        return roi_align(maps, scales, rois[None], level[None], valid, size=(7, 7), sampling_ratio=ratio)[0]

    jax_maps = [jnp.asarray(m) for m in pyramid]
    forward = jax.jit(ours)
    both = jax.jit(jax.value_and_grad(lambda maps: (ours(maps) * cotangent).sum()))
    torch_maps = [torch.from_numpy(m.transpose(0, 3, 1, 2).copy()).requires_grad_() for m in pyramid]
    torch_rois, torch_level = torch.from_numpy(rois), torch.from_numpy(level.astype(np.int64))
    torch_cotangent = torch.from_numpy(cotangent.transpose(0, 3, 1, 2).copy())

    def torch_forward() -> Any:
        with torch.no_grad():
            return torch_roi_align(torch_maps, torch_rois, torch_level, 7, ratio)

    def torch_both() -> tuple[Any, ...]:
        total = (torch_roi_align(torch_maps, torch_rois, torch_level, 7, ratio) * torch_cotangent).sum()
        return torch.autograd.grad(total, torch_maps, materialize_grads=True)

    name = f"RoIAlign, {boxes} boxes, {'adaptive' if ratio == 0 else f'{ratio} samples a bin'}"
    crops = apart([torch_forward()], [np.moveaxis(forward(jax_maps), -1, 1)])
    gradients = apart(torch_both(), [np.moveaxis(g, -1, 1) for g in both(jax_maps)[1]])
    return [
        Row(f"{name}, forward", *in_turn(torch_forward, lambda: forward(jax_maps), repeats), crops),
        Row(f"{name}, with gradient", *in_turn(torch_both, lambda: both(jax_maps), repeats), gradients),
    ]


# --- NMS ------------------------------------------------------------------------------------------------------------


def torch_nms(boxes: Any, scores: Any, threshold: float, limit: int) -> list[int]:
    """The sequential rule: the whole matrix of overlaps at once, then a walk down the scores."""
    order = torch.argsort(scores, descending=True, stable=True)
    ranked = boxes[order]
    size = (ranked[:, 2:] - ranked[:, :2]).clamp(min=0)
    area = size[:, 0] * size[:, 1]
    low = torch.maximum(ranked[:, None, :2], ranked[None, :, :2])
    shared = (torch.minimum(ranked[:, None, 2:], ranked[None, :, 2:]) - low).clamp(min=0).prod(-1)
    over = shared > threshold * (area[:, None] + area[None] - shared)
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not gone[i]:
            kept.append(i)
            gone |= over[i]
        if len(kept) == limit:
            break
    return order[kept].tolist()


def nms_row(repeats: int, number: int, threshold: float = 0.7, limit: int = 1000) -> Row:
    """Suppression of one image's boxes."""
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, number), rng.uniform(size=number).astype(np.float32)
    ours = jax.jit(lambda b, s: nms(b, s, jnp.ones(number, bool), threshold=threshold, limit=limit))
    torch_boxes, torch_scores = torch.from_numpy(boxes), torch.from_numpy(scores)
    kept = ours(boxes, scores)
    mine = np.asarray(kept.index)[np.asarray(kept.valid)].tolist()
    theirs = torch_nms(torch_boxes, torch_scores, threshold, limit)
    same = f"same {len(mine)} boxes" if mine == theirs else f"{len(set(mine) ^ set(theirs))} boxes differ"
    work = lambda: torch_nms(torch_boxes, torch_scores, threshold, limit)  # noqa: E731
    return Row(f"NMS, {number} boxes, IoU {threshold}", *in_turn(work, lambda: ours(boxes, scores), repeats), same)


# --- ResNet-50 ------------------------------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """A residual block of a torch ResNet-50; module names are torchvision's, so that weights fit by name."""

    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, 4 * channels, 1, bias=False), nn.BatchNorm2d(4 * channels)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != 4 * channels:
            shortcut = nn.Conv2d(inputs, 4 * channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(4 * channels))

    def forward(self, x: Any) -> Any:
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class TorchResNet50(nn.Module):
    """C2 to C5 of an image; batch norm by stored statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, blocks in enumerate(BLOCKS[50], 1):
            channels = 32 * 2**stage
            layers = []
            for i in range(blocks):
                layers.append(Bottleneck(inputs, channels, 2 if stage > 1 and i == 0 else 1))
                inputs = 4 * channels
            setattr(self, f"layer{stage}", nn.Sequential(*layers))

    def forward(self, x: Any) -> list[Any]:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        features = []
        for stage in (1, 2, 3, 4):
            x = getattr(self, f"layer{stage}")(x)
            features.append(x)
        return features


def twins() -> tuple[Any, Any, Any]:
    """Module and variables of jaxdet, and a torch module of the same weights, its first stages frozen."""
    net, image = ResNet(depth=50), jnp.zeros((1, 64, 64, 3))
    variables = jax.tree.map(np.asarray, jax.jit(net.init)(jax.random.key(0), image))
    # Fresh blocks end in a scale of 0, which hides most of the network from a comparison.
    params = jax.tree_util.tree_map_with_path(lambda p, a: 0.3 + a if p[-1].key == "scale" else a, variables["params"])
    variables = {"params": {"backbone": params}, "batch_stats": {"backbone": variables["batch_stats"]}}
    state = {name.removeprefix("backbone."): torch.tensor(a) for name, a in to_mmdet(variables).items()}
    twin = TorchResNet50().eval()
    missing, unexpected = twin.load_state_dict(state, strict=False)
    assert not unexpected, unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    for name, parameter in twin.named_parameters():
        parameter.requires_grad_(name.partition(".")[0] not in FROZEN)
    return net, {name: tree["backbone"] for name, tree in variables.items()}, twin


def resnet_rows(repeats: int) -> list[Row]:
    """Features of one image, and features with the gradient of a loss over them, stem and first stage frozen."""
    net, variables, twin = twins()
    image = np.random.default_rng(2).standard_normal((1, *HW, 3), np.float32)
    jax_image, torch_image = jnp.asarray(image), torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    forward = jax.jit(lambda v, x: list(net.apply(v, x).values()))

    def loss(params: Any, x: Any) -> Any:
        return sum(jnp.square(f).mean() for f in net.apply({**variables, "params": params}, x).values())

    both = jax.jit(jax.value_and_grad(loss))

    def torch_forward() -> list[Any]:
        with torch.no_grad():
            return twin(torch_image)

    def torch_both() -> list[Any]:
        twin.zero_grad()
        sum(f.square().mean() for f in twin(torch_image)).backward()
        return [twin.layer2[0].conv1.weight.grad, twin.layer4[2].conv3.weight.grad]

    features = apart(torch_forward(), [np.moveaxis(f, -1, 1) for f in forward(variables, jax_image)])
    grads = both(variables["params"], jax_image)[1]
    chosen = [grads["layer2_0"]["conv1"]["kernel"], grads["layer4_2"]["conv3"]["kernel"]]
    gradients = apart(torch_both(), [np.transpose(g, (3, 2, 0, 1)) for g in chosen])
    name, params = f"ResNet-50, 1 x {HW[0]} x {HW[1]}", variables["params"]
    return [
        Row(f"{name}, features", *in_turn(torch_forward, lambda: forward(variables, jax_image), repeats), features),
        Row(f"{name}, with gradient", *in_turn(torch_both, lambda: both(params, jax_image), repeats), gradients),
    ]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="jaxdet beside torch: milliseconds and ratios")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--boxes", type=int, default=512, help="boxes of RoIAlign")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))  # as taskset leaves them; XLA looks there too
    torch.set_num_threads(cores)
    rows = [row for ratio in (0, 2) for row in roi_align_rows(options.repeats, options.boxes, ratio)]
    rows += [nms_row(options.repeats, number) for number in (1000, 4000)]
    rows += resnet_rows(options.repeats)
    title = f"torch {torch.__version__}, jax {jax.__version__} on {jax.default_backend()}, {cores} core(s)"
    table = Table("", "torch, ms", "jaxdet, ms", "torch / jaxdet", "largest difference", title=title)
    for row in rows:
        ratio = f"{row.torch_ms / row.jax_ms:.2f}"
        table.add_row(row.what, f"{row.torch_ms:.1f}", f"{row.jax_ms:.1f}", ratio, row.difference)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
