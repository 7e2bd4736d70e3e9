"""The nouns that travel between data, model and evaluation.

Conventions, everywhere in jaxdet: boxes are ``(x1, y1, x2, y2)``, continuous, float32, in pixels of the
resized image with the origin at its top left corner, and ``width = x2 - x1``.  Images and features are NHWC.
Labels run from 0 to K-1; K is background.  Sizes named ``hw`` are ``(height, width)``.  Shapes are fixed: what
varies in number is padded, and a bool ``valid`` says which slots count.  An invalid slot may hold anything,
NaN included, unless a function says otherwise.

The same classes hold NumPy arrays on the host and ``jax.Array`` on the device.  Letters in shapes: B images,
H W canvas, G ground-truth slots, N proposals, S samples, D detections, C channels, K classes.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from flax import struct

Array: TypeAlias = Any
"""``np.ndarray`` on the host, ``jax.Array`` on the device: the two have no common type that checkers know."""

Levels: TypeAlias = dict[int, jax.Array]
"""Feature maps by log2 of their stride: ``[B, H/2^l, W/2^l, C]``."""


@struct.dataclass
class Features:
    """What a detector sees of a batch of images: the pyramid, and the maps of branches that look at every pixel."""

    levels: Levels
    semantic: jax.Array | None = None  #: ``[B, H/8, W/8, C]``, the embedding of a semantic branch
    semantic_logits: jax.Array | None = None  #: ``[B, H/8, W/8, classes]`` float32, what that branch predicts
    hw: tuple[int, int] | None = struct.field(pytree_node=False, default=None)  #: size of the canvas
    true_hw: jax.Array | None = None  #: ``[B, 2]``, sizes of the images on it; None: they fill it

    @property
    def canvas_hw(self) -> tuple[int, int]:
        """Size of the canvas: where it is not given, the finest map times its stride."""
        if self.hw is not None:
            return self.hw
        finest = min(self.levels)
        height, width = self.levels[finest].shape[1:3]
        return height << finest, width << finest

    @property
    def image_hw(self) -> jax.Array:
        """``[B, 2]``, sizes of the images: those given, or that of the canvas."""
        if self.true_hw is not None:
            return self.true_hw
        images = len(next(iter(self.levels.values())))
        return jnp.broadcast_to(jnp.asarray(self.canvas_hw, jnp.float32), (images, 2))

    def select(self, levels: Sequence[int], reader: str) -> list[jax.Array]:
        """The maps of ``levels``; ValueError, naming the reader, where the pyramid lacks one."""
        missing = [level for level in levels if level not in self.levels]
        if missing:
            raise ValueError(
                f"{reader} reads levels {tuple(levels)}, the pyramid has {sorted(self.levels)} and lacks {missing}: "
                "change its levels, or the neck"
            )
        return [self.levels[level] for level in levels]


@struct.dataclass
class Masks:
    """Bitmaps, each with the frame that it covers: the one form of a mask, for ground truth and for detections.

    A frame is a box in image coordinates.  Pixel ``(i, j)`` of an ``[h, w]`` bitmap is the cell
    ``frame_y1 + [i, i + 1) * frame_height / h``, likewise for x.  A frame may be the box of an instance, the box that
    a mask head looked at (which stays the frame when the detection's own box moves on), or the whole canvas.
    """

    values: Array  #: ``[B, N, h, w]``, of ground truth uint8, 0 or 1; of detections float32 probabilities, or logits
    frames: Array  #: ``[B, N, 4]`` float32
    crop: Array | None = None  #: ``[B, N, 4]`` float32, boxes outside of which a mask is empty; None: nothing is cut
    threshold: float = struct.field(pytree_node=False, default=0.5)  #: the least probability that counts as inside
    #: values are logits, whose sigmoid is the probability: they are interpolated as logits, and then it is taken
    logits: bool = struct.field(pytree_node=False, default=False)
    #: frames are moved to whole pixels of the image when they are painted (`evaluation.paste.snapped`)
    snapped: bool = struct.field(pytree_node=False, default=False)


@struct.dataclass
class Targets:
    """Ground truth of a batch (or of one image, without the leading B)."""

    boxes: Array  #: ``[B, G, 4]`` float32
    labels: Array  #: ``[B, G]`` int32, 0..K-1
    masks: Masks  #: ``[B, G, h, w]``; with h = w = 0 where the data has no masks
    crowd: Array  #: ``[B, G]`` bool, True: a region of many instances, never a positive
    valid: Array  #: ``[B, G]`` bool
    semantic: Array | None = None  #: ``[B, H/8, W/8]`` uint8 class of each pixel, 255: not known; None: no such data


@struct.dataclass
class Batch:
    """Images on one canvas, top left, zero outside ``true_hw``; what maps results back travels along."""

    image: Array  #: ``[B, H, W, 3]`` uint8 RGB, resized, not normalised
    true_hw: Array  #: ``[B, 2]`` float32, size of the resized image inside the canvas
    #: ``[B, 2]`` float32, resized size / original size, (y, x).  In training an offset may come after it
    #: (``data.augment``), which does not travel: nothing is mapped back there.
    scale: Array
    original_hw: Array  #: ``[B, 2]`` int32, size of the image as stored
    index: Array  #: ``[B]`` int32, position in the data source
    valid: Array  #: ``[B]`` bool, False: a slot that only fills the batch
    targets: Targets | None = None
    #: ``[B]`` int32 by name, in training: ``dropped``, the instances without a slot (``data.max_boxes``); with
    #: ``data.min_box`` the ``small_boxes``, and with ``data.skip_broken`` the ``skipped_images``.  A step sums them up,
    #: over all processes.
    counts: dict[str, Array] = struct.field(default_factory=dict)


@struct.dataclass
class Proposals:
    """Boxes that may hold an object, best first; no gradient flows through them."""

    boxes: Array  #: ``[B, N, 4]`` float32
    scores: Array  #: ``[B, N]`` float32, 0..1
    valid: Array  #: ``[B, N]`` bool


@struct.dataclass
class Samples:
    """Boxes chosen for training a head: positives first, then negatives, then invalid slots."""

    boxes: Array  #: ``[B, S, 4]`` float32
    gt_index: Array  #: ``[B, S]`` int32, the matched ground truth; 0 where not positive
    labels: Array  #: ``[B, S]`` int32, K where not positive
    positive: Array  #: ``[B, S]`` bool
    is_truth: Array  #: ``[B, S]`` bool, the box is a ground truth itself
    valid: Array  #: ``[B, S]`` bool


@struct.dataclass
class Detections:
    """What the model found, best first, in coordinates of the resized image."""

    boxes: Array  #: ``[B, D, 4]`` float32
    scores: Array  #: ``[B, D]`` float32, 0..1
    labels: Array  #: ``[B, D]`` int32, 0..K-1
    valid: Array  #: ``[B, D]`` bool
    index: Array  #: ``[B, D]`` int32, the candidate it was: an anchor, point or proposal; 0 where invalid
    masks: Masks | None = None  #: ``[B, D, m, m]``; None where the model predicts none
    mask_scores: Array | None = None  #: ``[B, D]`` float32, scores of the masks; None: those of the boxes
