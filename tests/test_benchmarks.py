"""What the benchmarks share; that they measure well is not for tests to say."""

import re
import shlex
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.measure import Cost, Peak, Row, floor_table, later_rounds, markdown
from tools import renew

TEXT = """Before.

```
python -m benchmarks.one --size 3
```

<!-- made -->
old
<!-- end -->
Between.

```
python -m benchmarks.two
```

<!-- kept -->
dear
<!-- end -->
After.
"""


ROOT = Path(__file__).parents[1]
DOCUMENTS = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "benchmarks" / "README.md"]


def test_every_command_of_the_document_is_found() -> None:
    commands = [shlex.split(part["command"])[0] for part in renew.PART.finditer(renew.DOCUMENT.read_text())]
    assert {"ops.roi_align", "ops.nms", "ops.paste", "models.speed", "peers.pipeline", "models.compile_time"} <= set(
        commands
    )
    assert renew.DOCUMENT.read_text().count("<!-- end -->") == len(commands)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_and_files_that_documents_name_are_there(path: Path) -> None:
    text = path.read_text()
    modules = re.findall(r"python\s+-m\s+((?:benchmarks|tools|jaxdet|tests)(?:\.\w+)*)", text)
    modules += re.findall(r"`(benchmarks(?:\.\w+)+)`", text)
    files = re.findall(r"\b(?:benchmarks|tools)(?:/\w+)+\.py\b", text)
    assert [name for name in modules if not is_module(name)] + [f for f in files if not (ROOT / f).is_file()] == []


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__main__.py").is_file()


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "BENCHMARKS.md"
    path.write_text(TEXT)
    monkeypatch.setattr(renew, "DOCUMENT", path)
    return path


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr("sys.argv", ["renew", *arguments])
    renew.main()


def test_only_the_chosen_tables_are_renewed(monkeypatch: pytest.MonkeyPatch, document: Path) -> None:
    monkeypatch.setattr(renew, "run", lambda command: f"new of {command}\n")
    main(monkeypatch)
    assert document.read_text() == TEXT.replace("old", "new of one --size 3")
    main(monkeypatch, "two")
    assert document.read_text() == TEXT.replace("old", "new of one --size 3").replace("dear", "new of two")


def test_places_are_filled_in_and_do_not_reach_the_document(monkeypatch: pytest.MonkeyPatch, document: Path) -> None:
    monkeypatch.setattr(renew, "run", lambda command: f"ran {command}\n")
    text = TEXT.replace("benchmarks.two", "benchmarks.two --images DIR")
    document.write_text(text)
    main(monkeypatch, "two", "--given", "DIR=/a b")
    assert document.read_text() == text.replace("dear", "ran two --images '/a b'")


def test_edits_made_while_a_command_runs_are_kept(monkeypatch: pytest.MonkeyPatch, document: Path) -> None:
    def run(command: str) -> str:
        document.write_text(document.read_text().replace("Between.", "Edited."))
        return "new\n"

    monkeypatch.setattr(renew, "run", run)
    main(monkeypatch)
    assert document.read_text() == TEXT.replace("Between.", "Edited.").replace("old", "new")


def test_a_command_that_fails_writes_nothing(monkeypatch: pytest.MonkeyPatch, document: Path) -> None:
    with pytest.raises(SystemExit, match="one --size 3: it failed with exit code 1"):
        main(monkeypatch, "one")
    assert document.read_text() == TEXT


def test_products_in_the_later_rounds_of_loops_are_counted() -> None:
    matrix, images, kernel = jnp.ones((4, 4)), jnp.ones((1, 8, 8, 2)), jnp.ones((3, 3, 2, 5))

    def body(x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        convolve = partial(jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME")
        return x @ matrix, convolve(images + x[0, 0], kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    program = jax.make_jaxpr(jax.jit(lambda x: jax.lax.scan(body, x @ matrix, length=6)[0]))(matrix)
    assert later_rounds(program.jaxpr) == 5 * (2 * 4**3 + 2 * 8 * 8 * 5 * 3 * 3 * 2)


def test_floor_is_the_slower_of_computing_and_moving() -> None:
    peak = Peak(flops=1e9, bytes=1e8)
    assert Cost(2e9, 1e7).floor_ms(peak) == 2000
    assert Cost(1e6, 1e7).floor_ms(peak) == 100
    rows = [Row("this", Cost(1e6, 1e7), peak, 400.0, torch_ms=800.0), Row("that", Cost(1e6, 0), Peak(2e9, 1e8), 1.0)]
    heading, *_, this, that = floor_table(rows).splitlines()
    assert heading.endswith("1 to 2 GFLOP/s and 0.1 GB/s measured")
    assert this == "| this | 0.001 | 10 | 100 | 400 | 25.0% | 800 | 2 |"
    assert that == "| that | 0.001 | 0 | 0.5 | 1 | 50.0% | - | - |"


def test_tables_align_numbers_and_show_what_is_missing() -> None:
    table = markdown(["name", "count"], [["a", 12345], ["b", None]])
    assert table == "| name | count |\n| --- | ---: |\n| a | 12,345 |\n| b | - |"
