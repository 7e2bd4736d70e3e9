"""Runs a model of the project on torch-named weights and torch-layout inputs, for comparison with other code.

``run`` and ``sgd`` take a model name, a torch state dict and the arrays of ``inputs`` and return named arrays in
torch layout.  Nothing here depends on the values, sizes or numbers of what is given.

Two-stage models are run in two pieces, so that the many models with the same backbone, neck and RPN compile, and for
the same weights run, these once: `Body` makes features and proposals, and for given gradients of the features the
gradients of its parameters; the model itself does the rest on given features.
"""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from pycocotools import mask as coco_mask

from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.mmdet import from_mmdet, mmdet_names
from jaxdet.checkpoints.tree import flatten, unflatten
from jaxdet.config import load_config
from jaxdet.evaluation.paste import paste_masks
from jaxdet.models.dense import DenseDetector
from jaxdet.models.features import Normalization, extract_features, feature_intermediates, semantic_losses
from jaxdet.models.one_stage import OneStage
from jaxdet.models.parts.boundaries import PUBLISHED
from jaxdet.models.parts.grid import GridBoxes
from jaxdet.models.parts.instances import InstanceMasks
from jaxdet.models.roi.boxes import pad
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.heads.semantic import semantic_crops
from jaxdet.ops.boxes import DistanceCoder
from jaxdet.ops.grids import displaced
from jaxdet.ops.instances import Correlation, DynamicConvs, Prototypes
from jaxdet.ops.losses import SmoothL1
from jaxdet.structures import Batch, Detections, Features, Masks, Proposals, Targets
from tests.parity.operators import sa_roi_align

__all__ = ["CONFIGS", "run", "run_refine", "sa_roi_align", "sgd"]

Arrays = dict[str, Any]

CONFIGS = {
    "mask_rcnn_r50": "mask_rcnn_r50_fpn.py",
    "faster_rcnn_r50": "faster_rcnn_r50_fpn.py",
    "cascade_mask_rcnn_r50": "cascade_mask_rcnn_r50_fpn.py",
    "htc_r50": "htc_r50_fpn.py",
    "ms_rcnn_r50": "ms_rcnn_r50_fpn.py",
    "groie1_faster": "groie_faster_rcnn_r50_fpn.py",
    "groie1_mask": "groie_mask_rcnn_r50_fpn.py",
    "groie2_faster": "groie_sbr_faster_rcnn_r50_fpn.py",
    "r3_naive": "r3_cnn.py",
    "r3_deeper": "tables/sbr_table2.py:row_5",
    "r3_fcc7x7": "tables/sbr_table6.py:row_3",
    "r3_fcc_rect": "tables/sbr_table6.py:row_4",
    "r3_fcc7x7_nlb": "tables/sbr_table6.py:row_5",
    "r3_rect_nlb_nomaskloop": "tables/sbr_table6.py:row_6",
    "r3_fcc7x7_nlb_nla": "tables/sbr_table6.py:row_7",
    "r3_4l2h_rect_nlb": "tables/sbr_table6.py:row_12",
    "r3_rect_nlb": "tables/sbr_table7.py:row_2",
    "r3_maskiou_orig": "tables/sbr_table7.py:row_3",
    "r3_maskiou_fcc7x7": "tables/sbr_table7.py:row_4",
    "r3_maskiou_rect": "tables/sbr_table7.py:row_5",
    "r3_advanced": "tables/sbr_table7.py:row_7_square",
    "sbr_cnn": "sbr_cnn.py",
    "retinanet_r50": "retinanet_r50_fpn.py",
    "htc_semantic_r50": "htc_semantic_r50_fpn.py",
    "rdsnet_r50": "rdsnet_r50_fpn.py",
    "rdsnet_refine_r50": "rdsnet_refine_r50_fpn.py",
    "condinst_r50": "condinst_r50_fpn.py",
    "yolact_r50": "yolact_r50_fpn.py",
    "gcnet_r4": "gcnet_mask_rcnn_r50_fpn.py",
    "sbr_cnn_gcnet": "tables/sbr_table11.py:row_7",
    "dcn_c3c5": "dcn_mask_rcnn_r50_fpn.py",
    "mdcn_c3c5": "dcnv2_mask_rcnn_r50_fpn.py",
    "grid_rcnn_r50": "grid_rcnn_r50_fpn.py",
    "sbr_cnn_dcn": "tables/sbr_table11.py:row_10",
    "mask_rcnn_x101_32x8d": "mask_rcnn_x101_32x8d_fpn.py",
    "mask_rcnn_x101_32x4d": "mask_rcnn_x101_32x4d_fpn.py",
}
"""Reference model -> config of the project."""

