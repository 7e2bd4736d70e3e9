"""The experiment: what ``get_config()`` of a file in ``configs/`` returns, and what all entry points take.

These classes are stored by name in checkpoints, so this module keeps its name.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

from jaxdet.data.settings import COCO_DETECTIONS, Data
from jaxdet.models.detector import Detector
from jaxdet.ranges import SHARE, Range, check_ranges, positive


@dataclass(frozen=True)
class Schedule:
    """How long to train and how the learning rate moves.  The defaults are the 1x schedule of COCO training.

    ``length``, ``drops`` and the intervals of `Run` count in ``unit``; the warm-up counts in steps, or is a share of
    the whole.  With ``decay="cosine"`` or ``"linear"`` the rate falls from the end of the warm-up to that of the run
    (Loshchilov and Hutter 2017), and there are no drops.
    """

    length: int = 12  #: duration of training
    drops: tuple[int, ...] = (8, 11)  #: when the learning rate is multiplied by ``drop_factor``
    unit: Literal["epochs", "steps"] = "epochs"
    drop_factor: float = 0.1
    warmup_steps: int = 500  #: steps over which the rate rises linearly to the full one; fewer in a short run
    warmup_ratio: float = 0.001  #: the rate of the first step, as a share of the full one
    warmup_share: float | None = None  #: the warm-up as a share of the run, in place of ``warmup_steps``
    decay: Literal["drops", "cosine", "linear"] = "drops"  #: how the rate falls
    final_ratio: float = 0.0  #: the rate at the end of a cosine or linear decay, as a share of the full one

    def __post_init__(self) -> None:
        check_ranges(self, length=Range(1, 10**8), warmup_steps=Range(0, 10**9), warmup_share=Range(0, 0.9))
        check_ranges(self, drop_factor=positive(1), warmup_ratio=SHARE, final_ratio=SHARE)
        if list(self.drops) != sorted(set(self.drops)) or any(not 1 <= d <= 10**8 for d in self.drops):
            raise ValueError(f"Schedule.drops: expected ascending positive {self.unit}, got {self.drops}")

    def warmup(self, steps_per_epoch: int) -> int:
        """The steps of the warm-up: no more than a third of the run, and over by the first drop.

        Otherwise a small data set would never be trained at the full rate: 100 images in batches of 16 are 84 steps in
        12 epochs.  A ``warmup_share`` is taken as it is.
        """
        whole = self.in_steps(self.length, steps_per_epoch)
        if self.warmup_share is not None:
            return round(self.warmup_share * whole)
        if self.decay != "drops":
            return min(self.warmup_steps, whole // 3)
        return min(self.warmup_steps, whole // 3, self.in_steps(min(self.drops, default=self.length), steps_per_epoch))

    def notes(self, steps_per_epoch: int) -> list[str]:
        """What of the settings does not come as it is set, because the run is too short for it; sentences."""
        warmup, late = self.warmup(steps_per_epoch), [drop for drop in self.drops if drop >= self.length]
        notes = []
        if self.warmup_share is None and warmup < self.warmup_steps:
            notes.append(
                f"the warm-up takes {warmup} steps and not the {self.warmup_steps} of optimizer.schedule.warmup_steps: "
                "most of a run is to have the full learning rate, and this one is short"
            )
        if late and self.decay == "drops":
            places = ", ".join(map(str, late))
            notes.append(
                f"optimizer.schedule.drops: the learning rate does not drop at {places} {self.unit}, since the run "
                f"ends after {self.length} (optimizer.schedule.length)"
            )
        return notes

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

    With ``accumulate=k`` the parameters move after every k-th step, by the mean gradient of k batches: a batch k times
    as large in the memory of one.  The rate is scaled to all k; schedule, log and checkpoints go on to count batches.
    """

    rule: Literal["sgd", "adamw", "muon"] = "sgd"
    lr: float = 0.02  #: learning rate for a batch of ``base_batch`` images
    base_batch: int | None = 16  #: None: the rate does not follow the batch size
    momentum: float = 0.9
    weight_decay: float = 1e-4
    muon_steps: int = 5  #: Newton-Schulz iterations
    muon_norm: Literal["frobenius", "schatten"] = "frobenius"
    clip_norm: float | None = None  #: the gradient is scaled down to this global L2 norm where it is longer
    accumulate: int = 1  #: batches of which the gradients are averaged for one change of the parameters
    #: decay of an exponential moving average of the parameters, which is what is evaluated and given away; None: none
    ema: float | None = None
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        check_ranges(self, accumulate=Range(1, 10**6), ema=Range(0, 1, without=(1,)))
        check_ranges(self, lr=positive(1e4), base_batch=Range(1, 10**6), clip_norm=positive(1e12))
        check_ranges(self, momentum=Range(0, 1, without=(1,)), weight_decay=Range(0, 1e3), muon_steps=Range(1, 100))

    def scaled_lr(self, batch_size: int) -> float:
        """The full learning rate for batches of ``batch_size`` images over all processes."""
        return self.lr if self.base_batch is None else self.lr * batch_size * self.accumulate / self.base_batch


