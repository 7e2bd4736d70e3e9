"""Runs a model of the project on torch-named weights and torch-layout inputs, for comparison with other code.

``run`` and ``sgd`` take a model name, a torch state dict and the arrays of ``inputs`` and return named arrays in
torch layout.  Nothing here depends on the values, sizes or numbers of what is given.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.checkpoints.merge import merge
from jaxdet.checkpoints.names.from_mmdet import from_mmdet, mmdet_names
from jaxdet.checkpoints.tree import flatten, unflatten
from jaxdet.config import load_config
from jaxdet.evaluation.paste import paste_mask
from jaxdet.models.loop import refine
from jaxdet.models.two_stage import TwoStage
from jaxdet.nn.extractors.single_level import crops_as_batch
from jaxdet.structures import Batch, Detections, Features, Proposals, Targets

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
}
"""Reference model -> config of the project."""


def load_model(name: str, roi_samples: int = 128) -> TwoStage:
    """The model of a config with samplers that take the first boxes, not random ones, and raw pixels as they are."""
    if name not in CONFIGS:
        raise ValueError(f"no config for {name}; there are {sorted(CONFIGS)}")
    model = load_config(f"{Path(__file__).parents[2]}/configs/{CONFIGS[name]}").model

    def first(sampler: Any, **changes: Any) -> Any:
        return dataclasses.replace(sampler, order="first", **changes)

    schedule = tuple(dataclasses.replace(s, sampler=first(s.sampler, number=roi_samples)) for s in model.schedule)
    rpn = model.rpn.clone(sampler=first(model.rpn.sampler))
    return model.clone(rpn=rpn, schedule=schedule, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))


def load_variables(model: TwoStage, state_dict: Arrays, batch: Batch) -> Arrays:
    """The weights through the project's importer; every leaf must be there and fit.

    What the state dict has beyond that stays away.
    """
    like = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, method="predict"))
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
        masks=slots("gt_masks", np.uint8),
        frames=np.tile(np.array([0, 0, width, height], np.float32), (1, number, 1)),
        crowd=np.zeros((1, number), bool),
        valid=np.arange(number)[None] < real,
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


def run(model: str, state_dict: Arrays, inputs: Arrays, groups: set[str]) -> Arrays:
    """Outputs of the groups asked for, by the names of the golden files; features come always."""
    net, batch = load_model(model), make_batch(inputs)
    variables = load_variables(net, state_dict, batch)
    pyramid, proposals, out = jax.jit(lambda v: net.apply(v, batch, method=_features))(variables)
    if "heads" in groups:
        out |= jax.jit(lambda v, p: net.apply(v, p, batch, inputs["fixed_rois"], method=_heads))(variables, pyramid)
        out |= _spare_mask_heads(net, variables, state_dict, out)
    if "test" in groups:
        for prefix, boxes in (("test", proposals), ("test_fixedprop", _proposals(inputs))):
            detect = jax.jit(lambda v, p, b: net.apply(v, p, b, batch.true_hw, method="detect"))
            out |= _detections(prefix, net, detect(variables, pyramid, boxes), batch)
    if "train" in groups:
        terms, grads = jax.jit(lambda v: _loss_and_grads(net, v, batch, _proposals(inputs)))(variables)
        out |= {f"train/{name}": np.asarray(value) for name, value in terms.items()}
        out["train/grad_norms"] = _norms(net, grads, trained_only=True)
    return {k: v if isinstance(v, dict) else np.asarray(v) for k, v in out.items()}


def sgd(model: str, state_dict: Arrays, inputs: Arrays, steps: int = 5) -> Arrays:
    """Losses before each of a few steps of SGD (lr 2e-5, momentum 0.9, decay 0.1), and parameter norms after them."""
    net, batch = load_model(model, roi_samples=64), make_batch(inputs)
    variables = load_variables(net, state_dict, batch)
    labels = unflatten({path: net.is_frozen(path) for path in flatten(variables["params"])})
    sgd_rule = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(2e-5, momentum=0.9))
    rule = optax.multi_transform({True: optax.set_to_zero(), False: sgd_rule}, labels)
    params, state, history = variables["params"], rule.init(variables["params"]), []

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        terms, grads = _loss_and_grads(net, {**variables, "params": params}, batch, _proposals(inputs))
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state, terms

    for _ in range(steps):
        params, state, terms = step(params, state)
        terms = {k: float(v) for k, v in terms.items() if "loss" in k and k != "total_loss"}
        history.append(list(terms.values()))
    norms = _norms(net, params, trained_only=False)
    return {"loss_names": list(terms), "losses": np.array(history), "param_norms_after": norms}


def _features(net: TwoStage, batch: Batch) -> tuple[Features, Proposals, Arrays]:
    """Pyramid and proposals of the images, and what is compared of them in torch layout."""
    levels = net.backbone(batch.image)
    pyramid = net.neck(levels)
    out = {f"backbone/C{i}": _nchw(x) for i, x in levels.items()} | {f"fpn/P{i}": _nchw(x) for i, x in pyramid.items()}
    for i, level in enumerate(net.rpn.anchors.levels):
        objectness, deltas = net.rpn.head(pyramid[level])
        out |= {f"rpn/cls{i}": _nchw(objectness), f"rpn/reg{i}": _nchw(deltas)}
    proposals = net.rpn.proposals(pyramid, batch.true_hw)
    out["rpn/proposals"] = jnp.concatenate([proposals.boxes[0], proposals.scores[0, :, None]], 1)
    return pyramid, proposals, out


def _heads(net: TwoStage, pyramid: Features, batch: Batch, rois: Any) -> Arrays:
    """What every step says about the fixed RoIs, which move from step to step; masks are of where they began."""
    rois = jnp.asarray(rois, jnp.float32)[None]
    boxes, valid, out = rois, jnp.ones(rois.shape[:2], bool), {}
    for t, step in enumerate(net.test_schedule()):
        head = net.heads[step.head]
        crops = crops_as_batch(head.box_extractor(pyramid, boxes, valid))
        logits, deltas = (x[None] for x in head.box_head(crops, net.num_classes))
        out |= {
            f"loop{t}/rois": jnp.pad(boxes[0], ((0, 0), (1, 0))),
            f"loop{t}/bbox_feats": _nchw(crops),
            f"loop{t}/cls": logits[0],
            f"loop{t}/reg": deltas[0].reshape(len(crops), -1),
        }
        boxes = refine(head, boxes, logits, deltas, batch.true_hw)
    return out if net.heads[0].mask_head is None else out | _masks(net, pyramid, rois, valid)


def _masks(net: TwoStage, pyramid: Features, boxes: jax.Array, valid: jax.Array) -> Arrays:
    """Every pass of the mask branch over the same crops, and the mask IoU of the last."""
    schedule = net.test_schedule()
    crops = net.heads[schedule[-1].head].mask_crops(pyramid, boxes, valid)
    features, out = net.heads[0].no_mask_features(crops), {"mask/feats": _nchw(crops)}
    for t, step in enumerate(schedule):
        head = net.heads[step.head]
        features = head.mask_features(crops, features)
        logits = head.mask_head.classify(features, net.num_classes)
        out |= {f"mask/last_feat{t}": _nchw(features), f"mask/pred{t}": _nchw(logits)}
    if net.mask_iou is not None:
        labels = jnp.arange(len(crops)) * 5 % net.num_classes
        own = jnp.take_along_axis(logits, labels[:, None, None, None], axis=3)[..., 0]
        out |= {"mask/iou_labels": labels, "mask/iou_pred": net.mask_iou(crops, own, net.num_classes)}
    return out


def _spare_mask_heads(net: TwoStage, variables: Arrays, state_dict: Arrays, found: Arrays) -> Arrays:
    """Logits of mask heads that the state dict has and no step uses, as in the reference's cascade."""
    own = "roi_head.mask_head.0."
    names = {name for name in mmdet_names(variables).values() if name.startswith(own)}
    out: Arrays = {}
    t = len(net.heads)
    while names and f"roi_head.mask_head.{t}.conv_logits.bias" in state_dict:
        state = state_dict | {name: state_dict[name.replace(own, f"roi_head.mask_head.{t}.")] for name in names}
        spare = {**variables, **from_mmdet(state, variables)}
        crops = jnp.moveaxis(found["mask/feats"], 1, -1)
        out[f"mask/pred{t}"] = _nchw(net.apply(spare, crops, method=_first_mask_head))
        t += 1
    return out


