"""Config files: Python files with a function ``get_config``, one's own, or those that come with jaxdet."""

import ast
import difflib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

from jaxdet.config.trusted import add_folder

CONFIGS = Path(__file__).parents[1] / "configs"
"""The configs that come with jaxdet; in a checkout a link to the folder ``configs/``."""
_TABLES = "tables"


def load_config(path: str | Path) -> Any:
    """Call ``get_config()`` of a Python file.  The file is run, so it must be one's own.

    It may import modules that lie beside it: its folder is put at the end of ``sys.path``.

    Args:
        path: the file, or ``file.py:row_3`` for ``get_config("row_3")`` of a file with several configs; or the name of
            one that comes with jaxdet, ``mask_rcnn_r50_fpn``, or of a row of a paper's table, ``sbr_table6:row_3``.

    Returns:
        What the function returns.

    Raises:
        ValueError: there is no such file (those beside it are listed), and no config of that name, or it has no
            ``get_config``, or one that takes no name although one is given, or that needs one although none is.
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


def config_names(folder: str = "") -> list[str]:
    """Names of the configs that come with jaxdet, or of those in a folder of them (``"tables"``)."""
    # Files that others share define no ``get_config``; they are not run, so that a list costs nothing.
    return [path.stem for path in sorted((CONFIGS / folder).glob("*.py")) if "get_config" in _top_names(path)]


def config_text(name: str) -> str:
    """What the file of a config that comes with jaxdet says about it: its docstring."""
    return ast.get_docstring(ast.parse((CONFIGS / f"{name}.py").read_text())) or ""


def _top_names(path: Path) -> set[str]:
    """What a file defines, and assigns to names."""
    nodes = ast.parse(path.read_text()).body
    targets = [target for node in nodes if isinstance(node, ast.Assign) for target in node.targets]
    names = {target.id for target in targets if isinstance(target, ast.Name)}
    return names | {node.name for node in nodes if isinstance(node, ast.FunctionDef)}


def _split(path: str | Path) -> tuple[Path, str | None]:
    """The file, and the name of one of its configs."""
    # Only after a suffix .py, since a path may contain a colon itself.
    file, _, name = str(path).rpartition(":")
    if file.endswith(".py"):
        return Path(file), name
    own = _own(str(path))
    return own if own is not None and not Path(path).is_file() else (Path(path), None)


def _own(name: str) -> tuple[Path, str | None] | None:
    """The file of a config by its name, and the row if it has one; None where there is none of that name."""
    stem, _, row = name.removeprefix(f"{_TABLES}/").partition(":")
    for path in (CONFIGS / f"{stem}.py", CONFIGS / _TABLES / f"{stem}.py"):
        if stem.isidentifier() and path.is_file() and "get_config" in _top_names(path):
            return path, row or None
    return None


def _read(path: Path) -> dict[str, Any]:
    """Run the file; returns what it defines: ``get_config``, and in configs/tables a mapping ``ROWS`` of names."""
    if not path.is_file():
        if path.suffix != ".py" and path.parent == Path():
            known = [*config_names(), *config_names(_TABLES)]
            near = difflib.get_close_matches(path.name.partition(":")[0], known, n=3)
            hint = f"; there are {', '.join(near)}" if near else ""
            raise ValueError(f"no config of the name {path.name}{hint}; a file of your own ends in .py")
        beside = sorted(str(p) for p in path.parent.glob("*.py"))
        raise ValueError(f"no config file {path}; there are {', '.join(beside) or 'none in that folder'}")
    # Loaded by its path and not registered: two config files may have the same name.
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path}: expected a Python file, such as configs/mask_rcnn_r50_fpn.py")
    if CONFIGS.resolve() not in path.resolve().parents:
        add_folder(path.parent)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"{path}: expected a function get_config() that returns an Experiment")
    return vars(module)
