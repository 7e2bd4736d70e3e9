"""Where a run is in its schedule, and whether the data is that which it began with.

A run counts steps from its beginning, and an epoch has as many as batch size and data make of it.  When these change
between two parts of a run, the steps that are done are another number of epochs than the new count would say.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from jaxdet.config import differences
from jaxdet.experiment import Schedule

POSITION = "position"  #: the key under which a checkpoint's metadata has the position
DATA = "data"  #: the key under which it has the fingerprint of the training data
CATEGORIES = "categories"  #: the key under which it has the categories, in the order of the labels

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Step s of the run is place ``s + shift`` of its schedule and of the order of its data.

    The shift is 0 until a schedule in epochs goes on with epochs of another length.  The place is then the one that
    as many epochs have with the new length, whereas step numbers go on, since log and checkpoints are named by them.
    """

    epoch: int  #: steps in an epoch
    shift: int = 0

    @classmethod
    def continued(cls, schedule: Schedule, epoch: int, step: int, stored: Mapping[str, Any]) -> Self:
        """The position of a run of which ``step`` steps are done.

        Args:
            schedule: how long the run is.
            epoch: steps in an epoch from now on.
            step: steps done.
            stored: what `saved` gave with the checkpoint of that step; empty for a new run.
        """
        before = cls(**stored) if stored else cls(epoch)
        if schedule.unit == "steps":  # then the step is the place, however long epochs are
            return cls(epoch)
        if before.epoch == epoch:
            return before
        # Rounded down: a part of a step is done again, and no drop of the rate or end of the run comes too early.
        shift = (step + before.shift) * epoch // before.epoch - step
        now = cls(epoch, shift)
        _log.warning(
            "an epoch had %d steps and has %d now: the run goes on after %.4g of %d epochs, which is step %d of %d",
            *(before.epoch, epoch, (step + before.shift) / before.epoch, schedule.length, step, now.total(schedule)),
        )
        return now

    def saved(self) -> dict[str, Any]:
        """Describe the position as JSON data."""
        return asdict(self)

    def total(self, schedule: Schedule) -> int:
        """The step at the end of the run."""
        return schedule.in_steps(schedule.length, self.epoch) - self.shift


def check_data(workdir: Path, stored: Mapping[str, Any], now: Mapping[str, Any], *, accept_changes: bool) -> None:
    """Compare the training data with that which the checkpoint to go on from was trained on.

    Args:
        workdir: folder of the run, for messages.
        stored: metadata of the checkpoint; empty for a new run.
        now: metadata of this run, with the same keys.
        accept_changes: warn of other data in place of refusing it.

    Raises:
        ValueError: the data has changed; or, whatever is accepted, a category has another label than in the weights.
    """
    moved = _moved(_names(stored), _names(now)) if stored else []
    if moved:
        raise ValueError(
            f"{workdir}: expected the training data to have the categories of the run in the same order, but "
            f"{', '.join(moved)}: the weights would mean others. Keep the order, or take another --workdir with "
            f"run.init_from={workdir}, which matches categories by name"
        )
    changes = differences(stored[DATA], now[DATA], "data.train") if DATA in stored else []
    if changes and not accept_changes:
        lines = "\n  ".join(changes)
        raise ValueError(
            f"{workdir} holds a run that was trained on other data (stored -> now):\n  {lines}\n"
            "Take another --workdir for a new run, go back to that data, or pass --accept-changes to continue with this"
        )
    if changes:
        _log.warning("going on with other data:\n  %s", "\n  ".join(changes))


def _names(metadata: Mapping[str, Any]) -> list[str]:
    return [category["name"] for category in metadata[CATEGORIES]]


def _moved(before: Sequence[str], now: Sequence[str]) -> list[str]:
    """Say of each category that both have under which label it is, if that has changed."""

    def labels(names: Sequence[str], name: str) -> list[int]:
        return [label for label, other in enumerate(names) if other == name]

    both = [name for name in dict.fromkeys(before) if name in now]
    return [
        f"{name} was {labels(before, name)[0]} and is {labels(now, name)[0]}"
        for name in both
        if labels(before, name) != labels(now, name)
    ]
