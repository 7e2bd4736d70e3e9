"""Which classes a config may name: whose modules are trusted, what is refused, and what the refusals say to do."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flax.linen as nn
import pytest

from jaxdet.config import described, flat_settings, from_data, load_config, to_data, trusted_modules
from jaxdet.data.settings import Data, Scenes
from jaxdet.ops.suppression import NMS

PARTS = """
import os
from dataclasses import dataclass
from subprocess import Popen

import flax.linen as nn

@dataclass(frozen=True)
class Loss:
    scale: float = 1.0

class Head(nn.Module):
    loss: Loss = Loss()

@dataclass
class Loose:
    scale: float = 1.0

class Plain:
    pass

def function():
    raise SystemExit("called")
"""


@dataclass(frozen=True)
class Here:
    """A config class of this file, which pytest imports under a name of its own."""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Modules of a user in the current folder, which Python does not look into by itself."""
    (tmp_path / "my_parts.py").write_text(PARTS)
    (tmp_path / "my_broken.py").write_text("1 / 0")
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "heads.py").write_text(PARTS)
    (tmp_path / "my_package" / "losses.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def imported() -> list[str]:
    return [name for name in sys.modules if name.startswith("my_")]


@pytest.mark.parametrize(
    ("trusted", "name"),
    [
        ("my_parts", "my_parts"),
        ("my_parts.py", "my_parts"),
        ("my_package", "my_package.heads"),
        ("my_package.heads", "my_package.heads"),
        ("./my_package", "my_package.heads"),
    ],
)
def test_a_trusted_module_gives_its_classes(trusted: str, name: str) -> None:
    data = {"class": f"{name}.Head", "loss": {"class": f"{name}.Loss", "scale": 2}}
    modules = trusted_modules([trusted, trusted])
    assert len(modules) == 1
    assert not imported()  # to trust runs nothing yet
    config = from_data(data, modules)
    assert isinstance(config, nn.Module)
    assert to_data(config, modules) == data
    assert described(config) == data
    assert flat_settings(config) == {"loss": "Loss", "loss.scale": 2.0}
    with pytest.raises(ValueError, match=rf"running their code.*--trusted {name.partition('.')[0]}"):
        to_data(config)


def test_all_that_a_config_has_of_ones_own_is_named_at_once() -> None:
    """Of a package with several of them the package is what to trust; one after the other would take many tries."""
    data = [{"class": "my_package.heads.Loss"}, {"class": "my_package.losses.Loss"}]
    config = from_data(data, trusted_modules(["my_package"]))
    with pytest.raises(ValueError, match=r"my_package\.heads\.Loss, my_package\.losses\.Loss.*--trusted my_package$"):
        to_data(config)
    with pytest.raises(ValueError, match=r"define: my_package\.losses\.Loss\. .*--trusted my_package\.losses$"):
        to_data(config, ["my_package.heads"])


def test_all_that_is_not_trusted_is_named_before_anything_runs() -> None:
    losses = [{"class": "my_package.losses.Loss"}, {"class": "my_parts.Loss"}]
    data = {"class": "my_package.heads.Head", "loss": losses}
    with pytest.raises(ValueError, match="classes outside of jaxdet") as error:
        from_data(data, trusted_modules(["my_parts"]))
    assert "trusted=['my_package'], or on the command line --trusted my_package" in str(error.value)
    assert "the code of my_package.heads, my_package.losses has to run on this machine" in str(error.value)
    assert not imported()


HOSTILE = [
    "os.system",
    "os.path.join",
    "builtins.eval",
    "subprocess.Popen",
    "subprocess:Popen",
    "my_parts.Popen",
    "my_parts.os.system",
    "my_parts.function",
    "my_parts.Loose",
    "my_parts.Plain",
    "my_parts.Missing",
    "my_parts.Loss.__class__",
    "my_parts.__class__",
    "my_parts",
    "my_parts..Loss",
    ".my_parts.Loss",
    "my_parts_too.Loss",
    "my_package.heads.nn.Module",
    "my_package.Loss",
    "__main__.Loss",
    "jaxdet.config.trusted.importlib.import_module",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused_whatever_is_trusted(name: str) -> None:
    trusted = trusted_modules(["my_parts", "my_package"])
    with pytest.raises(ValueError, match=r".+") as error:
        from_data({"class": name}, trusted)
    assert "--trusted os" not in str(error.value)


def test_what_a_class_has_to_be_is_said() -> None:
    trusted = trusted_modules(["my_parts"])
    for name, got in {
        "Loose": "a dataclass that is not frozen",
        "function": "a function",
        "Plain": "the class",
    }.items():
        with pytest.raises(ValueError, match=rf"a frozen dataclass .* or a linen module .*, got {got}"):
            from_data({"class": f"my_parts.{name}"}, trusted)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("os", "one of Python's"),
        ("os.path", "one of Python's"),
        ("builtins", "one of Python's"),
        ("__main__", "one of Python's"),
        ("subprocess:Popen", "expected the name of a module"),
        ("my parts", "expected the name of a module"),
        ("", "expected the name of a module"),
        ("..my_parts", "expected the name of a module"),
        ("my_parts.", "expected the name of a module"),
        ("my_typo", "which is not on its path"),
        ("there/is_none.py", "which is not there"),
        (3, "expected names of modules"),
    ],
)
def test_modules_that_cannot_be_trusted(name: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        trusted_modules([name])


def test_one_name_is_no_list() -> None:
    with pytest.raises(ValueError, match=r"write \['my_parts'\]"):
        trusted_modules("my_parts")


def test_another_module_of_the_name_is_not_taken_for_it(folder: Path) -> None:
    (folder / "other").mkdir()
    (folder / "other" / "typeguard.py").write_text(PARTS)
    with pytest.raises(ValueError, match=r"finds another module of this name first \(.*give the file another name"):
        trusted_modules(["other/typeguard.py"])


def test_a_trusted_module_that_cannot_be_imported_is_named() -> None:
    with pytest.raises(ValueError, match="importing it fails: ZeroDivisionError"):
        from_data({"class": "my_broken.Loss"}, trusted_modules(["my_broken"]))
    with pytest.raises(ValueError, match=r"my_parts\.nothing is trusted, but cannot be imported"):
        from_data({"class": "my_parts.nothing.Loss"}, trusted_modules(["my_parts"]))


def test_modules_beside_a_config_file_are_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "own.py").write_text("from my_parts import Head\n\ndef get_config():\n    return Head()\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    with pytest.raises(ValueError, match="not on its path"):
        trusted_modules(["my_parts"])
    trusted = trusted_modules(["my_parts"], beside="../own.py:ROW")
    assert from_data(to_data(load_config("../own.py"), trusted), trusted) == load_config("../own.py")


def test_a_class_that_cannot_be_imported_again_is_refused_with_what_to_do(folder: Path) -> None:
    (folder / "own.py").write_text(f"{PARTS}\ndef get_config():\n    return Loss()\n")
    config = load_config("own.py")

    @dataclass(frozen=True)
    class Local:
        pass

    for value, why in ((config, "in the config file itself"), (Local(), "inside of another one or of a function")):
        name = type(value).__name__
        with pytest.raises(ValueError, match=rf"{why}.*`from my_parts import {name}`, and pass --trusted my_parts"):
            to_data(value, ["own", __name__])


def test_lists_and_functions_are_no_settings() -> None:
    for value in ([1], print, object()):
        with pytest.raises(
            ValueError, match="can not be stored in a config: use dataclasses and modules of jaxdet, or"
        ):
            to_data(value)


def test_flat_settings_are_those_of_the_command_line() -> None:
    flat = flat_settings(Data(train=Scenes(aspects=(1.0, 2.0))))
    assert (flat["train"], flat["train.aspects.1"], flat["val"], flat["augment"]) == ("Scenes", 2.0, None, "()")
    assert flat_settings(NMS())["iou_threshold"] == NMS().iou_threshold
