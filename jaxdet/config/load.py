"""Config files: Python files with a function ``get_config``."""

import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_config(path: str | Path) -> Any:
    """What ``get_config()`` of the Python file at ``path`` returns.  The file is run, so it must be one's own.

    ``file.py:row_3`` is what ``get_config("row_3")`` returns, for files with several configs.

    Raises:
        ValueError: there is no such file (those beside it are listed), or it has no ``get_config``, or one that takes
            no name although there is one.
    """
    file, name = _split(path)
    get_config = _read(file)
    if name is None:
        return get_config()
    if not inspect.signature(get_config).parameters:
        raise ValueError(f"{file} holds one config, whose get_config() takes no name: leave out ':{name}'")
    return get_config(name)


def config_name(path: str | Path) -> str:
    """A name for runs of a config: ``demo`` of ``configs/demo.py``, ``file_row_3`` of ``configs/file.py:row_3``."""
    file, name = _split(path)
    return file.stem if name is None else f"{file.stem}_{name}"


def _split(path: str | Path) -> tuple[Path, str | None]:
    file, _, name = str(path).rpartition(":")
    return (Path(file), name) if file.endswith(".py") else (Path(path), None)


def _read(path: Path) -> Callable[..., Any]:
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py"))
        raise ValueError(f"no config file {path}; there are {', '.join(beside) or 'none in that folder'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, such as configs/mask_rcnn_r50_fpn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    get_config = getattr(module, "get_config", None)
    if not callable(get_config):
        raise ValueError(f"{path}: expected a function get_config() that returns an Experiment")
    return get_config
