"""Models of some thousand parameters on images of 64 pixels, and batches for them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdet.models.dense import DenseDetector, Selection, rpn
from jaxdet.models.detector import Detector
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.grid import GridBoxes
from jaxdet.models.parts.instances import InstanceMasks, PixelClasses
from jaxdet.models.parts.masks import MaskPrediction
from jaxdet.models.parts.refine import Refine
from jaxdet.models.roi.heads import BoxBranch, MaskBranch
from jaxdet.models.roi.schedule import Stage
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.backbones.resnet import ResNet
from jaxdet.nn.extractors.single_level import SingleLevel
from jaxdet.nn.heads.box import BoxHead, ClassHead
from jaxdet.nn.heads.codes import Codes
from jaxdet.nn.heads.dense import FCOSHead, RetinaHead, RPNHead, YOLACTHead
from jaxdet.nn.heads.grid import GridHead
from jaxdet.nn.heads.mask import FCN
from jaxdet.nn.heads.pixels import PixelBranch, PixelStream, Protonet
from jaxdet.nn.heads.trunk import FC2
from jaxdet.nn.necks import FPN, StridedConvs
from jaxdet.ops.anchors import Anchors, Points
from jaxdet.ops.boxes import DistanceCoder
from jaxdet.ops.instances import Correlation, CroppedEntropy, CutEntropy, Dice, DynamicConvs, Prototypes
from jaxdet.ops.losses import CrossEntropy, Focal, GIoU, SmoothL1
from jaxdet.ops.matching import CentreSampling, Matcher
from jaxdet.ops.sampling import HardNegatives, Sampler
from jaxdet.ops.suppression import NMS, FastNMS
from jaxdet.structures import Batch, Masks, Targets

CLASSES = 3
SLOTS = 5
"""Ground-truth slots of an image, of which at most 3 are filled."""
FIRST = Sampler(number=16, positive_fraction=0.5, order="first")


class Pooled(nn.Module):
    """A backbone without parameters: the mean colours of the cells of levels 2 to 6.  It costs next to nothing."""

    def __call__(self, image: jax.Array) -> dict[int, jax.Array]:
        return {level: nn.avg_pool(image, (1 << level,) * 2, (1 << level,) * 2) for level in range(2, 7)}

    def is_frozen(self, path: tuple[str, ...]) -> bool:
        return False


class Same(nn.Module):
    """A neck that gives what it gets."""

    def __call__(self, levels: dict[int, jax.Array]) -> dict[int, jax.Array]:
        return levels


def make_box_branch(**changes: Any) -> BoxBranch:
    settings = {"extractor": SingleLevel(size=3, finest=14.0), "head": BoxHead(FC2(channels=8))}
    return BoxBranch(**settings | changes)


def make_mask_branch(**changes: Any) -> MaskBranch:
    settings = {"extractor": SingleLevel(size=6, finest=14.0), "head": FCN(channels=8, convs=1)}
    return MaskBranch(**settings | changes)


def make_refine(linked: bool = True, **changes: Any) -> Refine:
    """MR R-CNN's step, in the place of Mask R-CNN's masks."""
    mask = make_mask_branch(head=FCN(channels=8, convs=1, linked=linked))
    settings = {"heads": (make_mask_branch(),), "refine_box": make_box_branch(), "refine_mask": mask}
    return Refine(**settings | changes)


def make_model(**changes: Any) -> TwoStage:
    """Mask R-CNN."""
    settings = {
        "num_classes": CLASSES,
        "backbone": ResNet(depth=18, width=8),
        "neck": FPN(channels=8),
        "rpn": rpn(RPNHead(channels=8), anchors=Anchors(scales=(4.0,)), sampler=FIRST, train=(40, 30), test=(40, 20)),
        "heads": (make_box_branch(),),
        "stages": (Stage(sampler=FIRST),),
        "parts": (MaskPrediction((make_mask_branch(),)),),
    }
    return TwoStage(**settings | changes)


def as_they_are(maps: jax.Array) -> Codes | None:
    """Codes of a place in each cell that are what the maps ``[B, h, w, c]`` hold; none of maps without channels."""
    channels = maps.shape[-1]
    return Codes(maps, jnp.eye(channels)[None, None], jnp.zeros(channels)) if channels else None


def make_grid(**changes: Any) -> GridBoxes:
    """Four points, whose heat maps have 12 x 12 cells."""
    head = GridHead(points=2, channels=4, convs=1, groups=4, fusions=1)
    return GridBoxes(**{"extractor": SingleLevel(size=6, finest=14.0), "head": head, "order": "first"} | changes)


def make_grid_rcnn(**changes: Any) -> TwoStage:
    """Classes from the box head, boxes from grids."""
    branch = make_box_branch(head=ClassHead(FC2(channels=8)))
    return make_model(**{"heads": (branch,), "parts": (make_grid(),)} | changes)


def make_dense(**changes: Any) -> DenseDetector:
    """RetinaNet's, with three anchors in a cell."""
    settings = {
        "head": RetinaHead(anchors=3, channels=8, convs=1),
        "places": Anchors(levels=(3, 4, 5), scales=(3.0,)),
        "matcher": Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0),
        "class_loss": Focal(),
        "box_loss": SmoothL1(0.1),
        "test": Selection(per_level=40, suppression=NMS(score_threshold=0.001, max_detections=20)),
    }
    return DenseDetector(**settings | changes)


