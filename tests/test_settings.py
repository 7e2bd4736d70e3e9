"""Every number in every config has a range: outside of it there is an error that names it, inside a model."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import jax
import pytest

from jaxdet.config import from_data, load_config, override, to_data
from jaxdet.config.tree import is_node, walk
from jaxdet.models.roi.schedule import check_stages, check_test_heads
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.convnext import ConvNeXt
from jaxdet.nn.extractors.groie import GRoIE
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.semantic import SemanticHead
from jaxdet.nn.heads.trunk import ConvFC
from jaxdet.ops.anchors import Anchors
from jaxdet.ranges import Range
from tests.models.small import (
    make_batch,
    make_box_branch,
    make_condinst,
    make_grid_rcnn,
    make_model,
    make_one_stage,
    make_rdsnet,
    make_refine,
    make_targets,
    make_yolact,
)
from tests.test_configs import ROOT, names

TRIED = (-1, 0, 10**12)


def numbers_of(config: Any) -> Iterator[tuple[str, Any, str]]:
    """Every number of a config, and every None that could be one: key, the object that has it, and its name there."""
    owners: dict[str, Any] = {"": config}
    for key, child in walk(config, type(config)):
        if is_node(child.value):
            owners[key] = child.value
        is_number = isinstance(child.value, (int, float)) and not isinstance(child.value, bool)
        if is_number or (child.value is None and {int, float} & set(get_args(child.annotation))):
            owner = max((k for k in owners if not k or key.startswith(f"{k}.")), key=len)
            # Positions in a tuple of numbers are one setting.
            yield key, owners[owner], key.removeprefix(f"{owner}.").split(".")[0]


@functools.cache
def tried() -> tuple[list[str], frozenset[tuple[str, str, int]]]:
    """Each setting of the named configs, once, with each number: what is wrong with refusals, and what was accepted."""
    known: set[tuple[type, str]] = set()
    wrong, accepted = [], set()
    for name in names():
        experiment = load_config(ROOT / name)
        for key, owner, setting in numbers_of(experiment):
            if (type(owner), setting) in known:
                continue
            known.add((type(owner), setting))
            for value in TRIED:
                try:
                    changed = override(experiment, [f"{key}={value}"])
                    if isinstance(changed.model, TwoStage):  # checked when it is first called
                        check_stages(changed.model.stages, changed.model.heads)
                        check_test_heads(changed.model.test_heads, changed.model.heads)
                except ValueError as error:
                    text = str(error)
                    if f"{key}={value}: " not in text or f".{setting}: expected" not in text or f"{value}" not in text:
                        wrong.append(text)
                else:
                    accepted.add((type(owner).__name__, setting, value))
    assert len(known) > 90
    return wrong, frozenset(accepted)


def test_a_number_out_of_range_is_refused_under_its_key_and_its_name() -> None:
    wrong, _ = tried()
    assert wrong == []


#: Classes whose settings need no model: that they can be made is all.
WITHOUT_A_MODEL = {"Data", "Scenes", "Optimizer", "Schedule", "Run"} | {
    *("ShortSide", "Expand", "MinIoUCrop", "PhotometricDistortion"),
}


def with_groie() -> TwoStage:
    head = BoxHead(ConvFC(channels=8, features=8, norm="batch"))
    branch = make_box_branch(extractor=GRoIE(size=3, levels=(2, 3)), head=head)
    return make_model(heads=(branch,), semantic=SemanticHead(channels=8), test_heads=(0,))


def refined() -> TwoStage:
    return make_model(backbone=ConvNeXt(depths=(1, 1, 1, 1), widths=(4, 4, 4, 4)), parts=(make_refine(),))


TOGETHER = ("levels", "level", "code", "pairs_above")
"""Settings that must fit another part, which has tests of its own: the neck, the masks, the suppression."""

MODELS = (make_model, make_one_stage, with_groie, refined, make_rdsnet, make_condinst, make_yolact, make_grid_rcnn)


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("make", MODELS)
def test_a_number_in_range_makes_a_model(make: Callable[[], Any], value: int) -> None:
    """All that are accepted, in one model."""
    _, accepted = tried()
    model = make()
    changes = [
        f"{key}={value}"
        for key, owner, setting in numbers_of(model)
        if (type(owner).__name__, setting, value) in accepted and setting not in TOGETHER
    ]
    batch = make_batch([make_targets(0)])
    changed = override(model, changes)
    assert changed != model
    variables = jax.eval_shape(lambda: changed.init(jax.random.key(0), batch, method="predict"))
    if make is with_groie:  # its losses need maps of classes, which the batch does not have
        return
    losses = functools.partial(changed.apply, method="losses")
    jax.eval_shape(lambda variables: losses(variables, batch, jax.random.key(0)), variables)


def test_every_accepted_number_is_in_one_of_these_models() -> None:
    built = {(type(owner).__name__, setting) for make in MODELS for _, owner, setting in numbers_of(make())}
    _, accepted = tried()
    assert {(owner, setting) for owner, setting, _ in accepted if owner not in WITHOUT_A_MODEL} <= built


@pytest.mark.parametrize("key", ["rpn.places.levels", "heads.0.extractor.levels"])
def test_a_level_that_no_one_makes_is_named(key: str) -> None:
    model = override(make_model(), [f"{key}.0=0"])
    with pytest.raises(ValueError, match=r"level"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([make_targets(0)]), method="predict"))


def test_anchors_and_their_head_are_told_apart_by_their_keys() -> None:
    model = override(make_model(), ["rpn.places.scales=2,4,8"])
    with pytest.raises(ValueError, match=r"set model\.rpn\.head\.anchors=9"):
        jax.eval_shape(lambda: model.init(jax.random.key(0), make_batch([make_targets(0)]), method="predict"))


def test_data_of_a_config_is_checked_too() -> None:
    data = to_data(make_model())
    data["neck"]["channels"] = 0
    with pytest.raises(ValueError, match=r"config\.neck: FPN\.channels: expected a number from 1 to 65,536, got 0"):
        from_data(data)


def test_ranges() -> None:
    assert [Range(0, 1, without=(1,)).has(x) for x in (-0.1, 0, 0.5, 1, float("nan"))] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert [Range(1, 7, odd=True).has(x) for x in (1, 2, 7, 9)] == [True, False, True, False]
    with pytest.raises(
        ValueError, match=r"Anchors\.scales: .* from 0 to 10,000, not 0 in each place, got \(8\.0, 0\.0\)"
    ):
        Anchors(scales=(8.0, 0.0))
    with pytest.raises(ValueError, match=r"Anchors\.ratios: expected .*, got \(\)"):
        Anchors(ratios=())
