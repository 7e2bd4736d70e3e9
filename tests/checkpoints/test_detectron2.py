"""detectron2's files and names; no detectron2 needed, the names are those of its modules."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdet.checkpoints.files.weights import read_weights
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.detectron2 import (
    ONE_BOX,
    ONE_MASK,
    REQUIRED,
    RETINANET_SETTINGS,
    SETTINGS,
    from_detectron2,
)
from jaxdet.checkpoints.names.table import Imported
from jaxdet.checkpoints.public.table import public_weights
from jaxdet.checkpoints.tree import flatten
from jaxdet.config import load_config, override
from jaxdet.ops.anchors import Anchors
from jaxdet.trained import _config_of, check_settings
from tests.checkpoints.test_torchvision_retinanet import variables_of

#: Fewer channels, and otherwise the models of the zoo.
NARROW = ("model.num_classes=3", "*backbone.width=4", "*neck.channels=8", "*head.channels=8")
BLOCKS = (3, 4, 6, 3)
Shapes = dict[str, tuple[int, ...]]


def conv(name: str, *shape: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": shape} | ({f"{name}.bias": shape[:1]} if bias else {})


def norm_conv(name: str, *shape: int) -> Shapes:
    parts = ("weight", "bias", "running_mean", "running_var")
    return conv(name, *shape, bias=False) | {f"{name}.norm.{part}": shape[:1] for part in parts}


def backbone(levels: tuple[int, ...]) -> Shapes:
    shapes, inputs = norm_conv("backbone.bottom_up.stem.conv1", 4, 3, 7, 7), 4
    for stage, blocks in enumerate(BLOCKS):
        width = 4 * 2**stage
        for block in range(blocks):
            name = f"backbone.bottom_up.res{stage + 2}.{block}"
            shapes |= norm_conv(f"{name}.conv1", width, inputs, 1, 1) | norm_conv(f"{name}.conv2", width, width, 3, 3)
            shapes |= norm_conv(f"{name}.conv3", 4 * width, width, 1, 1)
            shapes |= norm_conv(f"{name}.shortcut", 4 * width, inputs, 1, 1) if block == 0 else {}
            inputs = 4 * width
    for level in levels:
        shapes |= conv(f"backbone.fpn_lateral{level}", 8, 4 * 2**level, 1, 1)
        shapes |= conv(f"backbone.fpn_output{level}", 8, 8, 3, 3)
    return shapes


def mask_rcnn() -> Shapes:
    shapes = backbone((2, 3, 4, 5))
    shapes |= conv("proposal_generator.rpn_head.conv", 8, 8, 3, 3)
    shapes |= conv("proposal_generator.rpn_head.objectness_logits", 3, 8, 1, 1)
    shapes |= conv("proposal_generator.rpn_head.anchor_deltas", 12, 8, 1, 1)
    shapes |= conv("roi_heads.box_head.fc1", 16, 8 * 49) | conv("roi_heads.box_head.fc2", 16, 16)
    shapes |= conv("roi_heads.box_predictor.cls_score", 4, 16) | conv("roi_heads.box_predictor.bbox_pred", 12, 16)
    for i in range(1, 5):
        shapes |= conv(f"roi_heads.mask_head.mask_fcn{i}", 8, 8, 3, 3)
    shapes |= conv("roi_heads.mask_head.deconv", 8, 8, 2, 2) | conv("roi_heads.mask_head.predictor", 3, 8, 1, 1)
    return shapes


def retinanet() -> Shapes:
    shapes = backbone((3, 4, 5))
    shapes |= conv("backbone.top_block.p6", 8, 128, 3, 3) | conv("backbone.top_block.p7", 8, 8, 3, 3)
    for i in (0, 2, 4, 6):
        shapes |= conv(f"head.cls_subnet.{i}", 8, 8, 3, 3) | conv(f"head.bbox_subnet.{i}", 8, 8, 3, 3)
    return shapes | conv("head.cls_score", 9 * 3, 8, 3, 3) | conv("head.bbox_pred", 9 * 4, 8, 3, 3)


def state_of(shapes: Shapes) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


CONSTANTS = {
    "pixel_mean": np.float32([103.53, 116.28, 123.675]).reshape(3, 1, 1),
    "pixel_std": np.ones((3, 1, 1), np.float32),
    "proposal_generator.anchor_generator.cell_anchors.0": np.zeros((3, 4), np.float32),
}


@pytest.mark.parametrize(("shapes", "config", "trunk", "settings"), [
    (mask_rcnn(), "mask_rcnn_r50_fpn", ("*.trunk.channels=16",), SETTINGS),
    (retinanet(), "retinanet_r50_fpn", (), RETINANET_SETTINGS),
], ids=["mask_rcnn", "retinanet"])  # fmt: skip
def test_every_name_fills_the_model(
    shapes: Shapes, config: str, trunk: tuple[str, ...], settings: tuple[str, ...]
) -> None:
    state = state_of(shapes)
    model = override(load_config(f"configs/{config}.py"), [*NARROW, *trunk]).model
    imported = from_detectron2(state | CONSTANTS)
    assert imported.dropped == tuple(CONSTANTS)
    assert imported.settings == settings
    merged, report = merge(variables_of(model), imported.variables)
    assert len(report.loaded) == len(state)
    kernel = merged["params"]["backbone"]["layer3_0"]["downsample_conv"]["kernel"]
    np.testing.assert_array_equal(kernel[0, 0], state["backbone.bottom_up.res4.0.shortcut.weight"][:, :, 0, 0].T)


def test_rows_of_retinanets_anchors_by_their_sides() -> None:
    """detectron2 lists a cell's anchors by size and then by ratio; each goes to ours of the same sides."""
    sizes, ratios = [32 * 2 ** (i / 3) for i in range(3)], (0.5, 1.0, 2.0)
    theirs = [(size / ratio**0.5, size * ratio**0.5) for size in sizes for ratio in ratios]
    ours = Anchors(levels=(3,), scales=tuple(size / 8 for size in sizes)).cell(3)
    bias = np.arange(9 * 2, dtype=np.float32)  # two classes
    weight = np.float32(np.broadcast_to(bias[:, None, None, None], (18, 1, 3, 3)))
    state = {"head.cls_score.weight": weight, "head.cls_score.bias": bias}
    logits = from_detectron2(state).variables["params"]["dense"]["head"]["logits"]
    rows = logits["bias"].reshape(9, 2)
    np.testing.assert_array_equal(logits["kernel"][1, 2, 0], logits["bias"])
    for (x1, y1, x2, y2), row in zip(ours, rows, strict=True):
        anchor, number = divmod(int(row[0]), 2)
        assert (number, row[1]) == (0, row[0] + 1)
        np.testing.assert_allclose((x2 - x1, y2 - y1), theirs[anchor], rtol=1e-5)
    with pytest.raises(ValueError, match=r"cls_score\.bias: expected rows for 9 anchors in a cell, got 5"):
        from_detectron2({"head.cls_score.weight": weight, "head.cls_score.bias": bias[:5]})