REFINED = {"mr_rcnn_r50": "mr_rcnn_r50_fpn.py"}
"""Likewise, of models that `run_refine` runs."""


def load_model(name: str, roi_samples: int = 128) -> Any:
    """The model of a config with samplers that take the first boxes, not random ones, and raw pixels as they are."""
    configs = CONFIGS | REFINED
    if name not in configs:
        raise ValueError(f"no config for {name}; there are {sorted(configs)}")
    model: Any = load_config(f"{Path(__file__).parents[2]}/configs/{configs[name]}").model

    def first(sampler: Any, **changes: Any) -> Any:
        return dataclasses.replace(sampler, order="first", **changes)

    model = model.clone(normalization=Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    if isinstance(model, OneStage):
        return model.clone(
            parts=tuple(p.clone(order="first") if isinstance(p, InstanceMasks) else p for p in model.parts)
        )
    stages = tuple(dataclasses.replace(s, sampler=first(s.sampler, number=roi_samples)) for s in model.stages)
    parts = tuple(
        p.clone(order="first", jitter=TorchJitter(p.jitter.amplitude)) if isinstance(p, GridBoxes) else p
        for p in model.parts
    )
    return model.clone(rpn=model.rpn.clone(sampler=first(model.rpn.sampler)), stages=stages, parts=parts)


@dataclasses.dataclass(frozen=True)
class TorchJitter:
    """`Jitter` by the numbers that torch draws after ``manual_seed(0)``, whatever the key.

    torch has NumPy's Mersenne Twister, and makes a float32 of the lower 24 of 32 bits.
    """

    amplitude: float

    def __call__(self, boxes: jax.Array, hw: jax.Array, key: jax.Array) -> jax.Array:
        bits = np.random.RandomState(0).randint(0, 2**32, size=boxes.shape, dtype=np.uint32) & 0xFFFFFF
        shares = (bits * np.float64(2.0**-24)).astype(np.float32)
        return displaced(boxes, jnp.asarray(2 * self.amplitude * shares - self.amplitude), hw)


def load_variables(model: Any, state_dict: Arrays, batch: Batch) -> Arrays:
    """The weights through the project's importer; every leaf must be there and fit.

    What the state dict has beyond that stays away.
    """
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, method="predict"))
    # The released code has the weights of its refinement in the program, and not among those of a checkpoint.
    weights, bias = PUBLISHED
    state_dict = {"mbrm.weight": np.float32([[weights]]), "mbrm.bias": np.float32([bias])} | state_dict
    if "boundaries" not in like["params"]:
        state_dict = {name: value for name, value in state_dict.items() if not name.startswith("mbrm.")}
    empty = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    found = from_mmdet(state_dict, like)
    variables, _ = merge(empty, found, skip=("^unmapped/",) if "unmapped" in found else ())
    return jax.tree.map(jnp.asarray, variables)


