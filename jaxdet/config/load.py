"""Config files: Python files with a function ``get_config()``."""

import importlib.util
from pathlib import Path
from typing import Any


def load_config(path: str | Path) -> Any:
    """What ``get_config()`` of the Python file at ``path`` returns.  The file is run, so it must be one's own.

    Raises:
        ValueError: there is no such file (those beside it are listed), or it has no ``get_config``.
    """
    path = Path(path)
    if not path.is_file():
        beside = sorted(str(p) for p in path.parent.glob("*.py"))
        raise ValueError(f"no config file {path}; there are {', '.join(beside) or 'none in that folder'}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, such as configs/mask_rcnn_r50_fpn.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path}: expected a function get_config() that returns an Experiment")
    return module.get_config()
