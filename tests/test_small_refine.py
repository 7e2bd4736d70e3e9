"""The configs of the experiment on the refining step: what is compared differs in the step and in nothing else."""

import json
from pathlib import Path

import pytest

from jaxdet.config import from_data, load_config, to_data
from jaxdet.experiment import Experiment
from jaxdet.models.parts.refine import Refine

FILE = Path(__file__).parents[1] / "benchmarks" / "experiments" / "small_refine.py"


def config(name: str) -> Experiment:
    return load_config(f"{FILE}:{name}")


def test_all_start_from_the_same_training_and_go_on_for_as_long() -> None:
    first, control, rm, sara = (config(name) for name in ("mask_rcnn", "control", "rm", "sara"))
    assert first.before is None
    for second in (control, rm, sara):
        assert (second.before.model, second.before.optimizer) == (first.model, first.optimizer)
        assert second.data == first.data
        assert second.optimizer == control.optimizer != first.optimizer
    assert first.data.train.huddled == first.data.val.huddled > 0
    assert control.model == first.model
    assert control.run == first.run
    assert isinstance(sara.model.parts[0], Refine)
    unguided = sara.model.parts[0].clone(guided=False)
    assert rm.model == sara.model.clone(parts=(unguided,)) != sara.model
    assert rm.run == sara.run


def test_a_checkpoint_holds_them() -> None:
    sara = config("sara")
    assert from_data(json.loads(json.dumps(to_data(sara)))) == sara


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_rcnn, control, rm or sara behind the file, got 'mr'"):
        config("mr")