def make_batch(inputs: Arrays) -> Batch:
    """One image with exact, whole-canvas masks, and an empty ground-truth slot where there is no object."""
    image = np.transpose(inputs["image"], (0, 2, 3, 1)).astype(np.float32)
    _, height, width, _ = image.shape
    real = len(inputs["gt_boxes"])
    number = max(real, 1)

    def slots(name: str, dtype: Any) -> np.ndarray:
        array = np.asarray(inputs[name], dtype)
        return np.concatenate([array, np.zeros((number - real, *array.shape[1:]), dtype)])[None]

    targets = Targets(
        boxes=slots("gt_boxes", np.float32),
        labels=slots("gt_labels", np.int32),
        masks=Masks(
            slots("gt_masks", np.uint8), frames=np.tile(np.array([0, 0, width, height], np.float32), (1, number, 1))
        ),
        crowd=np.zeros((1, number), bool),
        valid=np.arange(number)[None] < real,
        semantic=np.asarray(inputs["gt_semantic_seg_s8"])[None] if "gt_semantic_seg_s8" in inputs else None,
    )
    scale = np.asarray(inputs["scale_factor"], np.float32)
    return Batch(
        image=image,
        true_hw=np.asarray(inputs["img_shape"][:2], np.float32)[None],
        scale=scale[None, 1::-1],
        original_hw=np.asarray(inputs["ori_shape"][:2], np.int32)[None],
        index=np.zeros(1, np.int32),
        valid=np.ones(1, bool),
        targets=targets,
    )


class Body(nn.Module):
    """What comes before the stages of a two-stage model; its parameters lie where the model's do."""

    backbone: nn.Module
    neck: nn.Module
    rpn: DenseDetector
    semantic: nn.Module | None
    normalization: Normalization

    def named(self, batch: Batch) -> tuple[Features, Arrays]:
        """Features, and intermediates by the names of `TwoStage.intermediates`."""
        features = self.features(batch)
        named = feature_intermediates(
            batch, self.backbone, self.neck, normalization=self.normalization, dtype="float32"
        )
        outputs = self.rpn(features, batch.true_hw)
        proposals = self.rpn.proposals(outputs, batch.true_hw, self.rpn.test)
        return features, named | self.rpn.intermediates(outputs, "rpn") | {"proposals": proposals}

    def features(self, batch: Batch) -> Features:
        return extract_features(
            batch,
            self.backbone,
            self.neck,
            normalization=self.normalization,
            dtype="float32",
            semantic=self.semantic,
        )

    def losses(self, batch: Batch, wanted: Features) -> tuple[jax.Array, Arrays]:
        """The losses of RPN and semantic branch, and a number whose gradient is that of these and of the stages.

        ``wanted`` is the gradient of the stages' losses with respect to the features.
        """
        features = self.features(batch)
        outputs = self.rpn(features, batch.true_hw)
        own, _ = self.rpn.losses(outputs, batch.true_hw, batch.targets, jax.random.key(0))
        terms = {f"loss_rpn_{name.removeprefix('loss_')}": value for name, value in own.items()}
        if self.semantic is not None:
            terms |= semantic_losses(features.semantic_logits, batch.targets, self.semantic.weight)
        products = jax.tree.map(lambda x, y: (x * y).sum(), features, wanted)
        return sum(terms.values()) + sum(jax.tree.leaves(products)), terms

    @staticmethod
    def of(net: TwoStage, *, training: bool) -> "Body":
        """The body of a model; without training what the RPN does there is set aside, so that more models agree."""
        rpn = net.rpn if training else net.rpn.clone(box_loss=SmoothL1(), border=-1.0, train=net.rpn.test)
        return Body(net.backbone, net.neck, rpn, net.semantic, net.normalization)


def run(model: str, state_dict: Arrays, inputs: Arrays, groups: set[str]) -> Arrays:
    """Outputs of the groups asked for, by the names of the golden files; features come always."""
    net, batch = load_model(model), make_batch(inputs)
    variables = load_variables(net, state_dict, batch)
    compute = _one_stage if isinstance(net, OneStage) else _two_stage
    out = compute(net, variables, state_dict, batch, inputs, groups)
    return {k: v if isinstance(v, dict) else np.asarray(v) for k, v in out.items()}


