"""The page of twenty troubles: every answer names tests that exist, and what no other test proves is proven here."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from jaxdet.config import config_names
from jaxdet.config.tree import walk
from tests.test_documents import load

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "TROUBLES.md"
SECTION = re.compile(r"^## (\d+)\. (.+?)\n(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
SECTIONS = SECTION.findall(PAGE.read_text())


def missing_tests(proof: str) -> list[str]:
    """The tests, ``tests/FILE.py::NAME`` between backticks, of which there is no function."""
    wrong = []
    for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", proof):
        path = ROOT / file
        functions = ast.walk(ast.parse(path.read_text())) if path.exists() else ()
        if not any(isinstance(node, ast.FunctionDef) and node.name == name for node in functions):
            wrong.append(f"{file}::{name}")
    return wrong


def test_there_are_twenty() -> None:
    assert [int(number) for number, _, _ in SECTIONS] == list(range(1, 21))


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section[0])
def test_a_trouble_has_threads_and_tests_that_exist(section: tuple[str, str, str]) -> None:
    _, title, text = section
    answer, threads, rest = text.partition("\nThreads: ")
    threads, proof, tests = rest.partition("\nProof: ")
    assert answer.strip(), title
    assert re.search(r"\]\(https://github\.com/[\w./-]+/(issues|pull)/\d+\)", threads), title
    assert proof, title
    assert tests.count("::") == len(re.findall(r"`tests/[\w/]+\.py::\w+`", tests)) > 0, title
    assert not missing_tests(tests)


def test_a_missing_test_is_found() -> None:
    named = "`tests/test_troubles.py::test_nothing`, `tests/none.py::test_x`, `tests/test_troubles.py::missing_tests`"
    assert missing_tests(named) == ["tests/test_troubles.py::test_nothing", "tests/none.py::test_x"]


@pytest.mark.parametrize("name", config_names())
def test_the_number_of_classes_stands_in_one_place(name: str) -> None:
    config = load(name)
    # A semantic branch counts what else a map of pixels tells apart.
    keys = [key for key, _ in walk(config, type(config)) if re.search(r"(?<!semantic)\.num_classes$", key)]
    phases = ["model.num_classes"] if config.before is None else ["model.num_classes", "before.model.num_classes"]
    assert sorted(keys) == sorted(phases)


def test_nothing_of_the_package_is_compiled_when_it_is_installed() -> None:
    sources = {path.suffix for path in (ROOT / "jaxdet").rglob("*") if path.is_file()}
    assert not sources & {".c", ".cc", ".cpp", ".cu", ".h", ".pyx", ".so"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "ext-modules" not in project["tool"]["setuptools"]
    assert not (ROOT / "setup.py").exists()
    needed = {re.split(r"[^\w-]", line)[0].lower() for line in project["project"]["dependencies"]}
    assert "jax" in needed
    assert not needed & {"torch", "torchvision", "tensorflow"}
