"""Configs: changed by dotted keys, carried as data, and nothing but jaxdet's own classes rebuilt from data."""

import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import flax.linen as nn
import pytest

from jaxdet.config import check, differences, from_data, load_config, override, to_data, to_text
from jaxdet.data.settings import CocoFolder, Data, Scenes
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.heads.box import BoxHead
from jaxdet.nn.heads.trunk import FC2
from jaxdet.ops.suppression import NMS


class Part(nn.Module):
    channels: int = 4
    weights: tuple[float, ...] = (1.0, 2.0)


@dataclass(frozen=True)
class Settings:
    lr: float = 0.1
    steps: int = 10
    clip: float | None = None
    name: str | None = None
    kind: Literal["a", "b"] = "a"
    on: bool = False
    pair: tuple[int, int] = (1, 2)
    names: tuple[str, ...] = ()
    table: Mapping[int, float] = field(default_factory=lambda: {2: 0.5})


@dataclass(frozen=True)
class Bound:
    low: int = 1
    high: int = 2

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low > high")


@dataclass(frozen=True)
class Root:
    parts: tuple[nn.Module, ...] = (Part(), Part(channels=8))
    settings: Settings = Settings()
    other: Part | None = None
    bound: Bound = Bound()


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("settings.lr=0.5", "lr", 0.5),
        ("settings.lr=1e-3", "lr", 1e-3),
        ("settings.lr=2", "lr", 2.0),
        ("settings.steps=7", "steps", 7),
        ("settings.clip=35", "clip", 35.0),
        ("settings.clip=none", "clip", None),
        ("settings.clip=None", "clip", None),
        ("settings.name=7", "name", "7"),
        ("settings.name=a=b", "name", "a=b"),
        ("settings.name='none'", "name", "none"),
        ("settings.name=none", "name", None),
        ("settings.kind=b", "kind", "b"),
        ("settings.on=True", "on", True),
        ("settings.on=false", "on", False),
        ("settings.pair=3,4", "pair", (3, 4)),
        ("settings.pair=[3, 4]", "pair", (3, 4)),
        ("settings.names=a, b/c", "names", ("a", "b/c")),
        ("settings.table={3: 1}", "table", {3: 1.0}),
        ("settings.table.2=3", "table", {2: 3.0}),
    ],
)
def test_override_reads_a_value_as_its_annotation_says(text: str, key: str, value: Any) -> None:
    new = getattr(override(Root(), [text]).settings, key)
    assert new == value
    assert type(new) is type(value)


def test_override_reaches_into_tuples_and_modules_and_changes_nothing_else() -> None:
    config = Root()
    new = override(config, ["parts.1.channels=5", "parts.0.weights.1=3"])
    assert new.parts == (Part(weights=(1.0, 3.0)), Part(channels=5))
    assert new.settings is config.settings
    assert config == Root()
    assert override(config, ["parts.0.weights=3"]).parts[0].weights == (3.0,)  # a tuple of one needs no comma


def test_a_pattern_changes_every_key_that_fits() -> None:
    assert [p.channels for p in override(Root(), ["parts*channels=3"]).parts] == [3, 3]
    with pytest.raises(ValueError, match="unknown key"):
        override(Root(), ["parts*chanels=3"])


def test_settings_bound_to_each_other_change_together_in_any_order() -> None:
    for edits in (["bound.low=5", "bound.high=6"], ["bound.high=6", "bound.low=5"]):
        assert override(Root(), edits).bound == Bound(5, 6)
    with pytest.raises(ValueError, match="low > high"):
        override(Root(), ["bound.low=5"])