def _one_stage(
    net: OneStage, variables: Arrays, state_dict: Arrays, batch: Batch, inputs: Arrays, groups: set[str]
) -> Arrays:
    batch = _with_legacy_boxes(net, batch)
    index = _fixed_places(net, batch, inputs)
    named = apply(net, variables, batch, index, method="intermediates")
    out = _features(named, net.dense, "dense", "head") | _codes(net, named)
    if index is not None:
        out["mask/logits"] = named["masks/logits"][0]
    if "test" in groups:
        found = apply(net, variables, batch, method="predict")
        out |= detections("test", found, batch)
        out["test/boxes"][:, 2:4] -= net.dense.places.least_side / np.asarray(batch.scale[0])[::-1]
        if net.dense.places.least_side:
            out |= _resized(found, batch)
    if "train" in groups:
        (total, (terms, _)), grads = _loss_and_grads(net, variables, batch, jax.random.key(0), method="losses")
        out |= {f"train/{name}": value for name, value in terms.items()} | {"train/total_loss": total}
        out["train/grad_norms"] = norms(net, grads, trained_only=True)
    return out


def _with_legacy_boxes(net: OneStage, batch: Batch) -> Batch:
    """Ground truth as this project has it: boxes of mmdetection 1.x end at their last pixel, ours behind it."""
    if not net.dense.places.least_side:
        return batch
    behind = np.array([0, 0, 1, 1], np.float32)
    return batch.replace(targets=batch.targets.replace(boxes=batch.targets.boxes + behind))