def make_one_stage(**changes: Any) -> OneStage:
    """RetinaNet."""
    settings = {
        "num_classes": CLASSES,
        "backbone": ResNet(depth=18, width=8),
        "neck": FPN(channels=8, lowest=3, top=StridedConvs()),
        "dense": make_dense(),
    }
    return OneStage(**settings | changes)


def make_rdsnet(**changes: Any) -> OneStage:
    """Anchors in the old convention, codes that are compared with those of pixels; masks are logits."""
    maker = Correlation(size=4)
    head = RetinaHead(anchors=3, channels=8, convs=1, groups=2, code=maker.code)
    masks = InstanceMasks(PixelStream(channels=8, code=4, groups=2), maker, CroppedEntropy(), limit=6, order="first")
    dense = make_dense(head=head, places=Anchors(levels=(3, 4, 5), scales=(3.0,), legacy=True))
    return make_one_stage(**{"backbone": Pooled(), "neck": Same(), "dense": dense, "parts": (masks,)} | changes)


def make_condinst(**changes: Any) -> OneStage:
    """Points with a centerness, codes that are small networks."""
    maker = DynamicConvs(channels=2, inputs=3)
    dense = make_dense(
        head=FCOSHead(channels=8, convs=1, groups=2, code=maker.code),
        places=Points(levels=(3, 4, 5)),
        coder=DistanceCoder(),
        matcher=CentreSampling(),
        box_loss=GIoU(),
        least_positives=0,
        test=Selection(40, NMS(score_threshold=None, max_detections=20), pairs_above=0.001),
    )
    masks = InstanceMasks(PixelBranch(channels=8, code=3, convs=1), maker, Dice(), limit=6, order="first")
    return make_one_stage(**{"backbone": Pooled(), "neck": Same(), "dense": dense, "parts": (masks,)} | changes)


def make_yolact(**changes: Any) -> OneStage:
    """Softmax scores, the hardest negatives, prototypes, and a loss of pixels."""
    dense = make_dense(
        head=YOLACTHead(anchors=3, channels=8, code=4),
        places=Anchors(levels=(3, 4, 5), scales=(3.0,), offset=0.5, even=True),
        matcher=Matcher(positive_iou=0.5, negative_iou=0.4, min_positive_iou=0.0, ties=False),
        mining=HardNegatives(3.0),
        class_loss=CrossEntropy(),
        box_weight=1.5,
        test=Selection(40, FastNMS(score_threshold=0.001, max_detections=20)),
    )
    masks = InstanceMasks(Protonet(channels=8, code=4, convs=1), Prototypes(4), CutEntropy(), limit=6, order="first")
    parts = masks, PixelClasses()
    return make_one_stage(**{"backbone": Pooled(), "neck": Same(), "dense": dense, "parts": parts} | changes)


def make_targets(seed: int, kind: str = "objects", fill: float = 0.0, slots: int = SLOTS) -> Targets:
    """One image's ground truth: three ``objects``, three ``crowd`` regions, or ``nothing``; the rest is ``fill``."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 30, (slots, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 30, (slots, 2))], 1).astype(np.float32)
    valid = np.arange(slots) < (0 if kind == "nothing" else 3)
    spare, whole = ~valid, 0 if np.isnan(fill) else int(fill)
    boxes[spare] = fill
    return Targets(
        boxes=boxes,
        labels=np.where(valid, np.arange(slots) % CLASSES, whole).astype(np.int32),
        masks=Masks(
            np.where(spare[:, None, None], whole, rng.integers(0, 2, (slots, 12, 12))).astype(np.uint8), boxes.copy()
        ),
        crowd=np.full(slots, kind == "crowd"),
        valid=valid,
    )


def make_batch(targets: list[Targets], seed: int = 0, canvas: tuple[int, int] = (64, 64)) -> Batch:
    """An image of noise, 60 x 56 pixels, for each of the targets; the same ones give the same image."""
    number = len(targets)
    image = np.zeros((number, *canvas, 3), np.uint8)
    for i in range(number):
        noise = np.random.default_rng(seed + i).integers(0, 256, (15, 14, 3))
        image[i, :60, :56] = noise.repeat(4, 0).repeat(4, 1)
    return Batch(
        image=image,
        true_hw=np.tile(np.float32([60, 56]), (number, 1)),
        scale=np.ones((number, 2), np.float32),
        original_hw=np.tile([60, 56], (number, 1)).astype(np.int32),
        index=np.arange(number, dtype=np.int32),
        valid=np.ones(number, bool),
        targets=jax.tree.map(lambda *leaves: np.stack(leaves), *targets),
    )


def initialize(model: Detector, batch: Batch) -> Any:
    """Variables with which the heads say something: the reference's initial outputs are all but 0."""

    def louder(path: Any, leaf: jax.Array) -> jax.Array:
        names = [entry.key for entry in path]
        factor = 30 if {"logits", "deltas", "codes"} & set(names) and names[-1] == "kernel" else 1
        return factor * leaf + 0.01 * jnp.sin(jnp.arange(float(leaf.size))).reshape(leaf.shape)

    @jax.jit
    def run() -> Any:
        fresh = model.init(jax.random.key(0), batch, method="predict")
        return {**fresh, "params": jax.tree_util.tree_map_with_path(louder, fresh["params"])}

    return run()
