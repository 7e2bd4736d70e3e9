"""What the writers for experiment trackers share: a package that may not be there, and a run that is gone on with."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxdet.runtime.files import write_text


def package(name: str) -> Any:
    """Import the package of a tracker; ValueError that says what to install where it is not there."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the package is there, and something that it needs is not
            raise
        raise ValueError(f"expected the package {name}, which is not installed: pip install 'jaxdet[{name}]'") from None


def kept_id(path: Path, make: Callable[[], str]) -> tuple[str, bool]:
    """The id under which a tracker knows the run, and whether it is one that goes on; kept in the run's folder."""
    if path.exists():
        return path.read_text().strip(), True
    made = make()
    write_text(path, f"{made}\n")
    return made, False
