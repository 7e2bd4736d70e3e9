"""Public weights by their name: from the cache into a model with its config, its classes and its input convention."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from jaxdet.checkpoints.files.weights import write_safetensors
from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.names.mmdet import to_mmdet
from jaxdet.checkpoints.public import table
from jaxdet.checkpoints.public.table import PublicWeights, coco_categories
from jaxdet.config import load_config, override
from jaxdet.evaluation.evaluate import open_checkpoint
from jaxdet.experiment import Run
from jaxdet.trained import _shapes, load
from jaxdet.training.weights import with_weights

SETTINGS = ("model.num_classes=80", "*.clip_shrink=false", "model.normalization.std=1,1,1", "data.short_side=96",
            "data.long_side=160")  # fmt: skip


@pytest.fixture(scope="module")
def shapes() -> Any:
    return _shapes(override(load_config("configs/mask_rcnn_r18_fpn_small.py"), SETTINGS))


@pytest.fixture(scope="module")
def weights(shapes: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[PublicWeights, Path, Any]:
    """A row of the table and its file, with random numbers under mmdetection's names."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    file = tmp_path_factory.mktemp("files") / "small.pth"
    write_safetensors(file, to_mmdet(variables))
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file = file.rename(file.with_name(f"small-{digest}.pth"))
    url = f"https://download.openmmlab.com/{file.name}"
    return (
        PublicWeights("small", "mask_rcnn_r18_fpn_small", SETTINGS, 30.0, 28.0, f"sha256:{digest}", url),
        file,
        variables,
    )


@pytest.fixture(autouse=True)
def cached(weights: tuple[PublicWeights, Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row, file, _ = weights
    monkeypatch.setattr(table, "public_weights", lambda: {"small": row})
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    shutil.copy(file, tmp_path / "weights")


def test_a_name_is_enough(
    weights: tuple[PublicWeights, Path, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, file, variables = weights
    monkeypatch.chdir(tmp_path)  # configs/ is found wherever the program starts
    for checkpoint, settings in (("small", ["model.dtype=bfloat16"]), (file, [])):
        model = load(checkpoint, overrides=settings)
        assert model.experiment.model.dtype == ("bfloat16" if settings else "float32")
        jax.tree.map(np.testing.assert_array_equal, model.variables, variables)
        assert [(category.id, category.name) for category in model.categories] == list(coco_categories())
        assert model.experiment.model.normalization.std == (1, 1, 1)
        assert (model.experiment.data.short_side, model.experiment.data.long_side) == (96, 160)
    own = override(load_config(Path(__file__).parents[1] / "configs/mask_rcnn_r18_fpn_small.py"), SETTINGS)
    assert load("small", config=own).experiment == own


def test_evaluation_has_the_convention_and_the_ids_of_the_weights(tmp_path: Path) -> None:
    """Data that number COCO's categories otherwise are matched by name."""
    categories = [{"id": 1000 - i, "name": name} for i, name in coco_categories()]
    truth = {"images": [{"id": 1, "file_name": "a.png", "height": 40, "width": 60}], "annotations": [],
             "categories": categories}  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    trained, source = open_checkpoint("small", str(tmp_path), str(tmp_path / "truth.json"))
    assert trained.experiment.model.normalization.std == (1, 1, 1)
    assert trained.categories[0].name == "person"
    assert source.categories[-1].name == "person"


def test_a_run_starts_from_a_name_and_takes_classes_by_theirs(
    weights: tuple[PublicWeights, Path, Any], shapes: Any
) -> None:
    _, _, variables = weights
    model = override(load_config("configs/mask_rcnn_r18_fpn_small.py"), [*SETTINGS, "model.num_classes=2"]).model
    fresh = _shapes(override(load_config("configs/mask_rcnn_r18_fpn_small.py"), [*SETTINGS, "model.num_classes=2"]))
    fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), fresh)
    started, _ = with_weights(model, fresh, Run(init_from="small", init_new_classes=True), ("dog", "snail"))
    mine, theirs = (tree["params"]["heads_0"]["head"]["logits"]["bias"] for tree in (started, variables))
    dog = [name for _, name in coco_categories()].index("dog")
    np.testing.assert_array_equal(mine, [theirs[dog], 0, theirs[80]])
    assert import_weights("small", shapes).category_names[dog] == "dog"
