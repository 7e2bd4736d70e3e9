"""Commands in documents, docstrings and ``--help`` are taken by the programs that they start.

Each goes through the program's own argument parser, and no further; its config is loaded with the settings that it
changes.  The demo and the worked example are run as a whole elsewhere.
"""

import argparse
import ast
import importlib.util
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jaxdet.commands import VERBS
from jaxdet.config import load_config, override
from tests.test_documents import BLOCK, DOCUMENTS, ROOT, all_configs, document_id, load, new_files, spans

FOLDERS = ("jaxdet", "benchmarks", "tools", "configs", "tests/fuzz")
PROGRAMS = [
    *(ROOT / f"{name}.py" for name in ("train", "eval", "predict")),
    *sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")),
]
#: Numbers for which a command has a letter; other words in capitals are paths and texts, which any word can be.
PLACEHOLDERS = {"N": "2", "I": "1"}
OWN = ("jaxdet", "benchmarks", "tools", "tests", "train", "eval", "predict")


def of_document(path: Path) -> Iterator[str]:
    """The lines in blocks, and what stands between backticks, where the name of a program alone is a command too."""
    for block in BLOCK.finditer(path.read_text()):
        if not block["language"]:
            yield from block["text"].replace("\\\n", " ").splitlines()
    yield from (
        f"{span} --help" if re.fullmatch(r"python -m \S+|jaxdet [a-z ]+", span) else span for span in spans(path)
    )


