"""The package as it is imported: light, complete, and there outside of the checkout."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdet
import jaxdet.data

ROOT = Path(__file__).parents[1]
VERBS = ("train", "evaluate", "predict", "load")


def python(script: str, folder: Path, **environment: str) -> str:
    """Run a script elsewhere, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={"PATH": "", "HOME": str(folder), **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_import_is_light(tmp_path: Path) -> None:
    script = "import sys, jaxdet; dir(jaxdet); assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    python(script, tmp_path, PYTHONPATH=str(ROOT))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match=r"has no attribute 'fit'; it has .*train"):
        jaxdet.fit  # noqa: B018


def test_verbs() -> None:
    assert all(callable(getattr(jaxdet, name)) for name in VERBS)


def test_dir_shows_what_is_imported_late(tmp_path: Path) -> None:
    """In a new process: here the verbs may have been used."""
    names = python("import jaxdet; print(*dir(jaxdet))", tmp_path, PYTHONPATH=str(ROOT)).split()
    assert {*VERBS, "__version__", "__doc__"} <= set(names)
    assert set(jaxdet.data.__all__) <= set(dir(jaxdet.data))


def test_the_environment_of_make_has_it_outside_of_the_checkout(tmp_path: Path) -> None:
    stamps = [stamp.stat().st_mtime for stamp in Path(sys.prefix).glob(".installed-*")]
    if not stamps or max(stamps) < (ROOT / "pyproject.toml").stat().st_mtime:
        pytest.skip("this environment is not of `make venv`, or older than what it is to have")
    assert python("import jaxdet; print(jaxdet.__version__)", tmp_path).strip() == jaxdet.__version__


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a GPU")
@pytest.mark.parametrize("script", ["predict", "eval"])
def test_a_kind_of_device_that_is_not_there_is_said_in_a_line(script: str, tmp_path: Path) -> None:
    arguments = ["--checkpoint", str(tmp_path), *(["a.png"] if script == "predict" else [])]
    (tmp_path / "a.png").touch()
    done = subprocess.run(
        [sys.executable, str(ROOT / f"{script}.py"), *arguments],
        cwd=tmp_path,
        env=os.environ | {"JAX_PLATFORMS": "cuda"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert f"{script}.py: devices: expected one of the kind" in done.stderr
    assert "JAX_PLATFORMS=cuda names" in done.stderr
