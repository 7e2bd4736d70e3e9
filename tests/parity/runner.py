"""Runs a model of the project on torch-named weights and torch-layout inputs, for comparison with other code.

``run`` and ``sgd`` take a model name, a torch state dict and the arrays of ``inputs`` and return named arrays in
torch layout.  Nothing here depends on the values, sizes or numbers of what is given.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxdet.checkpoints.from_mmdet import from_mmdet, mmdet_name
from jaxdet.checkpoints.merge import merge
from jaxdet.models.two_stage import TwoStage
from jaxdet.ops.paste import paste_mask
from jaxdet.structures import Batch, Detections, Proposals, Targets

CONFIGS = {"mask_rcnn_r50": "mask_rcnn_r50_fpn", "faster_rcnn_r50": "faster_rcnn_r50_fpn"}
"""Reference model -> config file of the project."""

Arrays = dict[str, Any]


def load_model(name: str, roi_samples: int = 128) -> TwoStage:
    """The model of a config with samplers that take the first boxes, not random ones, and raw pixels as they are."""
    if name not in CONFIGS:
        raise ValueError(f"no config for {name}; there are {sorted(CONFIGS)}")
    path = Path(__file__).parents[2] / "configs" / f"{CONFIGS[name]}.py"
    spec = importlib.util.spec_from_file_location(f"config_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.get_config().model

    def first(sampler: Any, **changes: Any) -> Any:
        return dataclasses.replace(sampler, order="first", **changes)

    schedule = tuple(dataclasses.replace(s, sampler=first(s.sampler, number=roi_samples)) for s in model.schedule)
    rpn = model.rpn.clone(sampler=first(model.rpn.sampler))
    return model.clone(rpn=rpn, schedule=schedule, pixel_mean=(0.0, 0.0, 0.0), pixel_std=(1.0, 1.0, 1.0))


def load_variables(model: TwoStage, state_dict: Arrays, batch: Batch) -> Arrays:
    """The weights through the project's importer; every leaf must be there and fit."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch, method="predict"))
    empty = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    variables, _ = merge(empty, from_mmdet(state_dict))
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
    """Outputs of the groups asked for, by the names of the golden files."""
    net, batch = load_model(model), make_batch(inputs)
    variables = load_variables(net, state_dict, batch)
    out: Arrays = {}
    if groups & {"features", "heads"}:
        out |= jax.jit(lambda v: net.apply(v, batch, inputs, method=_tensors))(variables)
    if "test" in groups:
        predicted = jax.jit(lambda v: net.apply(v, batch, method="predict"))(variables)
        out |= _detections("test", predicted, batch)
        proposals = _proposals(inputs)
        predicted = jax.jit(lambda v: net.apply(v, batch, proposals, method=_detect))(variables)
        out |= _detections("test_fixedprop", predicted, batch)
    if "train" in groups:
        terms, grads = jax.jit(lambda v: _loss_and_grads(net, v, batch, _proposals(inputs)))(variables)
        out |= {f"train/{name}": np.asarray(value) for name, value in terms.items()}
        out["train/grad_norms"] = _norms(net, grads, trained_only=True)
    return {k: v if isinstance(v, dict) else np.asarray(v) for k, v in out.items()}


def sgd(model: str, state_dict: Arrays, inputs: Arrays, steps: int = 5) -> Arrays:
    """Losses before each of a few steps of SGD (lr 2e-5, momentum 0.9, decay 0.1), and parameter norms after them."""
    net, batch = load_model(model, roi_samples=64), make_batch(inputs)
    variables = load_variables(net, state_dict, batch)
    labels = jax.tree_util.tree_map_with_path(lambda p, _: _is_frozen(net, p), variables["params"])
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


def _tensors(net: TwoStage, batch: Batch, inputs: Arrays) -> Arrays:
    """Features, dense head outputs, and head outputs on the fixed RoIs, in torch layout."""
    levels = net.backbone(batch.image)
    pyramid = net.neck(levels)
    out = {f"backbone/C{i}": _nchw(x) for i, x in levels.items()} | {f"fpn/P{i}": _nchw(x) for i, x in pyramid.items()}
    for i, level in enumerate(net.rpn.anchors.levels):
        objectness, deltas = net.rpn.head(pyramid[level])
        out |= {f"rpn/cls{i}": _nchw(objectness), f"rpn/reg{i}": _nchw(deltas)}
    proposals = net.rpn.proposals(pyramid, batch.true_hw)
    out["rpn/proposals"] = jnp.concatenate([proposals.boxes[0], proposals.scores[0, :, None]], 1)
    boxes = jnp.asarray(inputs["fixed_rois"], jnp.float32)[None]
    valid = jnp.ones(boxes.shape[:2], bool)
    head = net.heads[0]
    crops = head.box_extractor(pyramid, boxes, valid)
    logits, deltas = head.boxes(pyramid, boxes, valid, net.num_classes)
    out |= {
        "loop0/bbox_feats": _nchw(crops[0]),
        "loop0/cls": logits[0],
        "loop0/reg": deltas[0].reshape(len(logits[0]), -1),
    }
    if head.mask_head is not None:
        crops = head.mask_extractor(pyramid, boxes, valid)
        out |= {"mask/feats": _nchw(crops[0]), "mask/pred0": _nchw(head.mask_head(crops[0], net.num_classes))}
    return out


def _detect(net: TwoStage, batch: Batch, proposals: Proposals) -> Detections:
    return net.detect(net.features(batch), proposals, batch.true_hw)


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


def _detections(prefix: str, found: Detections, batch: Batch) -> Arrays:
    """Valid detections of the image in original coordinates, with pasted masks."""
    valid = np.asarray(found.valid[0])
    scale = batch.scale[0]
    boxes = np.asarray(found.boxes[0])[valid] / np.array([scale[1], scale[0], scale[1], scale[0]], np.float32)
    out = {
        f"{prefix}/boxes": np.concatenate([boxes, np.asarray(found.scores[0])[valid, None]], 1),
        f"{prefix}/labels": np.asarray(found.labels[0])[valid],
    }
    if found.masks is not None:
        hw = tuple(int(v) for v in batch.original_hw[0])
        masks = [paste_mask(m, b, hw) for m, b in zip(np.asarray(found.masks[0])[valid], boxes, strict=True)]
        out[f"{prefix}/masks"] = np.array(masks).reshape(-1, *hw)
    return out


def _norms(net: TwoStage, tree: Any, trained_only: bool) -> dict[str, float]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        mmdet_name(_names(path)): float(np.linalg.norm(np.asarray(leaf, np.float64)))
        for path, leaf in leaves
        if not (trained_only and _is_frozen(net, path))
    }


def _is_frozen(net: TwoStage, path: Any) -> bool:
    return net.is_frozen(_names(path))


def _names(path: Any) -> tuple[str, ...]:
    return tuple(entry.key for entry in path)


def _nchw(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 1)