@dataclass(frozen=True)
class Run:
    """What a run does beside its steps.

    Intervals count in the schedule's unit unless they say otherwise.  None stands for a tenth of the schedule, rounded
    down to a whole number of units, which is an epoch of the 1x schedule.
    """

    seed: int = 0  #: seed of initialisation, data order and sampling
    init_from: str | None = None  #: weights to start from: a run folder, a file of another toolbox, or a public name
    init_skip: tuple[str, ...] = ()  #: regular expressions: the variables that they match keep their fresh values
    init_new_classes: bool = False  #: True: the weights are for other classes; those that they lack start afresh
    #: pairs of places, as ("masks/refine_box", "heads_0"): where the weights have nothing of the first, it starts as a
    #: copy of what they have of the second, and what that is without starts afresh
    init_copy: tuple[tuple[str, str], ...] = ()
    #: places of parts, as "boundaries": where the weights have nothing of one, it starts afresh
    init_fresh: tuple[str, ...] = ()
    #: regular expressions: only parameters that one of them matches are trained, and no statistics move; empty: all
    train_only: tuple[str, ...] = ()
    log_every: int = 50  #: steps
    checkpoint_every: int | None = None
    keep_checkpoints: int = 2  #: how many stay, the newest ones
    #: a score such as "segm/AP": the weights of the evaluation with the highest one stay in the folder ``best``
    keep_best: str | None = None
    patience: int | None = None  #: the run ends after that many evaluations without a new best ``keep_best``
    eval_every: int | None = None  #: 0: only after the last step
    #: images in an evaluation batch, over all devices; None: 8 on accelerators, and on CPUs one for each device, which
    #: gains nothing from more and would compute the empty slots of a batch that is not full
    eval_batch: int | None = None
    eval_detections: int = COCO_DETECTIONS  #: of a class in an image that count; above COCO's 100, scores under both
    skip_nonfinite: int = 0  #: steps in a row that may be skipped because a loss or gradient is not finite; 0: none
    shard_parameters: bool = False  #: split parameters and optimizer state over the devices, to save their memory
    #: in which dtype devices add up the gradients of layers that compute in bfloat16 (``model.dtype``)
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    pictures: int = 8  #: validation images that are drawn with predictions beside ground truth

    def __post_init__(self) -> None:
        for pattern in self.train_only:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"Run.train_only: {pattern!r} is no regular expression: {error}") from None
        often = Range(1, 10**9)
        check_ranges(self, log_every=often, checkpoint_every=often, keep_checkpoints=often, eval_batch=Range(1, 10**6))
        check_ranges(self, patience=Range(1, 10**6))
        if self.keep_best is not None and not re.fullmatch(r"(bbox|segm)/[A-Za-z_]+[0-9@]*", self.keep_best):
            raise ValueError(f"run.keep_best: expected a score such as segm/AP or bbox/AP50, got {self.keep_best!r}")
        if self.patience is not None and self.keep_best is None:
            raise ValueError(
                f"run.patience: expected run.keep_best to say which score is waited for, got patience={self.patience} "
                "alone; set run.keep_best=segm/AP, or run.patience=none"
            )
        # COCO's own numbers count that many.
        check_ranges(self, eval_detections=Range(COCO_DETECTIONS, 10**6))
        # The seed is one of jax and of NumPy, which take 32 bits.
        check_ranges(self, seed=Range(0, 2**32 - 1), eval_every=Range(0, 10**9))
        check_ranges(self, skip_nonfinite=Range(0, 10**9), pictures=Range(0, 10**4))


@dataclass(frozen=True)
class Phase:
    """A training that comes before another: the model whose weights that one starts from.

    Data and run are those of the experiment, with weights of its own to start from.
    """

    model: Detector
    optimizer: Optimizer = field(default_factory=Optimizer)
    init_from: str | None = None  #: as `Run.init_from`, for this phase
    init_skip: tuple[str, ...] = ()  #: likewise


@dataclass(frozen=True)
class Experiment:
    """A model, its data, its optimizer and its run.

    ``before`` is the first of two phases: it is trained first, into the folder ``before`` of the run, unless
    ``run.init_from`` gives the weights that would come of it.
    """

    model: Detector
    data: Data
    optimizer: Optimizer = field(default_factory=Optimizer)
    run: Run = field(default_factory=Run)
    before: Phase | None = None


def as_experiment(config: object) -> Experiment:
    """Return the config if it is an `Experiment`, else raise a ValueError: files and checkpoints may hold anything."""
    if not isinstance(config, Experiment):
        raise ValueError(f"config: expected an Experiment, got {type(config).__name__}")
    return config
