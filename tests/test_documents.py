"""The documents tell the truth: what they link and name exists, settings are accepted, and the worked example runs."""

import ast
import fnmatch
import functools
import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jaxdet
from jaxdet.config import config_names, load_config, override
from jaxdet.config.tree import walk

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "ADD_A_MODEL.md"
OWN = ROOT / "docs" / "YOUR_CODE.md"  #: whose files are run by tests/test_your_code.py
#: What is checked.  Notes in docs/lab/ are dated and name files and settings of their day: only their links count.
DOCUMENTS = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "lab")]
LINKING = [*DOCUMENTS, *sorted((ROOT / "docs" / "lab").glob("*.md")), ROOT / "CHANGELOG.md"]

BLOCK = re.compile(r"(?:^`(?P<file>[^`\n]+)`:\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)")
CODE = re.compile(r"`([^`]+)`")


def document_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=document_id)


def blocks(document: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(document.read_text()))


def spans(document: Path) -> Iterator[str]:
    """What stands between backticks outside of blocks, without line breaks."""
    for text in CODE.findall(BLOCK.sub("", document.read_text())):
        yield " ".join(text.split())


def new_files() -> set[str]:
    """The files that the worked examples make."""
    return {block["file"] for example in (EXAMPLE, OWN) for block in blocks(example) if block["file"]}