def _fixed_places(net: OneStage, batch: Batch, inputs: Arrays) -> Any:
    """The numbers of the given points (level, y, x) or anchors (level, y, x, anchor) among all places."""
    given = inputs.get("fixed_points", inputs.get("fixed_anchors"))
    if given is None:
        return None
    sides = [[-(-side // 2**level) for side in batch.image.shape[1:3]] for level in net.dense.places.levels]
    per_cell = net.dense.places.per_cell
    first = np.cumsum([0] + [height * width * per_cell for height, width in sides])
    index = [
        first[level] + (y * sides[level][1] + x) * per_cell + (anchor[0] if anchor else 0)
        for level, y, x, *anchor in np.asarray(given).tolist()
    ]
    return np.asarray(index, np.int32)[None]


def _codes(net: OneStage, named: Arrays) -> Arrays:
    """What the dense head says beside class and box, the map of all pixels, and the classes of these."""
    out: Arrays = {}
    masks = next((part for part in net.parts if isinstance(part, InstanceMasks)), None)
    kind = {Correlation: "rep", Prototypes: "coeff", DynamicConvs: "params"}[type(masks.maker)] if masks else ""
    for i, level in enumerate(net.dense.places.levels):
        _, height, width, _ = named[f"pyramid/{level}"].shape
        for ours, theirs in (("codes", kind), ("quality", "centerness")):
            if f"dense/{level}/{ours}" in named:
                out[f"head/{theirs}{i}"] = _nchw(named[f"dense/{level}/{ours}"].reshape(1, height, width, -1))
        if isinstance(net.dense.coder, DistanceCoder):
            distances = named[f"dense/{level}/deltas"].reshape(1, height, width, -1)
            out[f"head/reg{i}"] = _nchw(distances * 2**level)  # in pixels
    if "masks/pixels" in named:
        out[{"coeff": "proto/maps", "params": "mask/branch", "rep": "pixels"}[kind]] = _nchw(named["masks/pixels"])
    if "pixel_classes/logits" in named:
        out["semantic/logits"] = _nchw(named["pixel_classes/logits"])
    return out


def _two_stage(
    net: TwoStage, variables: Arrays, state_dict: Arrays, batch: Batch, inputs: Arrays, groups: set[str]
) -> Arrays:
    body = Body.of(net, training=False)
    features, named = _body_outputs(body, _part(variables, _BODY), batch)
    out = _features(named, net.rpn, "rpn", "rpn")
    proposals = named["proposals"]
    if "heads" in groups:
        rois = jnp.asarray(inputs["fixed_rois"], jnp.float32)[None]
        rated = (jnp.arange(rois.shape[1]) * 5 % net.num_classes)[None]
        seen = apply(net, variables, features, rois, rated, batch.true_hw, method="stage_intermediates")
        out |= _heads(seen) | _spare_mask_heads(net, variables, state_dict, seen) | _semantic(features, rois)
    if "test" in groups:
        fixed = pad(proposals_of(inputs), proposals.valid.shape[1])  # in as many slots: one program serves both
        for prefix, boxes in (("test", proposals), ("test_fixedprop", fixed)):
            found = apply(net, variables, features, boxes, batch.true_hw, method="detect")
            out |= detections(prefix, found, batch)
    if "train" in groups:
        terms, grads = _train(net, variables, batch, proposals_of(inputs))
        out |= {f"train/{name}": value for name, value in terms.items()}
        out["train/grad_norms"] = norms(net, grads, trained_only=True)
    return out


def sgd(model: str, state_dict: Arrays, inputs: Arrays, steps: int = 5) -> Arrays:
    """Losses before each of a few steps of SGD (lr 2e-5, momentum 0.9, decay 0.1), and parameter norms after them."""
    net, batch = load_model(model, roi_samples=64), make_batch(inputs)
    variables = load_variables(net, state_dict, batch)
    labels = unflatten({path: net.is_frozen(path) for path in flatten(variables["params"])})
    sgd_rule = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(2e-5, momentum=0.9))
    rule = optax.multi_transform({True: optax.set_to_zero(), False: sgd_rule}, labels)
    params, state, history = variables["params"], rule.init(variables["params"]), []

    @jax.jit
    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        terms, grads = _train(net, {**variables, "params": params}, batch, proposals_of(inputs))
        params, state = update(params, state, grads)
        terms = {k: float(v) for k, v in terms.items() if "loss" in k and k != "total_loss"}
        history.append(list(terms.values()))
    after = norms(net, params, trained_only=False)
    return {"loss_names": list(terms), "losses": np.array(history), "param_norms_after": after}


def run_refine(model: str, state_dict: Arrays, inputs: Arrays, groups: set[str]) -> Arrays:
    """`refining.run_refine`: outputs of a model with a refining step, on a pyramid that is given."""
    from tests.parity import refining  # which needs this module

    return refining.run_refine(model, state_dict, inputs, groups)


_BODY = ("backbone", "neck", "rpn", "semantic")


def heads_of(variables: Arrays) -> Arrays:
    """The variables of what comes behind the `Body`."""
    return _part(variables, _BODY, others=True)


def _part(variables: Arrays, names: tuple[str, ...], others: bool = False) -> Arrays:
    """The variables of some parts, or of all but these."""
    return {
        collection: {name: leaves for name, leaves in tree.items() if (name in names) != others}
        for collection, tree in variables.items()
    }


@functools.partial(jax.jit, static_argnames=("net", "method"))
def apply(net: Any, variables: Arrays, *args: Any, method: str) -> Any:
    return net.apply(variables, *args, method=method)


@functools.partial(jax.jit, static_argnames=("net", "method"))
def _loss_and_grads(net: Any, variables: Arrays, *args: Any, method: str) -> Any:
    """Value and gradient of the sum of the terms that a method returns first."""

    def total(params: Any) -> Any:
        # Where normalisation learns, it takes the statistics of the batch; elsewhere nothing changes.
        found, _ = net.apply({**variables, "params": params}, *args, method=method, mutable=["batch_stats"])
        return sum(found[0].values()), found

    return jax.value_and_grad(total, has_aux=True)(variables["params"])


def _train(net: Any, variables: Arrays, batch: Batch, proposals: Proposals) -> tuple[Arrays, Any]:
    """All losses, those of the stages on given proposals, and the gradient of their sum."""
    body, rest = Body.of(net, training=True), heads_of(variables)
    own = _part(variables, _BODY)
    features = _training_features(body, own, batch)
    terms, grads, wanted = stage_grads(net, rest, features, proposals, batch)
    body_terms, body_grads = _body_grads(body, own, batch, wanted)
    terms = {**body_terms, **terms}
    return terms | {"total_loss": sum(terms.values())}, {**body_grads, **grads}


@functools.partial(jax.jit, static_argnames="body")
def _training_features(body: Body, variables: Arrays, batch: Batch) -> Features:
    """As the step sees them: where normalisation learns, by the statistics of the batch."""
    features: Features
    features, _ = body.apply(variables, batch, method="features", mutable=["batch_stats"])
    return features


@functools.partial(jax.jit, static_argnames="net")
def stage_grads(net: Any, variables: Arrays, features: Features, proposals: Proposals, batch: Batch) -> Any:
    """Losses of the stages, and their gradients with respect to their parameters and the features."""

    def total(params: Any, features: Features) -> Any:
        given = features, proposals, batch.targets, batch.true_hw, jax.random.key(0)
        terms, _ = net.apply({**variables, "params": params}, *given, method="stage_losses")
        return sum(terms.values()), terms

    (_, terms), (grads, wanted) = jax.value_and_grad(total, (0, 1), has_aux=True)(variables["params"], features)
    return terms, grads, wanted


@functools.partial(jax.jit, static_argnames="body")
def _body_grads(body: Body, variables: Arrays, batch: Batch, wanted: Features) -> Any:
    def total(params: Any) -> Any:
        found, _ = body.apply({**variables, "params": params}, batch, wanted, method="losses", mutable=["batch_stats"])
        return found

    (_, terms), grads = jax.value_and_grad(total, has_aux=True)(variables["params"])
    return terms, grads


_found: dict[Any, Any] = {}
"""Features and intermediates by body, weights and image."""


def _body_outputs(body: Body, variables: Arrays, batch: Batch) -> tuple[Features, Arrays]:
    """What `Body.named` returns; for the same weights and image it is computed once."""
    contents = zlib.crc32(np.ascontiguousarray(batch.image))
    for leaf in jax.tree.leaves(variables):
        contents = zlib.crc32(np.ascontiguousarray(leaf), contents)
    key = body, batch.image.shape, contents
    if key not in _found:
        _found.clear()  # of one at a time, since they are large
        _found[key] = apply(body, variables, batch, method="named")
    return _found[key]


def _features(named: Arrays, dense: DenseDetector, ours: str, theirs: str) -> Arrays:
    """Features and what the dense head says of them, in torch layout."""
    out = {}
    for name, value in named.items():
        kind, _, rest = name.partition("/")
        if kind in ("backbone", "pyramid"):
            out[{"backbone": "backbone/C", "pyramid": "fpn/P"}[kind] + rest] = _nchw(value)
    for i, level in enumerate(dense.places.levels):
        for kind, name in (("logits", "cls"), ("deltas", "reg")):
            _, height, width, _ = named[f"pyramid/{level}"].shape
            out[f"{theirs}/{name}{i}"] = _nchw(named[f"{ours}/{level}/{kind}"].reshape(1, height, width, -1))
    if "proposals" in named:
        proposals = named["proposals"]
        out["rpn/proposals"] = jnp.concatenate([proposals.boxes[0], proposals.scores[0, :, None]], 1)
    return out


def _semantic(features: Features, rois: jax.Array) -> Arrays:
    """What the semantic branch sees, and its crops of the fixed RoIs."""
    if features.semantic is None:
        return {}
    crops = semantic_crops(features.semantic, rois, jnp.ones(rois.shape[:2], bool), 14)
    return {
        "semantic/logits": _nchw(features.semantic_logits),
        "semantic/embedding": _nchw(features.semantic),
        "semantic/roi_feats": _nchw(crops[0]),
    }


def _heads(named: Arrays) -> Arrays:
    """What every stage says about the fixed RoIs, which move from stage to stage; masks are of where they began."""
    out = {}
    stages = [name.partition("/")[0].removeprefix("stage") for name in named if name.endswith("/logits")]
    for t in sorted(int(t) for t in stages if t.isdecimal()):
        boxes, crops, logits = (named[f"stage{t}/{part}"] for part in ("boxes", "crops", "logits"))
        out |= {
            f"loop{t}/rois": jnp.pad(boxes[0], ((0, 0), (1, 0))),
            f"loop{t}/bbox_feats": _nchw(crops),
            f"loop{t}/cls": logits[0],
        }
        if f"stage{t}/deltas" in named:
            out[f"loop{t}/reg"] = named[f"stage{t}/deltas"][0].reshape(len(crops), -1)
        if "masks/crops" in named:
            out |= {
                "mask/feats": _nchw(named["masks/crops"]),
                f"mask/last_feat{t}": _nchw(named[f"masks/stage{t}/features"]),
                f"mask/pred{t}": _nchw(named[f"masks/stage{t}/logits"]),
            }
    if "grid/logits" in named:
        out |= {"grid/feats": _nchw(named["grid/crops"]), "grid/fused": _nchw(named["grid/logits"])}
    if "mask_scores/rated" in named:
        rated = named["mask_scores/rated"]
        out |= {"mask/iou_labels": jnp.arange(len(rated)) * 5 % rated.shape[1], "mask/iou_pred": rated}
    return out


def _spare_mask_heads(net: Any, variables: Arrays, state_dict: Arrays, named: Arrays) -> Arrays:
    """Logits of mask heads that the state dict has and no stage uses, as in the reference's cascade."""
    own = "roi_head.mask_head.0."
    names = {name for name in mmdet_names(variables).values() if name.startswith(own)}
    out: Arrays = {}
    t = len(net.heads)
    while names and f"roi_head.mask_head.{t}.conv_logits.bias" in state_dict:
        state = state_dict | {name: state_dict[name.replace(own, f"roi_head.mask_head.{t}.")] for name in names}
        head, weights = net.parts[0].heads[0].head, from_mmdet(state, variables)["params"]["masks"]["heads_0"]["head"]
        out[f"mask/pred{t}"] = _nchw(head.apply({"params": weights}, named["masks/crops"], net.num_classes))
        t += 1
    return out


def proposals_of(inputs: Arrays) -> Proposals:
    boxes = jnp.asarray(inputs["fixed_proposals"], jnp.float32)[None, :, :4]
    return Proposals(boxes, jnp.ones(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))


def detections(prefix: str, found: Detections, batch: Batch) -> Arrays:
    """Valid detections of the image in original coordinates, with pasted masks."""
    valid = np.asarray(found.valid[0])
    scale = batch.scale[0]
    factors = np.array([scale[1], scale[0], scale[1], scale[0]], np.float32)
    boxes = np.asarray(found.boxes[0])[valid] / factors
    scores = [found.scores[0]] if found.mask_scores is None else [found.scores[0], found.mask_scores[0]]
    out = {
        f"{prefix}/boxes": np.concatenate([boxes, np.stack(scores, 1)[valid]], 1),
        f"{prefix}/labels": np.asarray(found.labels[0])[valid],
    }
    if found.masks is not None:
        hw = tuple(int(v) for v in batch.original_hw[0])
        frames = np.asarray(found.masks.frames[0])[valid] / factors
        crop = None if found.masks.crop is None else np.asarray(found.masks.crop[0])[valid] / factors
        masks = found.masks.replace(values=np.asarray(found.masks.values[0])[valid], frames=frames, crop=crop)
        pasted = [coco_mask.decode(rle) for rle in paste_masks(masks, hw)]
        out[f"{prefix}/masks"] = np.array(pasted, bool).reshape(-1, *hw)
    return out


def _resized(found: Detections, batch: Batch) -> Arrays:
    """Valid detections in pixels of the resized image, as RDSNet's code has them, and the areas of their masks."""
    hw = tuple(int(side) for side in batch.true_hw[0])
    unscaled = batch.replace(scale=np.ones_like(batch.scale), original_hw=np.int32([hw]))
    out = detections("resized", found, unscaled)
    boxes = out["resized/boxes"] - np.float32([0, 0, 1, 1, 0])
    return {
        "resized/boxes": boxes,
        "resized/labels": out["resized/labels"],
        "resized/mask_area": out["resized/masks"].sum((1, 2)),
    }


def norms(net: Any, tree: Any, trained_only: bool) -> dict[str, float]:
    names = mmdet_names({"params": tree})
    return {
        names[path]: float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for path, leaf in flatten(tree).items()
        if not (trained_only and net.is_frozen(path))
    }


def _nchw(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)