def of_program(path: Path) -> Iterator[str]:
    """The lines of the docstring, which is the ``--help`` of many programs."""
    yield from (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\\\n", " ").splitlines()


def commands(lines: Iterator[str]) -> list[list[str]]:
    """The words of each command that starts python; what stands in brackets may be left out, and is taken here."""
    found = []
    for line in lines:
        if re.search(r"(^\s*|: )(\w+=\S+ )*(python (-m \w|\S+\.py)|jaxdet [a-z])", line):
            text = re.sub(r"^.*?\b(python|jaxdet) ", r"\1 ", line).replace("[KEY=VALUE ...]", "").replace(" ...", "")
            words = shlex.split(re.sub(r"[][]", "", text), comments=True)
            found.append([PLACEHOLDERS.get(word, word) for word in words])
    return found


SOURCES = [(path, of_document) for path in (*DOCUMENTS, ROOT / "benchmarks" / "README.md")]
SOURCES += [(path, of_program) for path in PROGRAMS]
COMMANDS = {document_id(path): found for path, read in SOURCES if (found := commands(read(path)))}


class Parsed(BaseException):
    """A program has parsed its arguments."""


def parse(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Start a program, up to where it has parsed its arguments; returns what it says is wrong with them."""

    def stopping(real: Callable[..., object]) -> Callable[..., object]:
        def parse_and_stop(*args: object, **kwargs: object) -> None:
            real(*args, **kwargs)
            raise Parsed

        return parse_and_stop

    def error(parser: argparse.ArgumentParser, message: str) -> None:
        raise ValueError(message)

    def again(*_: object) -> None:
        raise AssertionError(f"{module} starts the process again before it parses its arguments")

    with monkeypatch.context() as patch:
        patch.setattr(os, "execv", again)  # or the tests would end here, as if all had passed
        for name in ("parse_args", "parse_intermixed_args"):
            patch.setattr(argparse.ArgumentParser, name, stopping(getattr(argparse.ArgumentParser, name)))
        patch.setattr(argparse.ArgumentParser, "error", error)
        patch.setattr(sys, "argv", [module, *arguments])
        try:
            importlib.import_module(module).main()
        except Parsed:
            return None
        except ValueError as fault:
            return str(fault)
        except SystemExit as end:
            return None if "--help" in arguments and not end.code else f"it ended with {end.code}"
    return "it parses no arguments"


def fault_of(command: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """What is wrong with a command, as far as can be said without its data; None if nothing is."""
    if command[:3] == ["python", "-m", "jaxdet"]:  # the same command, which would start this process again
        command = ["jaxdet", *command[3:]]
    if command[0] == "jaxdet":
        if command[1:] in ([], ["--help"], ["--version"]):
            return None
        verb = next((verb for verb in VERBS if tuple(command[1 : 1 + len(verb)]) == verb), None)
        if verb is None:
            return f"jaxdet has no {command[1]}"
        arguments = command[1 + len(verb) :]
        return parse(VERBS[verb][0], arguments, monkeypatch) or fault_of_settings(arguments)
    name, arguments = (command[2], command[3:]) if command[1] == "-m" else (command[1], command[2:])
    if name.split(".")[0] not in OWN:  # another project's
        return None
    path = ROOT / name if command[1] != "-m" else ROOT.joinpath(*name.split("."))
    module = name.removesuffix(".py") if command[1] != "-m" else f"{name}.__main__" if path.is_dir() else name
    if not importlib.util.find_spec(module):
        return f"there is no {name}"
    return parse(module, arguments, monkeypatch) or fault_of_settings(arguments)


def fault_of_settings(arguments: list[str]) -> str | None:
    """What the config of a command says of its settings.

    Without ``--config`` it is the recipe's, if there is ``--data``; else that of the run ``runs/demo``, or, of another
    run, any: then all configs must take them.
    """
    settings = [word for word in arguments if re.match(r"[\w*]+(\.[\w*]+)+=", word)]
    recipe = "mask_rcnn_r18_fpn_small" if "--data" in arguments else None
    named = arguments[arguments.index("--config") + 1] if "--config" in arguments else recipe
    names = [named] if named else []
    if "--configs" in arguments:  # of a benchmark that takes several: all words up to the next flag
        behind = arguments[arguments.index("--configs") + 1 :]
        names += [
            word.partition("@")[0] for word in itertools.takewhile(lambda word: not word.startswith("--"), behind)
        ]
    if named in new_files() or not (settings or names):
        return None
    if names:
        configs = [
            load_config(str(ROOT / name)) if name.endswith(".py") and not name.startswith("configs/") else load(name)
            for name in names
        ]
    else:
        configs = [load("configs/demo.py"), *([] if "runs/demo" in arguments else all_configs())]
    for config in configs:
        try:
            override(config, settings)
        except ValueError as error:
            return str(error)
    return None


@pytest.mark.parametrize("source", COMMANDS)
def test_commands_are_taken(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = {shlex.join(command): fault_of(command, monkeypatch) for command in COMMANDS[source]}
    assert not {command: fault for command, fault in faults.items() if fault}


def test_the_commands_of_the_programs_are_found() -> None:
    documents, programs = (
        ("README.md", "docs/RUNNING.md"),
        ("jaxdet/commands/train.py", "jaxdet/commands/eval.py", "jaxdet/commands/predict.py", "jaxdet/data/check.py"),
    )
    assert {*documents, *programs} <= set(COMMANDS)


@pytest.mark.parametrize("command", ["jaxdet --help", "python -m jaxdet", "python -m jaxdet data check FOLDER"])
def test_the_command_itself_is_taken(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault_of(command.split(), monkeypatch) is None


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        (
            "python predict.py --checkpoint runs/demo a.jpg data.short_side=600",
            "data.short_side=600 data.long_side=1000",
        ),
        ("python predict.py --checkpoint runs/demo --nothing a.jpg", "unrecognized arguments: --nothing"),
        ("python predict.py runs/demo a.jpg data.short_side=600", "data.short_side=600 data.long_side=1000"),
        ("python eval.py --results r.json --checkpoint runs/demo", "not allowed with"),
        ("python train.py --config configs/demo.py data.nothing=1", "unknown key 'data.nothing'"),
        ("python train.py --config configs/demo.py --num-processes 2.5", "invalid int value"),
        ("python -m jaxdet.data.scenes OUT --trian 1000", "unrecognized arguments"),
        ("jaxdet predict --checkpoint runs/demo --nothing a.jpg", "unrecognized arguments: --nothing"),
        ("jaxdet fit", "jaxdet has no fit"),
        ("python -m jaxdet fit", "jaxdet has no fit"),
        ("python -m jaxdet predict --checkpoint runs/demo --nothing a.jpg", "unrecognized arguments: --nothing"),
        ("python -m tools.nothing", "there is no tools.nothing"),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault in str(fault_of(command.split(), monkeypatch))