def _first_mask_head(net: TwoStage, crops: jax.Array) -> jax.Array:
    return net.heads[0].mask_head(crops, net.num_classes)


def _loss_and_grads(net: TwoStage, variables: Arrays, batch: Batch, proposals: Proposals) -> tuple[Arrays, Any]:
    """RPN losses on the image, head losses on the fixed proposals, and the gradient of their sum."""

    def terms_of(net: TwoStage) -> Arrays:
        targets = jax.tree.map(jnp.asarray, batch.targets)
        features, key = net.features(batch), jax.random.key(0)
        rpn_terms, _ = net.rpn.losses(features, batch.true_hw, targets, key)
        head_terms, _ = net.head_losses(features, proposals, targets, batch.true_hw, key)
        return rpn_terms | head_terms

    def total(params: Any) -> tuple[jax.Array, Arrays]:
        terms = net.apply({**variables, "params": params}, method=terms_of)
        return sum(terms.values()), terms

    (value, terms), grads = jax.value_and_grad(total, has_aux=True)(variables["params"])
    return terms | {"total_loss": value}, grads


def _proposals(inputs: Arrays) -> Proposals:
    boxes = jnp.asarray(inputs["fixed_proposals"], jnp.float32)[None, :, :4]
    return Proposals(boxes, jnp.ones(boxes.shape[:2]), jnp.ones(boxes.shape[:2], bool))


def _detections(prefix: str, net: TwoStage, found: Detections, batch: Batch) -> Arrays:
    """Valid detections of the image in original coordinates, with pasted masks."""
    valid = np.asarray(found.valid[0])
    scale = batch.scale[0]
    boxes = np.asarray(found.boxes[0])[valid] / np.array([scale[1], scale[0], scale[1], scale[0]], np.float32)
    scores = [found.scores[0]] if net.mask_iou is None else [found.scores[0], found.mask_scores[0]]
    out = {
        f"{prefix}/boxes": np.concatenate([boxes, np.stack(scores, 1)[valid]], 1),
        f"{prefix}/labels": np.asarray(found.labels[0])[valid],
    }
    if found.masks is not None:
        hw = tuple(int(v) for v in batch.original_hw[0])
        masks = [paste_mask(m, b, hw) for m, b in zip(np.asarray(found.masks[0])[valid], boxes, strict=True)]
        out[f"{prefix}/masks"] = np.array(masks).reshape(-1, *hw)
    return out


def _norms(net: TwoStage, tree: Any, trained_only: bool) -> dict[str, float]:
    names = mmdet_names({"params": tree})
    return {
        names[path]: float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for path, leaf in flatten(tree).items()
        if not (trained_only and net.is_frozen(path))
    }


def _nchw(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)