def heading_anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to headings, and those that a document sets by itself."""
    text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    own = set(re.findall(r'<a id="([^"]+)"></a>', text))
    return own | {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", LINKING, ids=document_id)
def test_links_lead_somewhere(document: Path) -> None:
    wrong = []
    for path, anchor in LINK.findall(document.read_text()):
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in heading_anchors(target)):
            wrong.append(f"{path}#{anchor}")
    assert not wrong


def names_missing_file(word: str) -> bool:
    """Whether a word looks like a file or folder of the repository, or of jaxdet/ inside it, and is none."""
    word = re.sub(r"(\.py):\w+$", r"\1", word)
    if not re.fullmatch(r"[\w*.{},-]+(/[\w*.{},-]+)*/?", word) or word in new_files():
        return False
    first, _, rest = word.partition("/")
    bases = [ROOT, ROOT / "jaxdet"]
    is_source = word.endswith((".py", ".md")) and (rest or first in ("train.py", "eval.py", "predict.py"))
    in_repository = (ROOT / first).is_dir() and first not in ("build", "runs", "data") and (rest or word.endswith("/"))
    if not is_source and not in_repository:
        return False
    return not any(any(base.glob(word.rstrip("/"))) for base in bases)


@each_document
def test_files_that_are_named_exist(document: Path) -> None:
    assert not [span for span in spans(document) if any(names_missing_file(word) for word in span.split())]


@pytest.mark.parametrize(
    ("word", "missing"),
    [
        ("jaxdet/ops/boxes.py", False),
        ("ops/boxes.py", False),
        ("ops/spectral.py", True),
        ("jaxdet/train_lib/loop.py", True),
        ("configs/tables/sbr_table6.py:row_3", False),
        ("configs/*_r18_fpn_small.py", False),
        ("docs/lab/none.md", True),
        ("tests/parity/", False),
        ("tests/party/", True),
        ("runs/demo/", False),
        ("data/coco/annotations", False),
        ("and/or", False),
    ],
)
def test_a_missing_file_is_found(word: str, missing: bool) -> None:
    assert names_missing_file(word) == missing


def names_missing_object(name: str) -> bool:
    """Whether a dotted name below jaxdet, benchmarks or tools leads nowhere."""
    parts = name.split(".")
    for number in range(len(parts), 0, -1):
        path = ROOT.joinpath(*parts[:number])
        if path.with_suffix(".py").exists() or (path.is_dir() and any(path.glob("*.py"))):
            break
    else:
        return True
    rest = parts[number:]
    if not rest:
        return False
    found: Any = importlib.import_module(".".join(parts[:number]))
    for attribute in rest:
        annotated = attribute in getattr(found, "__annotations__", {})
        if not hasattr(found, attribute) and not annotated:
            return True
        found = getattr(found, attribute, None)
    return False


@each_document
def test_modules_and_objects_that_are_named_exist(document: Path) -> None:
    pattern = re.compile(r"(?:jaxdet|benchmarks|tools)(?:\.\w+)+")
    names = {word for span in spans(document) for word in span.split() if pattern.fullmatch(word)}
    assert not [name for name in names if not name.endswith((".py", ".md")) and names_missing_object(name)]


@functools.cache
def load(config: str) -> Any:
    """By its file from the root of the repository, or by its name."""
    return load_config(f"{ROOT}/{config}" if ".py" in config else config)


@functools.cache
def all_configs() -> tuple[Any, ...]:
    return tuple(load(f"configs/{name}.py") for name in config_names())


def accepted(settings: list[str]) -> bool:
    """Whether some config takes these KEY=VALUE."""
    for config in all_configs():
        try:
            override(config, settings)
        except ValueError:
            continue
        return True
    return False


@functools.cache
def all_keys() -> frozenset[str]:
    return frozenset(key for config in all_configs() for key, _ in walk(config, type(config)))


@each_document
def test_settings_that_are_named_exist(document: Path) -> None:
    """``model.dtype=bfloat16`` is taken by some config, and ``data.max_boxes`` is a key of one."""
    pattern = re.compile(r"'?(?P<key>(?:model|data|optimizer|run|\*)(?:\.[\w*]+)+)(?P<value>=[^\s'.][^\s']*)?'?")
    wrong = []
    for span in spans(document):
        for found in filter(None, map(pattern.fullmatch, span.split())):
            value = found["value"]
            fits = accepted([found["key"] + value]) if value else fnmatch.filter(all_keys(), found["key"])
            is_placeholder = (bool(value) and value.isupper()) or span.startswith("python ")
            if not fits and not is_placeholder:
                wrong.append(found[0])
    assert not wrong


@each_document
def test_python_in_documents_imports_what_exists(document: Path) -> None:
    if document == EXAMPLE:
        return  # run as a whole below
    for block in blocks(document):
        if block["language"] != "python":
            continue
        for node in ast.walk(ast.parse(block["text"])):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "jaxdet":
                module = importlib.import_module(str(node.module))
                assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]


@each_document
def test_calls_of_the_verbs_in_documents_fit_them(document: Path) -> None:
    for block in blocks(document):
        for node in ast.walk(ast.parse(block["text"])) if block["language"] == "python" else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {f"jaxdet.{verb}" for verb in jaxdet.__all__}:
                verb = getattr(jaxdet, ast.unparse(node.func).partition(".")[2])
                inspect.signature(verb).bind(*node.args, **{str(word.arg): word.value for word in node.keywords})


@each_document
def test_targets_of_make_that_are_named_exist(document: Path) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for block in blocks(document) if not block["language"] for line in block["text"].splitlines()]
    named = {found[1] for line in [*lines, *spans(document)] if (found := re.match(r"make (\w+)", line))}
    assert named <= targets


def patched(text: str, diff: str) -> str:
    """The text with one hunk applied; lines around it must stand in the text as they stand in the diff."""
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] != "+")
    new = "".join(line[1:] for line in lines if line[0] != "-")
    assert text.count(old) == 1, f"the file has {text.count(old)} places like\n{old}"
    return text.replace(old, new)


def test_the_worked_example_runs(tmp_path: Path) -> None:
    """Files of the example are written into a copy of the repository, and its commands run there, in order."""
    for name in ("jaxdet", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # programs run once or twice: optimising them takes longer than it saves
        "JAX_PLATFORMS": "cpu",
    }
    for block in blocks(EXAMPLE):
        text, file = block["text"], block["file"]
        if file:
            path = tmp_path / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(patched(path.read_text(), text) if block["language"] == "diff" else text)
            continue
        assert not block["language"], "a block of the example is a file, a diff of one, or commands"
        done = subprocess.run(
            ["bash", "-e", "-c", text],
            cwd=tmp_path,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}"
    assert "box_quality" in (tmp_path / "runs" / "split" / "log.jsonl").read_text()


def test_classes_from_elsewhere_are_refused() -> None:
    """As the example says of a class that has no file of its own: the run could not be loaded again."""
    import flax.linen as nn

    from jaxdet.config import to_data

    class Mine(nn.Module):
        pass

    with pytest.raises(ValueError, match="inside of another one or of a function"):
        to_data(Mine())
