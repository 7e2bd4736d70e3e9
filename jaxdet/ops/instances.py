"""Masks of one-stage models: how the code of an instance reads the map of an image, and how such masks are trained.

There are two kinds of values that a config chooses from.  A *maker* turns codes and map into logits of each cell of a
grid over the image, and these into masks of detections.  A *loss* compares the logits with the ground truth on the same
grid.

Letters in shapes: N instances of one image, c numbers of a code, h w cells of the map and C numbers in each of them,
y x cells of the grid.  Boxes, places and canvas are in pixels of the resized image.
"""

import dataclasses
from typing import ClassVar, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from jaxdet.ops.bilinear import resize
from jaxdet.ops.losses import binary_cross_entropy
from jaxdet.ops.sampling import hardest
from jaxdet.ranges import CHANNELS, WEIGHT, Range, check_ranges, positive
from jaxdet.structures import Masks

_EXPAND = Range(1, 1000)

Size: TypeAlias = tuple[int, int]
"""Height and width."""


class MaskMaker(Protocol):
    """From the codes of instances, and a map of all pixels, to masks."""

    @property
    def code(self) -> int:
        """c, how many numbers the head gives each place."""
        ...

    @property
    def shift(self) -> float:
        """By how many pixels the cells of the grid lie behind those that would cover the canvas."""
        ...

    def logits(self, pixels: jax.Array, codes: jax.Array, places: jax.Array, canvas_hw: Size) -> jax.Array:
        """``pixels [h, w, C]``, ``codes [N, c]``, ``places [N, 4]`` -> ``[N, y, x]`` float32, positive inside."""
        ...

    def masks(self, logits: jax.Array, boxes: jax.Array, canvas_hw: Size) -> Masks:
        """Masks of detections ``boxes [N, 4]`` from ``logits [N, y, x]``."""
        ...


@dataclasses.dataclass(frozen=True)
class Correlation:
    """RDSNet's masks (Wang et al. 2020, eq. 1): each pixel compares its own code with two of the instance.

    The two, of ``size`` numbers each, stand for background and foreground; the probability is the softmax of the two
    products.  At test a mask is cut at its box, `expanded` by ``expand`` (1.2: a tenth of its side on each side).
    """

    shift: ClassVar[float] = 0.0

    size: int = 32
    expand: float = 1.2
    threshold: float = 0.4

    def __post_init__(self) -> None:
        # Probabilities 0 and 1 have no logit, as which a threshold is compared.
        check_ranges(self, size=CHANNELS, expand=_EXPAND, threshold=Range(0, 1, without=(0, 1)))

    @property
    def code(self) -> int:
        return 2 * self.size

    def logits(self, pixels: jax.Array, codes: jax.Array, places: jax.Array, canvas_hw: Size) -> jax.Array:
        _check_map(pixels, self, size=self.size)
        # A softmax of two is a sigmoid of the difference, so that one product does for both.
        both = codes.astype(jnp.float32).reshape(-1, 2, self.size)
        return _products(pixels, both[:, 1] - both[:, 0])

    def masks(self, logits: jax.Array, boxes: jax.Array, canvas_hw: Size) -> Masks:
        crop = expanded(boxes, self.expand, canvas_hw, canvas_hw)
        # Logits, because the reference resizes before it takes the softmax.
        return Masks(logits, _canvas(boxes, canvas_hw), crop, self.threshold, logits=True)


@dataclasses.dataclass(frozen=True)
class Prototypes:
    """YOLACT's masks (Bolya et al. 2019, eq. 1): prototypes summed up with the coefficients of the instance.

    At test a mask is cut at its box, give or take a cell.
    """

    shift: ClassVar[float] = 0.0

    size: int = 32

    def __post_init__(self) -> None:
        check_ranges(self, size=CHANNELS)

    @property
    def code(self) -> int:
        return self.size

    def logits(self, pixels: jax.Array, codes: jax.Array, places: jax.Array, canvas_hw: Size) -> jax.Array:
        _check_map(pixels, self, size=self.size)
        return _products(pixels, codes)

    def masks(self, logits: jax.Array, boxes: jax.Array, canvas_hw: Size) -> Masks:
        inside = cells_inside(boxes, (logits.shape[1], logits.shape[2]), canvas_hw)
        frames = _canvas(boxes, canvas_hw)
        # Cut on the grid, before it is resized, as in the reference; the crop only says that the frame has no border.
        return Masks(jnp.where(inside, jax.nn.sigmoid(logits), 0.0), frames, frames)


