"""torchvision's RetinaNet: its documented names and shapes, and what its pyramid and head compute, in plain NumPy.

No torchvision needed.
"""

import importlib
import itertools

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.importing import recognise
from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.torchvision import COCO_IDS, RETINANET_SETTINGS, from_torchvision
from jaxdet.checkpoints.tree import flatten
from jaxdet.config import override
from jaxdet.structures import Batch

LABELS = 91
PARAMETERS = 34_014_999  # torchvision's num_params of retinanet_resnet50_fpn, whose batch norms are frozen


def backbone_shapes():
    """The convolutions and batch norms of a ResNet-50: name -> shape."""
    convs = {"conv1": (64, 3, 7, 7)}
    channels = 64
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        width = 32 * 2**stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            convs[f"{name}.conv1"] = (width, channels, 1, 1)
            convs[f"{name}.conv2"] = (width, width, 3, 3)
            convs[f"{name}.conv3"] = (4 * width, width, 1, 1)
            if block == 0:
                convs[f"{name}.downsample.0"] = (4 * width, channels, 1, 1)
            channels = 4 * width
    shapes = {}
    for name, shape in convs.items():
        norm = name[:-1] + "1" if "downsample" in name else name.replace("conv", "bn")
        shapes[f"backbone.body.{name}.weight"] = shape
        shapes |= {f"backbone.body.{norm}.{part}": shape[:1] for part in ("weight", "bias")}
        shapes |= {f"backbone.body.{norm}.running_{part}": shape[:1] for part in ("mean", "var")}
    return shapes


def detector_shapes(new, channels=256, stages=(512, 1024, 2048), labels=LABELS, anchors=9):
    """Pyramid and head under the names of torchvision since 0.13 (``new``) or before."""
    nested = ".0" if new else ""
    convs = {f"backbone.fpn.extra_blocks.p{n}": (channels, channels, 3, 3) for n in (6, 7)}
    for i, inputs in enumerate(stages):
        convs[f"backbone.fpn.inner_blocks.{i}{nested}"] = (channels, inputs, 1, 1)
        convs[f"backbone.fpn.layer_blocks.{i}{nested}"] = (channels, channels, 3, 3)
    for tower, i in itertools.product(("classification_head", "regression_head"), range(4)):
        convs[f"head.{tower}.conv.{f'{i}.0' if new else 2 * i}"] = (channels, channels, 3, 3)
    convs["head.classification_head.cls_logits"] = (anchors * labels, channels, 3, 3)
    convs["head.regression_head.bbox_reg"] = (anchors * 4, channels, 3, 3)
    weights, biases = ({f"{name}.{part}": shape for name, shape in convs.items()} for part in ("weight", "bias"))
    return weights | {name: shape[:1] for name, shape in biases.items()}


def variables_of(model):
    """The variables of a model, as shapes."""
    batch = Batch(
        image=np.zeros((1, 64, 64, 3), np.uint8),
        true_hw=np.full((1, 2), 64, np.float32),
        scale=np.ones((1, 2), np.float32),
        original_hw=np.full((1, 2), 64, np.int32),
        index=np.zeros(1, np.int32),
        valid=np.ones(1, bool),
    )
    return jax.eval_shape(lambda key: model.init(key, batch, method="predict"), jax.random.key(0))


@pytest.fixture(scope="module")
def config():
    return importlib.import_module("jaxdet.configs.retinanet_r50_fpn").get_config()


@pytest.mark.parametrize("new", [True, False])
def test_every_name_fills_the_model(config, new):
    shapes = backbone_shapes() | detector_shapes(new)
    norms = [name for name in shapes if ".bn" in name or "downsample.1" in name]
    assert sum(np.prod(shape) for name, shape in shapes.items() if name not in norms) == PARAMETERS
    state = {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}
    model = override(config.model, RETINANET_SETTINGS)
    assert model == override(config, RETINANET_SETTINGS).model  # as one gives them on the command line
    assert (model.neck.top.source, model.neck.top.relu, model.dense.coder.clip_shrink) == ("pyramid", True, False)
    here = variables_of(model)

    imported = recognise(state, here)

    assert imported.category_ids == COCO_IDS
    assert imported.settings == RETINANET_SETTINGS
    _, report = merge(here, imported.variables)
    assert len(report.loaded) == len(state)
    plain = variables_of(config.model)
    with pytest.raises(ValueError, match="do not fit: 1\n") as caught:
        merge(plain, recognise(state, plain).variables)
    assert "params/neck/top/conv6/kernel: shape (3, 3, 2048, 256) here, (3, 3, 256, 256) there" in str(caught.value)
    assert "set model.neck.top.source=pyramid model.neck.top.relu=true" in str(caught.value)