def test_a_box_and_a_mask_for_all_classes_are_settings() -> None:
    one = conv("roi_heads.box_predictor.bbox_pred", 4, 16) | conv("roi_heads.mask_head.predictor", 1, 8, 1, 1)
    state = state_of(mask_rcnn() | one)
    imported = from_detectron2(state)
    assert imported.settings == (*SETTINGS, ONE_BOX, ONE_MASK)
    assert imported.required == (*REQUIRED, ONE_BOX, ONE_MASK)
    model = override(load_config("configs/mask_rcnn_r50_fpn.py"), [*NARROW, *imported.settings, "*.trunk.channels=16"])
    assert model.model.heads[0].head.class_agnostic
    merged, report = merge(variables_of(model.model), imported.variables)
    assert len(report.loaded) == len(state)
    logits = merged["params"]["masks"]["heads_0"]["head"]["logits"]
    np.testing.assert_array_equal(logits["kernel"][0, 0], state["roi_heads.mask_head.predictor.weight"][:, :, 0, 0].T)
    np.testing.assert_array_equal(logits["bias"], state["roi_heads.mask_head.predictor.bias"])
    check_settings(model.model, imported, "weights")
    plain = load_config("configs/mask_rcnn_r50_fpn.py").model
    with pytest.raises(
        ValueError, match=r"of another network than the model, which needs .*heads\.\*\.class_agnostic=true'$"
    ):
        check_settings(override(plain, SETTINGS), imported, "weights")
    # Each is a setting of its own.
    boxes = conv("roi_heads.box_predictor.bbox_pred", 4, 16)
    assert from_detectron2(state_of(mask_rcnn() | boxes)).settings == (*SETTINGS, ONE_BOX)
    # With a single class there is nothing to tell apart.
    single = conv("roi_heads.box_predictor.cls_score", 2, 16)
    assert from_detectron2(state_of(mask_rcnn() | one | single)).settings == SETTINGS