@dataclasses.dataclass(frozen=True)
class DynamicConvs:
    """CondInst's masks (Tian et al. 2020, section 3.1): each instance has a small network of its own.

    Its ``layers`` are 1x1 convolutions of ``channels``, the last to a single one, and the code is their weights.  They
    read the ``inputs`` numbers of each pixel and, before them, how far it lies from the instance's place, in units of
    ``reach`` strides.  The logits are doubled in size.
    """

    shift: ClassVar[float] = 0.5

    channels: int = 8
    inputs: int = 8
    layers: int = 3
    reach: float = 8.0

    def __post_init__(self) -> None:
        check_ranges(self, channels=CHANNELS, inputs=CHANNELS, layers=Range(2, 100), reach=positive(1e6))

    @property
    def code(self) -> int:
        return sum(a * b + b for a, b in self._shapes())

    def logits(self, pixels: jax.Array, codes: jax.Array, places: jax.Array, canvas_hw: Size) -> jax.Array:
        _check_map(pixels, self, inputs=self.inputs)
        height, width = pixels.shape[:2]
        weights, biases = self._split(codes.astype(jnp.float32))
        centre, unit = (places[:, :2] + places[:, 2:]) / 2, self.reach * (places[:, 2:] - places[:, :2])
        # [N, w] and [N, h]: the first layer is linear, so that x and y enter its sum each on its own.
        x = (centre[:, :1] - (jnp.arange(width) + 0.5) * (canvas_hw[1] / width)) / unit[:, :1]
        y = (centre[:, 1:] - (jnp.arange(height) + 0.5) * (canvas_hw[0] / height)) / unit[:, 1:]
        first = weights[0]
        hidden = jnp.einsum("hwi,noi->nohw", pixels.astype(jnp.float32), first[:, :, 2:])
        hidden += (first[:, :, :1] * x[:, None])[:, :, None] + (first[:, :, 1:2] * y[:, None])[..., None]
        hidden += biases[0][..., None, None]
        for weight, bias in zip(weights[1:], biases[1:], strict=True):
            hidden = jnp.einsum("nihw,noi->nohw", jax.nn.relu(hidden), weight) + bias[..., None, None]
        return resize(hidden[:, 0, ..., None], (2 * height, 2 * width), "strided")[..., 0]

    def masks(self, logits: jax.Array, boxes: jax.Array, canvas_hw: Size) -> Masks:
        whole = _canvas(boxes, canvas_hw)
        # Nothing is cut at the box.
        return Masks(jax.nn.sigmoid(logits), whole + self.shift, whole)

    def _shapes(self) -> list[tuple[int, int]]:
        """Numbers in and out of each layer."""
        between = [(self.channels, self.channels)] * (self.layers - 2)
        return [(self.inputs + 2, self.channels), *between, (self.channels, 1)]

    def _split(self, codes: jax.Array) -> tuple[list[jax.Array], list[jax.Array]]:
        """Weights ``[N, out, in]`` and biases ``[N, out]`` of each layer; in a code all weights come first."""
        shapes = self._shapes()
        sizes = [a * b for a, b in shapes] + [b for _, b in shapes]
        parts = jnp.split(codes, [sum(sizes[:i]) for i in range(1, len(sizes))], axis=1)
        weights = [part.reshape(-1, b, a) for part, (a, b) in zip(parts, shapes, strict=False)]
        return weights, parts[len(shapes) :]


class InstanceLoss(Protocol):
    """A loss of logits against bitmaps, for each instance."""

    @property
    def spare(self) -> int:
        """What is added to the number of instances, by which the sum of their losses is divided."""
        ...

    def __call__(self, logits: jax.Array, bitmaps: jax.Array, boxes: jax.Array, canvas_hw: Size) -> jax.Array:
        """``logits`` and ``bitmaps [N, y, x]``, true ``boxes [N, 4]`` with positive sides -> ``[N]``."""
        ...


@dataclasses.dataclass(frozen=True)
class CroppedEntropy:
    """RDSNet's mask loss (Wang et al. 2020, section 3.4): cross entropy inside the expanded box, hard background.

    A box is expanded by ``expand`` (1.5: a quarter of its side on each side).  With ``hard_background`` as many
    background pixels count as there are of the object, those with the largest loss; else all of them.
    """

    spare: ClassVar[int] = 1

    expand: float = 1.5
    hard_background: bool = True

    def __post_init__(self) -> None:
        check_ranges(self, expand=_EXPAND)

    def __call__(self, logits: jax.Array, bitmaps: jax.Array, boxes: jax.Array, canvas_hw: Size) -> jax.Array:
        grid = bitmaps.shape[1], bitmaps.shape[2]
        inside = _cells_between(expanded(boxes, self.expand, grid, canvas_hw), grid)
        loss = binary_cross_entropy(logits, bitmaps)
        # [N, y * x]
        loss, inside, objects = (x.reshape(len(boxes), grid[0] * grid[1]) for x in (loss, inside, bitmaps > 0))
        objects = objects & inside
        background = inside & ~objects
        if self.hard_background:
            weights = objects + hardest(loss, background, objects.sum(-1))
        else:
            weights = inside.astype(jnp.float32)
        return (loss * weights).sum(-1) / (weights.sum(-1) + 1)


