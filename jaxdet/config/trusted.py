"""Whose classes a config may name: jaxdet's own, and those of modules that the user says to trust.

To build a class its module is imported, which runs it.  So a name in a stranger's checkpoint is never enough: the user
names the modules whose code may run, and what a checkpoint says of itself does not count.
"""

import dataclasses
import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flax import linen as nn

import jaxdet

#: What a class of one's own has to be, for messages.
KIND = (
    "a frozen dataclass (@dataclass(frozen=True)) or a linen module (flax.linen.Module), defined at the top of a file, "
    "with an annotation for each setting"
)


def trusted_modules(names: Sequence[str], beside: str | Path | None = None) -> tuple[str, ...]:
    """Check what a user trusts, and make it importable, here and in worker processes.

    Args:
        names: modules, such as ``"my_heads"`` or ``"my_package.heads"``, each with what is below it; or the paths of
            a Python file or of a package's folder, such as ``"mine/my_heads.py"``.
        beside: a config file; modules are looked for in its folder, in the current one, and where Python looks.  The
            folder of one that lies in the first two, or is given by its path, is put at the end of ``sys.path``.

    Returns:
        The names of the modules, in order and without repetition.

    Raises:
        ValueError: a name is none, is one of Python's own modules, or is nowhere to be found.
    """
    if isinstance(names, str):
        raise ValueError(f"trusted: expected a list of modules, got a text; write [{names!r}]")
    folders = [*([] if beside is None else [Path(beside).parent]), Path()]
    return tuple(dict.fromkeys(_found(name, folders) for name in names))


def add_folder(folder: Path) -> None:
    """Let modules of a folder be imported, here and in worker processes; those of other folders come first."""
    if str(folder.resolve()) not in sys.path:
        sys.path.append(str(folder.resolve()))


def _found(name: str, folders: Sequence[Path]) -> str:
    if not isinstance(name, str):
        raise ValueError(f"trusted: expected names of modules, got {name!r}")
    if name.endswith(".py") or "/" in name:
        return _of_path(Path(name))
    _refuse_name(name)
    top = name.partition(".")[0]
    near = next((path for folder in folders if (path := _in_folder(folder, top)) is not None), None)
    if near is not None:
        _of_path(near)  # not another one of the same name
    elif importlib.util.find_spec(top) is None:
        looked = ", ".join(dict.fromkeys(str(folder.resolve()) for folder in folders))
        raise ValueError(
            f"trusted: expected a module that Python finds, got {name!r}, which is not on its path nor in {looked}; "
            f"name its file, as in --trusted FOLDER/{top}.py, or the folder of a package, --trusted FOLDER/{top}"
        )
    return name


def _in_folder(folder: Path, top: str) -> Path | None:
    """The file of a module, or the folder of a package, in a folder; None where it has none of that name."""
    if (folder / f"{top}.py").is_file():
        return folder / f"{top}.py"
    return folder / top if next((folder / top).rglob("*.py"), None) else None


def _of_path(path: Path) -> str:
    """The name of a module that is given by its file, or by the folder of its package."""
    name = path.resolve().stem
    if not path.exists():
        raise ValueError(f"trusted: expected a Python file or the folder of a package, got {path}, which is not there")
    _refuse_name(name)
    add_folder(path.resolve().parent)
    importlib.invalidate_caches()  # the file may be younger than what Python remembers of the folder
    spec = importlib.util.find_spec(name)
    places = [*((spec.submodule_search_locations or []) if spec else []), *([spec.origin] if spec else [])]
    if path.resolve() not in [Path(place).resolve() for place in places if place]:
        raise ValueError(
            f"trusted: {path} cannot be imported as {name}, since Python finds another module of this name first "
            f"({', '.join(str(place) for place in places if place)}); give the file another name"
        )
    return name


def _refuse_name(name: str) -> None:
    if not _is_module_name(name):
        raise ValueError(
            f"trusted: expected the name of a module, such as my_heads or my_package.heads, or a file, got {name!r}"
        )
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names or top == "__main__":
        raise ValueError(
            f"trusted: expected a module of your own, got {name!r}, which is one of Python's; if yours has this name, "
            "give it another"
        )


def check_classes(classes: Iterable[type], trusted: Sequence[str]) -> None:
    """Make sure that `config_class` would find the classes of a config again.

    Raises:
        ValueError: it would not; says why, and what to do.  Of classes in modules that are not trusted it lists all.
    """
    foreign = []
    for cls in classes:
        module, name = cls.__module__, f"{cls.__module__}.{cls.__qualname__}"
        if module in _own_modules():
            continue
        if "." in cls.__qualname__:
            raise ValueError(f"{name}: the class is defined inside of another one or of a function. {_remedy(cls)}")
        if module == "__main__" or getattr(sys.modules.get(module), cls.__name__, None) is not cls:
            raise ValueError(
                f"{name}: the class is defined in the config file itself, or in a script or notebook, which cannot be "
                f"imported again when the checkpoint is loaded. {_remedy(cls)}"
            )
        if not _is_trusted(module, trusted):
            foreign.append(name)
    if foreign:
        foreign = list(dict.fromkeys(foreign))
        raise ValueError(
            f"the config has classes that jaxdet does not define: {', '.join(foreign)}. Its checkpoint can only be "
            f"loaded by running their code. If you trust it, {_advice(map(_module_of, foreign))}"
        )


