"""What parts are, and what they hand to each other."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
from flax import struct

from jaxdet.models.dense import Assigned, DenseOutputs, Origins
from jaxdet.models.features import Losses
from jaxdet.models.roi.boxes import Candidates
from jaxdet.models.roi.masks import MaskPass, TrainedMasks
from jaxdet.models.roi.schedule import Stage
from jaxdet.ops.suppression import Suppression
from jaxdet.structures import Detections, Features, Masks, Samples, Targets


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a model tells its parts about itself."""

    num_classes: int  #: K, the background not counted
    stages: tuple[Stage, ...]  #: of training, or of test; empty in a one-stage model
    unroll: bool | None = None  #: whether stages are written out (`jaxdet.models.roi.scan.choose`)
    suppression: Suppression | None = None  #: what makes detections of the stages' candidates; of a two-stage model


@struct.dataclass
class Found:
    """At test: the detections, and what parts may read about them.

    ``origins``: the places of a one-stage model that they come from.  ``candidates``: what the stages of a two-stage
    model predict before suppression, with the mean logits of all stages and the boxes of the last.  ``view``: the last
    pass of the mask branch.
    """

    detections: Detections
    origins: Origins | None = None
    candidates: Candidates | None = None
    view: MaskPass | None = None


@struct.dataclass
class TrainedPlaces:
    """What a dense detector predicted in training, and to which of its places it assigned an object."""

    outputs: DenseOutputs
    assigned: Assigned


@struct.dataclass
class Instances:
    """Boxes with masks, and the objects that they stand for: what parts learn from that come after masks."""

    boxes: jax.Array  #: ``[B, N, 4]``, as they were predicted
    masks: Masks  #: ``[B, N, m, m]``
    gt_index: jax.Array  #: ``[B, N]`` int32, the object
    counts: jax.Array  #: ``[B, N]`` bool, whether there is one


@struct.dataclass
class Seen:
    """In training: what the parts before this one have trained on.

    ``found`` computes what the model would find now by the parts before this one; without a call it costs nothing.
    """

    samples: list[Samples]  #: the samples of each stage; empty in a one-stage model
    dense: TrainedPlaces | None = None  #: of a one-stage model, its places
    masks: TrainedMasks | None = None  #: the masks of the last stage
    instances: Instances | None = None  #: what was trained on, with its masks
    metrics: Losses = struct.field(default_factory=dict)  #: of parts, by name; they join those of the model
    boxes: Samples | None = None  #: what the box branch of the last stage trained on
    candidates: Candidates | None = None  #: what it makes of these
    found: Callable[[], Found] | None = struct.field(pytree_node=False, default=None)

    @property
    def images(self) -> jax.Array:
        """Which images there are: bool ``[B]``, False for a slot that only fills the batch."""
        # Without an image there is no cell of any level, nor a box.
        if self.dense is not None:
            return jnp.concatenate(self.dense.outputs.exists, 1).any(1)
        return self.samples[0].valid.any(1)


class Part(Protocol):
    """A part that follows suppression.

    A linen module.  Its parameters lie below ``place`` in those of the model.  It makes all of them when it is called
    on detections, whichever of them that call needs.

    A part may have ``on_given``, what becomes of it where boxes are given and are to stay (`TwoStage.describe`):
    ``"asked"``, of one that reads boxes, classes and scores alone and leaves them as they are, or ``"left out"``, of
    one that moves boxes.  With a part that has none, detections of a model can only be its own.
    """

    place: ClassVar[str]

    def __call__(self, features: Features, found: Found, setting: Setting) -> Found:
        """The detections with more known about them; their number, order and validity may change, shapes may not."""

    def losses(
        self, features: Features, seen: Seen, targets: Targets, setting: Setting, key: jax.Array
    ) -> tuple[Losses, Seen]:
        """Loss terms of this part, and what the parts after it may read; ``key`` drives what it draws."""

    def intermediates(
        self, features: Features, found: Found, setting: Setting, before: dict[str, Any]
    ) -> dict[str, Any]:
        """What this part computes for given boxes and labels, by name; ``before``: of earlier parts.

        All detections that are given count.  For tests and comparisons; training and prediction do not call it.
        """


def with_places(parts: Sequence[Any]) -> tuple[Any, ...]:
    """The parts, each named by its place, and from the second of a kind on by a number too.

    Linen names the members of a tuple by their number, so that the parameters of a part would move when another part
    is put before it.  A model that keeps parts sets ``preserve_adopted_names``, and linen keeps these names.  A name
    that a part brings does not count: a stored config knows none, and gives the places that its checkpoint has.
    """
    count = Counter[str]()
    named = []
    for part in parts:
        count[part.place] += 1
        name = part.place if count[part.place] == 1 else f"{part.place}_{count[part.place]}"
        # A part of the right name stays the object that it is: clones and bound modules pass here again.
        named.append(part if part.name == name else part.clone(name=name))
    return tuple(named)