@dataclasses.dataclass(frozen=True)
class CutEntropy:
    """YOLACT's mask loss (Bolya et al. 2019, section 3.1): cross entropy of the mask that is cut at the true box.

    The mean over all cells is divided by the box's share of the image, and times ``weight``.
    """

    spare: ClassVar[int] = 0

    weight: float = 6.125

    def __post_init__(self) -> None:
        check_ranges(self, weight=WEIGHT)

    def __call__(self, logits: jax.Array, bitmaps: jax.Array, boxes: jax.Array, canvas_hw: Size) -> jax.Array:
        inside = cells_inside(boxes, (bitmaps.shape[1], bitmaps.shape[2]), canvas_hw)
        # Outside the prediction is 0: right for background, and for the object torch's bound of a logarithm.
        loss = jnp.where(inside, binary_cross_entropy(logits, bitmaps), 100.0 * bitmaps)
        share = jnp.prod(boxes[:, 2:] - boxes[:, :2], -1) / (canvas_hw[0] * canvas_hw[1])
        return self.weight * loss.mean((1, 2)) / share


@dataclasses.dataclass(frozen=True)
class Dice:
    """One minus the dice coefficient over the whole grid, of squares (CondInst, Tian et al. 2020, section 3.3)."""

    spare: ClassVar[int] = 0

    def __call__(self, logits: jax.Array, bitmaps: jax.Array, boxes: jax.Array, canvas_hw: Size) -> jax.Array:
        values = jax.nn.sigmoid(logits)
        shared = (values * bitmaps).sum((1, 2))
        # mmdetection adds 5e-6 to either sum.
        total = jnp.square(values).sum((1, 2)) + jnp.square(bitmaps).sum((1, 2)) + 1e-5
        return 1 - 2 * shared / total


def expanded(boxes: jax.Array, factor: float, grid_hw: Size, canvas_hw: Size) -> jax.Array:
    """Boxes ``[N, 4]`` with sides times ``factor``, as ranges of whole cells of a grid over the canvas.

    At least a cell is added on each side, and the result is cut to the grid.  The arithmetic is that of RDSNet's code,
    in which a box ends at its last pixel: first and last pixel are brought to the grid, moved apart, and rounded down;
    a range then ends *before* its end.  A factor of 1 adds nothing.
    """
    scale = jnp.asarray([grid_hw[1] / canvas_hw[1], grid_hw[0] / canvas_hw[0]], jnp.float32)
    first, last = boxes[:, :2] * scale, (boxes[:, 2:] - 1) * scale
    if factor == 1:
        low, high = first, last + 1
    else:
        more = jnp.maximum((factor - 1) / 2 * (last - first + 1), 1.0)
        low, high = first - more, last + more
    limit = jnp.asarray([grid_hw[1], grid_hw[0]], jnp.float32)
    return jnp.floor(jnp.concatenate([jnp.clip(low, 0.0, limit), jnp.clip(high, 0.0, limit)], -1))


def cells_inside(boxes: jax.Array, grid_hw: Size, canvas_hw: Size) -> jax.Array:
    """Which cells of a grid over the canvas lie in a box, or at most one cell outside: bool ``[N, y, x]``.

    The rule is YOLACT's: the index of a cell is compared with the sides, not its centre.
    """
    scale = jnp.asarray([grid_hw[1] / canvas_hw[1], grid_hw[0] / canvas_hw[0]] * 2, jnp.float32)
    return _cells_between(boxes * scale + jnp.asarray([-1.0, -1.0, 1.0, 1.0]), grid_hw)


def _cells_between(ranges: jax.Array, grid_hw: Size) -> jax.Array:
    """Which cells have their index in ``ranges [N, 4]``, which end before their end: bool ``[N, y, x]``."""
    rows, columns = jnp.arange(grid_hw[0]), jnp.arange(grid_hw[1])
    inside_y = (rows >= ranges[:, 1:2]) & (rows < ranges[:, 3:])
    inside_x = (columns >= ranges[:, :1]) & (columns < ranges[:, 2:3])
    return inside_y[:, :, None] & inside_x[:, None]


def _check_map(pixels: jax.Array, maker: MaskMaker, **setting: int) -> None:
    """ValueError where a map has another number of channels than the setting of the maker."""
    for name, value in setting.items():
        if pixels.shape[-1] != value:
            raise ValueError(
                f"{type(maker).__name__}.{name}: expected the {pixels.shape[-1]} numbers of the map, got {value}; "
                "the number of the map is code of the module in pixels"
            )


def _products(pixels: jax.Array, codes: jax.Array) -> jax.Array:
    """The product of each instance's code ``[N, C]`` with that of each pixel ``[h, w, C]``: ``[N, h, w]`` float32."""
    return jnp.einsum("hwc,nc->nhw", pixels.astype(jnp.float32), codes.astype(jnp.float32))


def _canvas(boxes: jax.Array, canvas_hw: Size) -> jax.Array:
    """The whole canvas as a box for each of ``boxes``."""
    height, width = canvas_hw
    return jnp.broadcast_to(jnp.asarray([0.0, 0.0, width, height]), boxes.shape)