def test_the_later_of_two_values_counts() -> None:
    assert override(Root(), ["settings.steps=1", "settings.steps=2"]).settings.steps == 2


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("settings.lrr=1", "settings.lr"),
        ("setings.lr=1", "settings.lr"),
        ("lr=1", "settings.lr"),
        ("parts.0.chanels=1", "parts.0.channels"),
        ("parts.7.channels=1", "parts.0.channels"),
        ("parts.0.name=x", "settings.name"),
        ("settings.lr.x=1", "settings.lr"),
        ("=1", ""),
    ],
)
def test_an_unknown_key_names_the_nearest_valid_one(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"nearest valid key is '{nearest}"):
        override(Root(), [text])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.images=photos",
            "train of this config is Scenes, and images is a setting of CocoFolder; for images in a",
        ),
        (
            "val.split=val",
            "val of this config is none, and split is a setting of Tfds and Scenes; take a config that has",
        ),
        ("train.imagess=a", "nearest valid key is"),
    ],
)
def test_a_key_of_another_class_names_the_class(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        override(Data(train=Scenes()), [text])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("settings.steps=1.5", "settings.steps: expected a whole number, got '1.5'"),
        ("settings.steps=true", "settings.steps: expected a whole number, got 'true'"),
        ("settings.lr=true", "settings.lr: expected a number"),
        ("settings.lr=fast", "settings.lr: expected a number"),
        ("settings.on=1", "settings.on: expected true or false"),
        ("settings.kind=c", "settings.kind: expected 'a' or 'b', got 'c'"),
        ("settings.pair=1,2,3", "settings.pair: expected 2 whole numbers separated by commas"),
        ("settings.pair=1,x", "settings.pair: expected 2 whole numbers"),
        ("settings.clip=x", "settings.clip: expected a number or none"),
        ("other=3", "other: expected Part or none"),
        ("settings=3", "settings.lr, settings.steps"),
        ("settings.steps", "expected KEY=VALUE"),
    ],
)
def test_a_wrong_value_says_what_was_expected(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        override(Root(), [text])
    assert expected in str(error.value)


@pytest.mark.parametrize("edits", [["other=none", "other.channels=1"], ["other.channels=1", "other=none"]])
def test_a_part_that_is_taken_away_can_not_be_changed(edits: list[str]) -> None:
    root = Root(other=Part())
    assert override(root, ["other=none"]).other is None
    with pytest.raises(ValueError, match=r"other=none leaves nothing for other.channels=1 to change; drop one"):
        override(root, edits)


def test_check_finds_a_wrong_value_that_a_config_file_wrote() -> None:
    with pytest.raises(ValueError, match=r"settings.steps: expected a whole number, got 'ten', a text"):
        check(Root(settings=Settings(steps=typing.cast(int, "ten"))))
    with pytest.raises(ValueError, match=r"parts.0.weights: expected numbers separated by commas, got \[1.0\], a list"):
        check(Root(parts=(Part(weights=typing.cast(Any, [1.0])),)))


def real_config() -> Data:
    return Data(train=Scenes(aspects=(1.0, 1.5)), val=CocoFolder("images", "a.json"), flip_probability=0)


def test_a_round_trip_through_json_gives_an_equal_config() -> None:
    for config in (
        real_config(),
        ResNet(depth=18, frozen_stages=-1),
        NMS(),
        BoxHead(FC2()),
        (1, "a", None, (2.5, {3: True})),
    ):
        again = from_data(json.loads(json.dumps(to_data(config))))
        assert again == config
        assert type(again) is type(config)


def test_data_without_a_setting_gives_its_default() -> None:
    assert from_data({"class": "jaxdet.ops.suppression.NMS", "iou_threshold": 0.3}) == NMS(iou_threshold=0.3)


HOSTILE = [
    {"class": "os.system"},
    {"class": "subprocess.Popen", "args": ["true"]},
    {"class": "builtins.eval"},
    {"class": "jaxdet.config.data.Path"},
    {"class": "jaxdet.config.data.importlib.import_module", "name": "this"},
    {"class": "jaxdet.config.data.to_data"},
    {"class": "jaxdet.config.load.load_config", "path": "x.py"},
    {"class": "jaxdet.nn.backbones.resnet.nn.Module"},
    {"class": "jaxdet.nn.backbones.resnet.Features"},
    {"class": "jaxdet..nn"},
    {"class": "jaxdet.nothing.Here"},
    {"class": ".os.system"},
    {"class": ""},
    {"class": "jaxdet"},
    {"class": ["jaxdet"]},
    {"class": "jaxdet.nn.backbones.resnet.ResNet", "depth": "18"},
    {"class": "jaxdet.nn.backbones.resnet.ResNet", "depht": 18},
    {"class": "jaxdet.nn.backbones.resnet.ResNet", "parent": 1},
    {"class": "jaxdet.nn.backbones.resnet.ResNet", "name": "x"},
    {"class": "jaxdet.nn.backbones.resnet.ResNet", "depth": {"class": "jaxdet.ops.suppression.NMS"}},
    {"class": "jaxdet.data.settings.CocoFolder"},
    {"class": "jaxdet.data.settings.Data", "batch_size": 0},
    {"class": "jaxdet.data.settings.Data", "train": {"class": "jaxdet.ops.suppression.NMS"}},
    {"depth": 18},
    {"mapping": 3},
    {"mapping": [[1, 2, 3]]},
    {"mapping": [[{"mapping": []}, 2]]},
    {"__reduce__": ["os.system", ["true"]]},
]


@pytest.mark.parametrize("data", HOSTILE, ids=str)
def test_hostile_data_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match=r".+"):
        from_data(data)


def test_endless_nesting_is_refused() -> None:
    data: Any = 1
    for _ in range(500):
        data = [data]
    with pytest.raises(ValueError, match="nested deeper"):
        from_data(data)


def test_what_could_not_be_rebuilt_is_not_written() -> None:
    for value in (Root(), [1], print, 1j, float("nan"), float("inf"), {1}, Part):
        with pytest.raises(ValueError, match="jaxdet"):
            to_data(value)


def test_differences_name_the_keys() -> None:
    old = to_data(real_config())
    new = to_data(override(real_config(), ["train.aspects.1=2", "batch_size=8"]))
    assert differences(old, new) == ["train.aspects.1: 1.5 -> 2.0", "batch_size: 16 -> 8"]
    changed = to_data(Data(train=CocoFolder("images", "a.json")))
    assert differences(old, changed)[0] == "train: Scenes(...) -> CocoFolder(...)"
    assert differences(old, old) == []


def test_text_is_the_constructor_call() -> None:
    assert to_text(CocoFolder("a", "b")) == "CocoFolder(images='a', annotations='b', stuff=None)"
    text = to_text(real_config())
    assert eval(text) == real_config()
    assert all(len(line) <= 100 for line in text.splitlines())


def test_load_config_runs_the_file(tmp_path: Any) -> None:
    path = tmp_path / "one.py"
    path.write_text("def get_config():\n    return 3\n")
    assert load_config(path) == 3
    path.write_text("x = 1\n")
    with pytest.raises(ValueError, match="get_config"):
        load_config(path)
    with pytest.raises(ValueError, match=r"no config file .*two.py; there are .*one.py"):
        load_config(tmp_path / "two.py")


def test_a_file_of_several_configs_needs_a_name(tmp_path: Any) -> None:
    path = tmp_path / "many.py"
    path.write_text("def get_config(row):\n    return row * 2\n")
    assert load_config(f"{path}:ab") == "abab"
    with pytest.raises(ValueError, match=r"many.py holds several configs: name one, as in .*many.py:NAME$"):
        load_config(path)
    path.write_text("ROWS = {'a': 1, 'b': 2}\ndef get_config(row):\n    return ROWS[row]\n")
    with pytest.raises(ValueError, match=r"NAME is one of a, b$"):
        load_config(path)
