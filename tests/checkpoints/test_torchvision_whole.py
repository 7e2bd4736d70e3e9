"""Whole models against torchvision itself, from an image to detections and masks; skipped where it is not installed.

torchvision's own Python code runs; its compiled suppression and RoIAlign are written out here, so that no operators are
needed.  Models are its classes with fewer channels and random weights.
"""

import functools
import importlib.util
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.torchvision import from_torchvision
from jaxdet.config import load_config, override
from jaxdet.data import Data, single_batch
from jaxdet.evaluation.inference import image_of, results_of
from tests.checkpoints.test_torchvision_retinanet import variables_of

torch = pytest.importorskip("torch")

# torch uses parts of itself that it has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LABELS, SIZE = 6, (128, 256)
OPERATORS = (
    *("nms", "qnms", "deform_conv2d", "_deform_conv2d_backward", "qroi_align", "roi_align", "_roi_align_backward"),
    *("roi_pool", "_roi_pool_backward", "ps_roi_align", "_ps_roi_align_backward", "ps_roi_pool"),
    "_ps_roi_pool_backward",
)
KEPT: list[Any] = []
"""Names of operators end with the object that has defined them."""
NARROW = ("model.num_classes=5", "model.backbone.depth=18", "*neck.channels=32")


def nms(boxes: Any, scores: Any, threshold: float) -> Any:
    """The sequential rule."""
    kept: list[int] = []
    overlaps = torchvision().ops.boxes.box_iou(boxes, boxes)
    for i in torch.argsort(scores, descending=True, stable=True).tolist():
        if all(overlaps[i, j] <= threshold for j in kept):
            kept.append(i)
    return torch.tensor(kept, dtype=torch.int64)


def roi_align(maps: Any, rois: Any, output_size: Any, spatial_scale: float, sampling_ratio: int) -> Any:
    """As the compiled operator has it without ``aligned``; the one in Python knows no samples outside of the map."""
    crops = []
    for image, *box in rois.tolist():
        # [2 bins, pixels] for rows and for columns: which pixels each sample is a mean of.
        axes = []
        for axis, (low, high) in enumerate(((box[1], box[3]), (box[0], box[2]))):
            low, size, number = low * spatial_scale, max((high - low) * spatial_scale, 1.0), maps.shape[2 + axis]
            weights = torch.zeros(output_size[axis] * sampling_ratio, number)
            for k in range(len(weights)):
                place = low + (k + 0.5) * size / len(weights)
                if -1.0 <= place <= number:
                    place = min(max(place, 0.0), number - 1.0)
                    weights[k, int(place)] += 1 - place % 1
                    weights[k, min(int(place) + 1, number - 1)] += place % 1
            axes.append(weights)
        samples = axes[0] @ maps[int(image)] @ axes[1].T
        crops.append(torch.nn.functional.avg_pool2d(samples, sampling_ratio))
    return torch.stack(crops) if crops else maps.new_zeros((0, maps.shape[1], *output_size))


@functools.cache
def torchvision() -> Any:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    try:
        torch.ops.load_library(str(Path(spec.origin).parent / "_C.so"))
    except OSError:  # compiled for another machine: that its operators have names is enough to import it
        library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            library.define(f"{name}(Tensor a) -> Tensor")
        KEPT.append(library)
    module = importlib.import_module("torchvision")
    importlib.import_module("torchvision.ops.boxes").nms = nms
    importlib.import_module("torchvision.ops.poolers").roi_align = roi_align
    return module