def test_names_of_the_zoo_have_the_settings_that_its_weights_need(caplog: pytest.LogCaptureFixture) -> None:
    """And a config as it is has another place of strides and other colours, which is an error and no warning."""
    rows = [row for row in public_weights().values() if row.source.name == "detectron2"]
    assert len(rows) == 9
    for row in rows:
        settings = RETINANET_SETTINGS if "retinanet" in row.name else SETTINGS
        needed = Imported({"params": {}}, settings=settings, required=REQUIRED)
        model = _config_of(row).model
        check_settings(model, needed, row.name)
        assert model.backbone.depth == (101 if "R_101" in row.name else 50)
        with pytest.raises(
            ValueError, match=r"of another network than the model, which needs '\*backbone\.style=caffe'"
        ):
            check_settings(load_config(f"configs/{row.config}.py").model, needed, row.name)
    assert not caplog.records


def test_other_colours_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"pixel_std: expected \(1\.0, 1\.0, 1\.0\), of colours in the order BGR, got \[57"
    ):
        from_detectron2({"pixel_std": np.float32([57.375, 57.12, 58.395])})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("wrapped", [True, False])
def test_pickled_arrays_are_read(tmp_path: Path, protocol: int, wrapped: bool) -> None:
    state = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        "empty": np.zeros((0, 3), np.float32),
        "one": np.array(7, np.int64),
    }
    content: Any = {"model": state, "__author__": "Detectron2 Model Zoo"} if wrapped else state
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = read_weights(tmp_path / "a.pkl")
    assert list(found) == list(state)
    for name, value in state.items():
        np.testing.assert_array_equal(found[name], value)
        assert found[name].dtype == value.dtype


class Runs:
    """Asks for a function when it is unpickled."""

    def __reduce__(self) -> Any:
        return (print, ("run",))


def changed(**parts: Any) -> bytes:
    """An array's pickle with other parts of its state."""
    state = {"shape": (2,), "dtype": np.dtype("f4"), "data": b"12345678"} | parts
    reconstruct, arguments, _ = np.zeros(2, np.float32).__reduce__()

    class Crafted:
        def __reduce__(self) -> Any:
            return (reconstruct, arguments, (1, state["shape"], state["dtype"], False, state["data"]))

    return pickle.dumps({"a": Crafted()}, 2)


@pytest.mark.parametrize(("content", "message"), [
    (pickle.dumps({"a": Runs()}), "wants to call builtins.print, which is refused"),
    (pickle.dumps({"a": np.array([Runs()], object)}, 2), "expected one of numbers|wants to call builtins.print"),
    (pickle.dumps({"a": np.zeros(2, ">f4")}, 2), "little-endian"),
    (pickle.dumps({"a": np.zeros(2, "f4,i4")}, 2), "expected one of numbers"),
    (changed(shape=(10**9,)), r"shape \(1000000000,\) and float32 with 8 bytes"),
    (changed(shape=(-1, -2)), "an array of shape"),
    (changed(shape=3), "an array of shape"),
    (changed(data="12345678"), "an array of ArrayDtype, str"),
    (changed(dtype="f4"), "an array of str, bytes"),
    (pickle.dumps({"a": np.zeros(2, np.float32)}, 2) + b"x", "more after its pickle"),
    (pickle.dumps({"a": np.zeros(2, np.float32)}, 2)[:-9], "broken pickle|pickle"),
    (pickle.dumps([np.zeros(2, np.float32)], 2), "not one that torch.save wrote"),
    (pickle.dumps({"a": "text"}, 2), "not arrays"),
])  # fmt: skip
def test_other_pickles_are_refused(
    tmp_path: Path, content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_weights(tmp_path / "a.pkl")
    assert "a.pkl" in str(caught.value)
    assert capsys.readouterr().out == ""


def test_what_is_read_is_flat() -> None:
    assert len(flatten(from_detectron2(state_of(conv("backbone.fpn_lateral2", 2, 3, 1, 1))).variables)) == 2
