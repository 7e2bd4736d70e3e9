"""A program starts again with large pages: once, with the same arguments, and only where that helps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxdet.runtime import large_pages

ROOT = Path(__file__).parents[2]
PROGRAM = """
import os, sys
from jaxdet.runtime.large_pages import ask_for_large_pages
print("started", os.getpid(), flush=True)
ask_for_large_pages()
print(sys.argv[1:], os.environ["GLIBC_TUNABLES"])
"""


class Restarted(Exception):
    """Instead of another program."""


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine where large pages are to be had, on which nothing is really started; its kernel's setting."""
    kernel = tmp_path / "enabled"
    kernel.write_text("always [madvise] never\n")

    def restart(path: str, arguments: list[str]) -> None:
        raise Restarted(path, arguments)

    monkeypatch.setattr(large_pages, "_KERNEL", kernel)
    monkeypatch.setattr(os, "confstr", lambda name: "glibc 2.35", raising=False)
    monkeypatch.setattr(os, "execv", restart)
    monkeypatch.setenv("GLIBC_TUNABLES", "")
    return kernel


@pytest.mark.skipif(not large_pages._on_request(), reason="no large pages on request on this machine")
def test_program_starts_once_more_with_its_arguments(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command = [sys.executable, "-W", "error", str(tmp_path / "program.py"), "a b", "--c=*"]
    with subprocess.Popen(
        command, env=environment | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    ) as process:
        output, _ = process.communicate(timeout=60)
    once = f"started {process.pid}\n"
    assert output == f"{once}{once}['a b', '--c=*'] glibc.malloc.hugetlb=1\n"


def test_arguments_of_the_interpreter_stay(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "dev", "-m", "program", "word"])
    with pytest.raises(Restarted) as found:
        large_pages.ask_for_large_pages()
    assert found.value.args == (sys.executable, [sys.executable, "-X", "dev", "-m", "program", "word"])


def test_other_tunables_stay(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    with pytest.raises(Restarted):
        large_pages.ask_for_large_pages()
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("setting", ["glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=1"])
def test_a_choice_is_kept(starts: Path, monkeypatch: pytest.MonkeyPatch, setting: str) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", setting)
    large_pages.ask_for_large_pages()
    assert os.environ["GLIBC_TUNABLES"] == setting


@pytest.mark.parametrize("setting", ["[always] madvise never\n", "always madvise [never]\n", None])
def test_nothing_happens_where_the_kernel_gives_none_on_request(starts: Path, setting: str | None) -> None:
    starts.unlink() if setting is None else starts.write_text(setting)
    large_pages.ask_for_large_pages()


@pytest.mark.parametrize("library", ["glibc 2.34", "glibc", "musl 1.2.5", None])
def test_nothing_happens_with_another_c_library(
    starts: Path, monkeypatch: pytest.MonkeyPatch, library: str | None
) -> None:
    monkeypatch.setattr(os, "confstr", lambda name: library)
    large_pages.ask_for_large_pages()


def test_nothing_happens_on_another_system(starts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "confstr")
    large_pages.ask_for_large_pages()
