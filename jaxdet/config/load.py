"""Config files: Python files with a function ``get_config``."""

import importlib.util
import inspect
from pathlib import Path
from typing import Any


def load_config(path: str | Path) -> Any:
    """Call ``get_config()`` of a Python file.  The file is run, so it must be one's own.

    Args:
        path: the file, or ``file.py:row_3`` for ``get_config("row_3")`` of a file with several configs.

    Returns:
        What the function returns.

    Raises:
        ValueError: there is no such file (those beside it are listed), or it has no ``get_config``, or one that takes
            no name although one is given, or that needs one although none is.
    """
    file, name = _split(path)
    content = _read(file)
    get_config, arguments = content["get_config"], () if name is None else (name,)
    # Bound before it is called, so that a TypeError inside the config file is not taken for a wrong number of names.
    try:
        inspect.signature(get_config).bind(*arguments)
    except TypeError:
        if arguments:
            hint = f"leave out ':{name}'"
            raise ValueError(f"{file} holds one config, whose get_config() takes no name: {hint}") from None
        names = ", ".join(content.get("ROWS", ()))
        known = f"; NAME is one of {names}" if names else ""
        raise ValueError(f"{file} holds several configs: name one, as in {file}:NAME{known}") from None
    return get_config(*arguments)


def config_name(path: str | Path) -> str:
    """Name the runs of a config: ``demo`` for ``configs/demo.py``, ``file_row_3`` for ``configs/file.py:row_3``."""
    file, name = _split(path)
    return file.stem if name is None else f"{file.stem}_{name}"


def _split(path: str | Path) -> tuple[Path, str | None]:
    # Only after a suffix .py, since a path may contain a colon itself.
    file, _, name = str(path).rpartition(":")
    return (Path(file), name) if file.endswith(".py") else (Path(path), None)


def _read(path: Path) -> dict[str, Any]:
    """Run the file; returns what it defines: ``get_config``, and in configs/tables a mapping ``ROWS`` of names."""
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py"))
        raise ValueError(f"no config file {path}; there are {', '.join(beside) or 'none in that folder'}")
    # Loaded by its path and not registered: two config files may have the same name.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, such as configs/mask_rcnn_r50_fpn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path}: expected a function get_config() that returns an Experiment")
    return vars(module)
