"""Imports go one way: entry points, configs, training and evaluation, models, nn, ops, structures; without cycles."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENTRY_POINTS = ("train", "eval", "predict")
#: What each part may import beside itself.  Parts are the folders and files of jaxdet/.
ALLOWED = {
    "structures": set[str](),
    "config": set[str](),
    "messages": set[str](),
    "ranges": set[str](),
    "runtime": {"structures", "config", "messages"},
    "ops": {"structures", "ranges"},
    "nn": {"structures", "ranges", "ops"},
    "models": {"structures", "ranges", "ops", "nn"},
    "data": {"structures", "messages", "ranges", "runtime"},
    "checkpoints": {"structures", "runtime"},
    "visualize": {"data", "runtime"},
    "experiment": {"ranges", "models", "data"},
}
# What a checkpoint holds.
ALLOWED["trained"] = {"structures", "config", "messages", "data", "checkpoints", "runtime", "experiment"}
ALLOWED["evaluation"] = {*ALLOWED} - {"visualize", "nn"}  # a model over data, and its numbers
ALLOWED["report"] = {"data", "evaluation", "runtime", "trained"}  # which says where a model goes wrong
BELOW = set(ALLOWED) - {"report"}
ALLOWED |= {"training": BELOW, "prediction": BELOW}  # neither knows the other
ALLOWED["exporting"] = {"structures", "ops", "models", "data", "checkpoints", "runtime", "evaluation", "trained"}
ALLOWED["zoo"] = {*BELOW, "training"}
ALLOWED["show"] = {"config", "messages", "data", "experiment", "runtime", "visualize"}
# Settings from a folder and minutes.
ALLOWED["recipe"] = {"checkpoints", "config", "messages", "data", "experiment", "models", "runtime", "training"}
ALLOWED["commands"] = {*ALLOWED}
ALLOWED["__main__"] = {"commands"}


def module_name(path: Path) -> str:
    """``jaxdet.configs`` is a link to ``configs/``."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return f"jaxdet.{name}" if name.split(".")[0] == "configs" else name


def sources() -> dict[str, Path]:
    found = (path for path in ROOT.glob("jaxdet/**/*.py") if "configs" not in path.parts)
    files = [*found, *ROOT.glob("configs/**/*.py"), *(ROOT / f"{e}.py" for e in ENTRY_POINTS)]
    return {module_name(path): path for path in files if path.exists()}


def imported(tree: ast.AST, modules: set[str]) -> Iterator[str]:
    """Names of the project's modules that a file imports, at any depth (imports in functions count too)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in modules else str(node.module) for name in whole]
        else:
            continue
        yield from (name for name in names if name in modules)


def graph() -> dict[str, set[str]]:
    files = sources()
    return {name: set(imported(ast.parse(path.read_text()), set(files))) for name, path in files.items()}


def part(module: str) -> str:
    """``jaxdet.nn.necks`` -> ``nn``; entry points, configs and jaxdet itself -> their first name."""
    parts = module.split(".")
    return parts[1] if parts[0] == "jaxdet" and len(parts) > 1 else parts[0]


def back_edges(edges: dict[str, set[str]]) -> list[str]:
    """Imports against the layers, of which entry points, configs and jaxdet/__init__.py are the upper ones."""
    wrong = []
    for module, targets in edges.items():
        mine = part(module)
        if mine in ("configs", *ENTRY_POINTS):
            allowed = {*ALLOWED, "configs", "jaxdet"} if mine in ENTRY_POINTS else {*ALLOWED, "configs"}
        elif mine == "jaxdet":
            allowed = set(ALLOWED)
        else:
            allowed = {mine, "jaxdet", *ALLOWED.get(mine, set())}
        wrong += [f"{module} -> {target}" for target in sorted(targets) if part(target) not in allowed]
    return wrong


def test_every_part_has_its_place() -> None:
    parts = {part(name) for name in sources()} - {"configs", "jaxdet", *ENTRY_POINTS}
    assert parts <= set(ALLOWED), "a new part of jaxdet/ needs a line in ALLOWED"


def test_no_import_runs_back() -> None:
    assert back_edges(graph()) == []


def test_no_module_is_in_a_cycle() -> None:
    # jaxdet/__init__.py imports lazily, inside a function, so it is above and below everything; the others may not.
    edges = {name: targets - {"jaxdet"} for name, targets in graph().items()}
    TopologicalSorter(edges).prepare()


def test_grain_workers_do_not_import_jax() -> None:
    """Workers are spawned and import what their tasks need; jax there would cost seconds and memory for each."""
    files = sources()
    for name, path in files.items():
        if part(name) != "data":
            continue
        top = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
        names |= {str(node.module) for node in top if isinstance(node, ast.ImportFrom)}
        assert not {n for n in names if n.split(".")[0] in ("jax", "flax")}, name


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("jaxdet.ops.boxes", "jaxdet.nn.necks"),
        ("jaxdet.nn.necks", "jaxdet.models.two_stage"),
        ("jaxdet.models.two_stage", "jaxdet.training"),
        ("jaxdet.data.sources.coco", "jaxdet.ops.boxes"),
        ("jaxdet.checkpoints.store", "jaxdet.nn.backbones.resnet"),
        ("jaxdet.config.tree", "jaxdet.experiment"),
        ("jaxdet.evaluation.evaluate", "jaxdet.training.run"),
        ("jaxdet.prediction", "jaxdet.training.run"),
        ("jaxdet.evaluation.inference", "jaxdet.prediction"),
        ("jaxdet.training.loop", "jaxdet.configs.demo"),
        ("jaxdet.configs.demo", "train"),
    ],
)
def test_a_back_edge_is_found(module: str, target: str) -> None:
    assert back_edges({module: {target}}) == [f"{module} -> {target}"]
