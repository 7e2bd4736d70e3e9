"""The package as it is imported: light, complete, and there outside of the checkout."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdet
import jaxdet.data

ROOT = Path(__file__).parents[1]
CODE = (".py", ".pyc")
VERBS = ("train", "evaluate", "predict", "export", "load", "build", "list_models")


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


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the package was installed from a wheel, which was built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    # A build leaves files beside its sources.
    shutil.copytree(ROOT / "jaxdet", source / "jaxdet", ignore=shutil.ignore_patterns("__pycache__"), symlinks=True)
    shutil.copytree(ROOT / "configs", source / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("jaxdet-*.whl")
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], check=True
    )
    return folder / "site"


def test_a_wheel_has_the_configs_and_the_command(installed: Path, tmp_path: Path) -> None:
    where = "import jaxdet.configs as c; print(c.__file__); import jaxdet; print(len(jaxdet.list_models(tables=True)))"
    file, count = python(where, tmp_path, PYTHONPATH=str(installed)).split()
    assert Path(file).is_relative_to(installed)
    assert int(count) == len(jaxdet.list_models(tables=True)) > 100
    others = [
        {path.relative_to(root) for path in root.glob("jaxdet/**/*") if path.is_file() and path.suffix not in CODE}
        for root in (ROOT, installed)
    ]
    assert others[0] == others[1], "tables and the parts of pages travel too"
    assert (installed / "bin" / "jaxdet").exists()


def test_the_installed_command_trains_ten_steps_and_predicts(installed: Path, tmp_path: Path) -> None:
    """Away from the checkout, by a config of one's own that imports one that came with the package."""
    own = (ROOT / "tests" / "training" / "tiny.py").read_text()
    (tmp_path / "mine.py").write_text(
        "from jaxdet.configs import demo\n\nassert demo.SIZE\n\n" + own.split('"""', 2)[2]
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XDG_CACHE_HOME": str(tmp_path),
    }

    def jaxdet(*words: str) -> str:
        command = [sys.executable, str(installed / "bin" / "jaxdet"), *words]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    steps = ["optimizer.schedule.length=10", "optimizer.schedule.drops=8", "data.val=none"]
    jaxdet("train", "--config", "mine.py", "--workdir", "run", "data.train.directory=scenes", *steps)
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])["step"] == 10
    image = next((tmp_path / "scenes").rglob("*.jpg"), None) or next((tmp_path / "scenes").rglob("*.png"))
    assert "in 1 image: " in jaxdet("predict", "run", str(image))
    assert "mask_rcnn_r50_fpn " in jaxdet("zoo", "mask_rcnn_r50_fpn")