def test_both_generations_of_names_give_the_same():
    old, new = (detector_shapes(new, 2, (3, 4, 5), labels=3) for new in (False, True))
    rng = np.random.default_rng(0)
    values = [rng.normal(size=shape).astype(np.float32) for shape in old.values()]
    first, second = (from_torchvision(dict(zip(shapes, values, strict=True))) for shapes in (old, new))
    assert first.category_ids == (1, 2)
    assert len(flatten(first.variables)) == len(old)
    assert "unmapped" not in first.variables
    np.testing.assert_equal(first.variables, second.variables)


def test_variances_account_for_the_epsilon_that_its_weights_were_made_without():
    state = {name: np.ones(shape, np.float32) for name, shape in detector_shapes(True, 2, (3, 4, 5), labels=3).items()}
    state["backbone.body.bn1.running_var"] = np.full(3, 0.5, np.float32)
    variables = from_torchvision(state).variables
    np.testing.assert_allclose(variables["batch_stats"]["backbone"]["bn1"]["var"] + 1e-5, 0.5, rtol=1e-6)


def test_what_no_head_here_has_is_named():
    state = {name: np.ones(shape, np.float32) for name, shape in detector_shapes(True, 2, (3, 4, 5), labels=3).items()}
    for rows in ((), (0, 2, 3, 3), (7, 2, 3, 3)):
        with pytest.raises(ValueError, match="with 4 rows for each anchor"):
            from_torchvision(state | {"head.regression_head.bbox_reg.weight": np.ones(rows, np.float32)})
    with pytest.raises(ValueError, match="disagree on the number of classes"):
        from_torchvision(state | {"head.classification_head.cls_logits.bias": np.ones(28, np.float32)})


def convolve(x, state, name, stride=1):
    """torch's Conv2d with padding k // 2 in float64: ``x [C, h, w]`` by ``{name}.weight`` and ``.bias``."""
    weight, bias = (state[f"{name}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    size = weight.shape[-1]
    padded = np.pad(x, ((0, 0), (size // 2, size // 2), (size // 2, size // 2)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))[:, ::stride, ::stride]
    return np.einsum("chwyx,ocyx->ohw", windows, weight) + bias[:, None, None]


def doubled(x, like):
    """The nearest of ``x [C, h, w]`` for each pixel of a map of another size."""
    rows, columns = (np.arange(n) * m // n for n, m in zip(like.shape[1:], x.shape[1:], strict=True))
    return x[:, rows][:, :, columns]


def rendered(state, stages, labels):
    """Logits ``[hwA, labels]`` and deltas ``[hwA, 4]`` of each level, from the maps ``[C, h, w]`` of the backbone."""
    inner = [convolve(x, state, f"backbone.fpn.inner_blocks.{i}.0") for i, x in enumerate(stages)]
    for i in (1, 0):
        inner[i] = inner[i] + doubled(inner[i + 1], inner[i])
    levels = [convolve(x, state, f"backbone.fpn.layer_blocks.{i}.0") for i, x in enumerate(inner)]
    levels.append(convolve(levels[-1], state, "backbone.fpn.extra_blocks.p6", stride=2))
    levels.append(convolve(np.maximum(levels[-1], 0), state, "backbone.fpn.extra_blocks.p7", stride=2))
    outputs = []
    for level in levels:
        maps = []
        for tower, last, size in (("classification_head", "cls_logits", labels), ("regression_head", "bbox_reg", 4)):
            x = level
            for i in range(4):
                x = np.maximum(convolve(x, state, f"head.{tower}.conv.{i}.0"), 0)
            x = convolve(x, state, f"head.{tower}.{last}")
            maps.append(x.reshape(-1, size, *x.shape[1:]).transpose(2, 3, 0, 1).reshape(-1, size))
        outputs.append(maps)
    return outputs


def test_pyramid_and_head_compute_what_torchvisions_do(config):
    """On maps of odd sizes, for three of five labels."""
    channels, labels, keep = 6, 5, (1, 4, 2)
    rng = np.random.default_rng(0)
    shapes = detector_shapes(True, channels, (3, 4, 5), labels=labels)
    state = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    stages = [rng.normal(size=(c, *hw)).astype(np.float32) for c, hw in ((3, (11, 14)), (4, (6, 7)), (5, (3, 4)))]
    settings = (*RETINANET_SETTINGS, f"neck.channels={channels}", f"dense.head.channels={channels}")
    model = override(config.model, settings)
    params = from_torchvision(state, keep=keep).variables["params"]

    maps = {level: x.transpose(1, 2, 0)[None] for level, x in zip((3, 4, 5), stages, strict=True)}
    pyramid = model.neck.apply({"params": params["neck"]}, maps)
    assert sorted(pyramid) == list(model.dense.places.levels)
    for level, (logits, deltas) in zip(sorted(pyramid), rendered(state, stages, labels), strict=True):
        found = model.dense.head.apply({"params": params["dense"]["head"]}, pyramid[level], len(keep))
        scale = np.abs(logits).max()
        np.testing.assert_allclose(found.logits.reshape(-1, 3), logits[:, keep], atol=1e-5 * scale)
        np.testing.assert_allclose(found.deltas.reshape(-1, 4), deltas, atol=1e-5 * np.abs(deltas).max())