def class_name(cls: type, trusted: Sequence[str]) -> str:
    """The name under which a class that `check_classes` lets pass is stored.

    Raises:
        ValueError: `config_class` finds another one under that name.
    """
    name = f"{cls.__module__}.{cls.__qualname__}"
    if config_class(name, trusted) is not cls:  # a class of a test or a notebook that has jaxdet's name
        raise ValueError(f"{name}: the class is not the one that can be imported under this name")
    return name


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _remedy(cls: type) -> str:
    return (
        f"Put it at the top of a file of its own, beside the config file, such as my_parts.py; write "
        f"`from my_parts import {cls.__name__}`, and pass --trusted my_parts, or trusted=['my_parts'] in Python"
    )


def _advice(modules: Iterable[str]) -> str:
    modules = list(dict.fromkeys(modules))
    tops = [module.partition(".")[0] for module in modules]
    # Of several modules of a package the package: a list of its parts is long, and to import one runs the package.
    names = list(dict.fromkeys(t if tops.count(t) > 1 else m for t, m in zip(tops, modules, strict=True)))
    return f"pass trusted={names}, or on the command line {' '.join(f'--trusted {name}' for name in names)}"


def refuse_foreign(names: Iterable[str], trusted: Sequence[str]) -> None:
    """Raise a ValueError if classes are from elsewhere; it lists all of them, and says what to pass to trust them."""
    own = _own_modules()
    foreign = [name for name in dict.fromkeys(names) if _module_of(name) not in own]
    foreign = [name for name in foreign if not _is_trusted(_module_of(name), trusted)]
    for name in foreign:
        top = _module_of(name).partition(".")[0]
        if not _is_module_name(name) or top in {*sys.stdlib_module_names, "__main__", "jaxdet"}:
            raise ValueError(f"{name}: config data may only name classes defined in jaxdet, or in a module you trust")
    if foreign:
        modules = list(dict.fromkeys(map(_module_of, foreign)))
        raise ValueError(
            f"the config names classes outside of jaxdet: {', '.join(foreign)}. To build them the code of "
            f"{', '.join(modules)} has to run on this machine. If you trust that code, {_advice(modules)}"
        )


def config_class(name: str, trusted: Sequence[str]) -> type:
    """Find a config class by its full name, in jaxdet's own files and in trusted modules alone.

    Raises:
        ValueError: it is from elsewhere, is not there, or is no config class.
    """
    refuse_foreign([name], trusted)
    module_name, _, name_in_it = name.rpartition(".")
    # A module also holds what it imports (`Path`, say), so the class itself must say that it is defined there.
    cls = getattr(_imported(module_name), name_in_it, None)
    defined_here = isinstance(cls, type) and (cls.__module__, cls.__qualname__) == (module_name, name_in_it)
    if not isinstance(cls, type) or not defined_here or not _is_config_class(cls):
        raise ValueError(f"{name}: expected a class that {module_name} defines, {KIND}, got {_what(cls)}")
    return cls


def _imported(module: str) -> Any:
    if module in _own_modules():
        return importlib.import_module(module)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{module} is trusted, but cannot be imported ({error}); is it installed here? A file is named by its "
            "path, as in --trusted FOLDER/my_heads.py"
        ) from error
    except Exception as error:  # whatever the code of a stranger's module does
        raise ValueError(f"{module} is trusted, but importing it fails: {type(error).__name__}: {error}") from error


def _what(found: Any) -> str:
    if found is None:
        return "nothing of this name"
    if not isinstance(found, type):
        return f"a {type(found).__name__}"
    if dataclasses.is_dataclass(found) and not _is_config_class(found):
        return "a dataclass that is not frozen"
    return f"the class {found.__module__}.{found.__qualname__}"


def _is_config_class(cls: type) -> bool:
    frozen = dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen  # type: ignore[attr-defined]
    return frozen or issubclass(cls, nn.Module)


def _is_trusted(module: str, trusted: Sequence[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in trusted)


def _is_module_name(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


@functools.cache
def _own_modules() -> frozenset[str]:
    """Names of jaxdet's modules, found by their files: importing a name to see whether it exists would run it."""
    root = Path(jaxdet.__path__[0])
    parts = (path.relative_to(root).with_suffix("").parts for path in root.rglob("*.py"))
    return frozenset(".".join(("jaxdet", *part)).removesuffix(".__init__") for part in parts)
