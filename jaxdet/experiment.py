"""The experiment: what ``get_config()`` of a file in ``configs/`` returns, and what all entry points take.

These classes are stored by name in checkpoints, so this module keeps its name.
"""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxdet.data.settings import COCO_DETECTIONS, Data
from jaxdet.models.detector import Detector


@dataclass(frozen=True)
class Schedule:
    """How long to train and how the learning rate moves.  The defaults are the 1x schedule of COCO training.

    ``length``, ``drops`` and the intervals of `Run` count in ``unit``; the warm-up always counts in steps.
    """

    length: int = 12  #: duration of training
    drops: tuple[int, ...] = (8, 11)  #: when the learning rate is multiplied by ``drop_factor``
    unit: Literal["epochs", "steps"] = "epochs"
    drop_factor: float = 0.1
    warmup_steps: int = 500  #: steps over which the rate rises linearly to the full one
    warmup_ratio: float = 0.001  #: the rate of the first step, as a share of the full one

    def __post_init__(self) -> None:
        if self.length < 1 or self.warmup_steps < 0:
            raise ValueError(
                "Schedule: expected length >= 1 and warmup_steps >= 0, "
                f"got length={self.length}, warmup_steps={self.warmup_steps}"
            )
        if list(self.drops) != sorted(set(self.drops)) or any(d < 1 for d in self.drops):
            raise ValueError(f"Schedule.drops: expected ascending positive {self.unit}, got {self.drops}")

    def in_steps(self, amount: int, steps_per_epoch: int) -> int:
        """Convert an amount in ``unit`` to a number of steps."""
        return amount * steps_per_epoch if self.unit == "epochs" else amount

    def interval(self, amount: int | None, steps_per_epoch: int) -> int:
        """Convert an interval in ``unit`` to steps; None stands for a tenth of the length, at least one unit."""
        return self.in_steps(max(self.length // 10, 1) if amount is None else amount, steps_per_epoch)


@dataclass(frozen=True)
class Optimizer:
    """How gradients change the parameters.

    The default is SGD with momentum as in the reference, with weight decay on every trained parameter, biases and
    norms too.

    ``rule="adamw"`` (Loshchilov and Hutter 2019) is for short runs from scratch; it needs a rate some 20 times lower
    and has no use for ``momentum``.  ``rule="muon"`` (Jordan et al. 2024; optax's) makes the directions of a kernel's
    update equally long; from scratch it learned in far fewer steps than AdamW here (docs/RESULTS.md), at a rate two to
    three times higher.  It divides a kernel's gradient by ``muon_norm`` and evens it out in ``muon_steps``.  The fourth
    Schatten norm is nearer to the longest direction than the Frobenius norm and saves up to a step, but kernels whose
    gradient is shorter than 1e-4 hardly move with it.

    ``lr`` belongs to a global batch of ``base_batch`` images and is scaled in proportion to the batch in use
    (Goyal et al. 2017), so that another number of devices needs no other setting; ``base_batch=none`` switches
    the scaling off.
    """

    rule: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.02  #: learning rate for a batch of ``base_batch`` images
    base_batch: int | None = 16  #: None: the rate does not follow the batch size
    momentum: float = 0.9
    weight_decay: float = 1e-4
    muon_steps: int = 5  #: Newton-Schulz iterations
    muon_norm: Literal["frobenius", "schatten"] = "frobenius"
    clip_norm: float | None = None  #: the gradient is scaled down to this global L2 norm where it is longer
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        positive = {"lr": self.lr, "base_batch": self.base_batch, "clip_norm": self.clip_norm}
        for name, value in positive.items():
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"Optimizer.{name}: expected a positive number, got {value}")
        if self.muon_steps < 1:
            raise ValueError(f"Optimizer.muon_steps: expected 1 or more, got {self.muon_steps}")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError(
                "Optimizer: expected 0 <= momentum < 1 and weight_decay >= 0, "
                f"got momentum={self.momentum}, weight_decay={self.weight_decay}"
            )

    def scaled_lr(self, batch_size: int) -> float:
        """The full learning rate for a batch of ``batch_size`` images over all processes."""
        return self.lr if self.base_batch is None else self.lr * batch_size / self.base_batch


@dataclass(frozen=True)
class Run:
    """What a run does beside its steps.

    Intervals count in the schedule's unit unless they say otherwise.  None stands for a tenth of the schedule, rounded
    down to a whole number of units, which is an epoch of the 1x schedule.
    """

    seed: int = 0  #: seed of initialisation, data order and sampling
    init_from: str | None = None  #: weights to start from: a run folder, or a file of torchvision's or mmdetection's
    init_skip: tuple[str, ...] = ()  #: regular expressions: the variables that they match keep their fresh values
    init_new_classes: bool = False  #: True: the weights are for other classes; what depends on these stays fresh
    log_every: int = 50  #: steps
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2  #: how many stay, the newest ones
    eval_every: int | None = None  #: 0: only after the last step
    eval_batch: int = 8  #: images in an evaluation batch, over all devices
    eval_detections: int = COCO_DETECTIONS  #: of a class in an image that count; above COCO's 100, scores under both
    skip_nonfinite: int = 0  #: steps in a row that may be skipped because a loss or gradient is not finite; 0: none
    shard_parameters: bool = False  #: split parameters and optimizer state over the devices, to save their memory
    pictures: int = 8  #: validation images that are drawn with predictions beside ground truth

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep_checkpoints", "eval_batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"Run.{name}: expected at least 1, got {value}")
        if self.eval_detections < COCO_DETECTIONS:
            raise ValueError(
                f"Run.eval_detections: expected at least {COCO_DETECTIONS}, which COCO's numbers count, "
                f"got {self.eval_detections}"
            )
        for name in ("seed", "eval_every", "skip_nonfinite", "pictures"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"Run.{name}: expected 0 or more, got {getattr(self, name)}")


@dataclass(frozen=True)
class Experiment:
    """A model, its data, its optimizer and its run."""

    model: Detector
    data: Data
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=Run)


def as_experiment(config: object) -> Experiment:
    """Return the config if it is an `Experiment`, else raise a ValueError: files and checkpoints may hold anything."""
    if not isinstance(config, Experiment):
        raise ValueError(f"config: expected an Experiment, got {type(config).__name__}")
    return config