def noisy(model: Any) -> Any:
    """A model with random weights, whose heads say something, and statistics that are not 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.dtype.is_floating_point or "anchor" in name:
                continue
            noise = torch.rand(value.shape, generator=generator) - 0.5
            if value.ndim > 1:
                louder = 6.0 if any(part in name for part in ("cls_", "bbox_", "logits")) else 1.0
                value.copy_(louder * noise * (6.0 / np.prod(value.shape[1:])) ** 0.5)
            else:
                scale = name.endswith("running_var") or (name.endswith("weight") and value.ndim == 1)
                value.copy_(0.2 * noise + (1.0 if scale else 0.0))
    return model.eval()


def backbone(tv: Any, norm: Any, first: int, extra: Any, pyramid_norm: Any) -> Any:
    body = tv.models.resnet18(norm_layer=norm)
    layers = {f"layer{i}": str(i - first) for i in range(first, 5)}
    widths = [32 * 2**i for i in range(first, 5)]
    module = importlib.import_module("torchvision.models.detection.backbone_utils")
    return module.BackboneWithFPN(body, layers, widths, 32, extra, pyramid_norm)


def two_stage(generation: int) -> Any:
    tv = torchvision()
    names = ("faster_rcnn", "mask_rcnn", "rpn")
    faster, mask, rpn = (importlib.import_module(f"torchvision.models.detection.{name}") for name in names)
    norm = torch.nn.BatchNorm2d if generation == 2 else None
    body = backbone(tv, torch.nn.BatchNorm2d, 1, tv.ops.feature_pyramid_network.LastLevelMaxPool(), norm)
    anchors = rpn.AnchorGenerator(tuple((s,) for s in (32, 64, 128, 256, 512)), ((0.5, 1.0, 2.0),) * 5)
    if generation == 2:
        box_head = faster.FastRCNNConvFCHead((32, 7, 7), [32] * 4, [48], norm_layer=norm)
    else:
        box_head = faster.TwoMLPHead(32 * 49, 48)
    model = mask.MaskRCNN(
        body,
        rpn_anchor_generator=anchors,
        rpn_head=rpn.RPNHead(32, 3, conv_depth=generation),
        box_head=box_head,
        box_predictor=faster.FastRCNNPredictor(48, LABELS),
        mask_head=mask.MaskRCNNHeads(32, [32] * 4, 1, norm_layer=norm),
        mask_predictor=mask.MaskRCNNPredictor(32, 32, LABELS),
        min_size=SIZE[0],
        max_size=SIZE[1],
        rpn_pre_nms_top_n_test=60,
        rpn_post_nms_top_n_test=40,
        box_detections_per_img=20,
    )
    noisy(model)
    with torch.no_grad():  # so that masks have both, pixels and holes
        model.roi_heads.mask_predictor.mask_fcn_logits.bias += 0.3
    return model


def one_stage(generation: int) -> Any:
    tv = torchvision()
    retina = importlib.import_module("torchvision.models.detection.retinanet")
    # The first generation makes P6 from P5, which has as many channels as it, the second from C5.
    extra = tv.ops.feature_pyramid_network.LastLevelP6P7(32 if generation == 1 else 512, 32)
    norm = functools.partial(torch.nn.GroupNorm, 32) if generation == 2 else None
    body = backbone(tv, torch.nn.BatchNorm2d, 2, extra, None)
    head = retina.RetinaNetHead(32, 9, LABELS, norm_layer=norm)
    model = retina.RetinaNet(
        body,
        LABELS,
        min_size=SIZE[0],
        max_size=SIZE[1],
        anchor_generator=retina._default_anchorgen(),
        head=head,
        topk_candidates=60,
        detections_per_img=25,
    )
    noisy(model)
    with torch.no_grad():  # training leaves label 0 unlikely everywhere
        model.head.classification_head.cls_logits.bias.view(9, LABELS)[:, 0] = -1e3
    return model


CASES = {
    "mask_rcnn": (two_stage, 1, "mask_rcnn_r50_fpn", ("*.trunk.channels=48",)),
    "mask_rcnn_v2": (two_stage, 2, "mask_rcnn_r50_fpn_v2", ("*.trunk.channels=32", "*.trunk.features=48")),
    "retinanet": (one_stage, 1, "retinanet_r50_fpn", ()),
    "retinanet_v2": (one_stage, 2, "retinanet_r50_fpn", ()),
}
FEW = {
    two_stage: ("*rpn.head.channels=32", "*rpn.test.per_level=60", "*rpn.test.suppression.max_detections=40",
                "model.suppression.max_detections=20", "*parts.0.heads.0.head.channels=32"),
    one_stage: ("*dense.head.channels=32", "*dense.test.per_level=60", "*dense.test.suppression.max_detections=25"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_detections_are_torchvisions(case: str) -> None:
    """On an image whose sides the strides of all levels divide, so that anchors are equally far apart."""
    make, generation, config, narrow = CASES[case]
    theirs = make(generation)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    image = image.reshape(16, 8, 32, 8, 3)[:, :1, :, :1].repeat(8, 1).repeat(8, 3).reshape(*SIZE, 3)
    with torch.no_grad():
        expected = theirs([torch.from_numpy(image.transpose(2, 0, 1).copy()).float() / 255])[0]
    # Boxes that lie outside of the image: the one-stage models here leave them out.
    extent = expected["boxes"][:, 2:] > expected["boxes"][:, :2]
    expected = {name: value[extent.all(1)].numpy() for name, value in expected.items()}

    # Models of one's own have torch's epsilon, whatever the generation.
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    imported = from_torchvision(state, batch_norm_eps=1e-5)
    settings = [*imported.settings, *NARROW, *narrow, *FEW[make]]
    experiment = override(load_config(f"configs/{config}.py"), settings)
    variables, _ = merge(variables_of(experiment.model), imported.variables)
    batch = single_batch(image, Data(short_side=SIZE[0], long_side=SIZE[1]))
    found = jax.jit(lambda v, b: experiment.model.apply(v, b, method="predict"))(variables, batch)
    found = image_of(jax.tree.map(np.asarray, found), 0)

    number = len(expected["scores"])
    assert 10 < number <= found.valid.sum()
    np.testing.assert_allclose(found.scores[:number], expected["scores"], atol=2e-5)
    np.testing.assert_array_equal(found.labels[:number] + 1, expected["labels"])
    np.testing.assert_allclose(found.boxes[:number], expected["boxes"], rtol=2e-5, atol=2e-3)
    if make is two_stage:
        from pycocotools import mask as coco_mask

        results = results_of(image_of(batch, 0), found, 0, range(1, LABELS))
        painted = np.stack([coco_mask.decode(result["segmentation"]) for result in results])
        wanted = expected["masks"][:, 0] > 0.5
        assert wanted.any((1, 2)).all()
        assert len(painted) == number
        assert (painted != wanted).mean() < 1e-4, ((painted != wanted).sum((1, 2)), wanted.sum((1, 2)))
