"""Runs a model with a refining step on a given pyramid and given samples; the rest is as in `runner`."""

from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdet.models.parts.refine import Refine
from jaxdet.models.roi.refining import RefineTraining
from jaxdet.models.two_stage import TwoStage
from jaxdet.ops.sampling import Sampler
from jaxdet.structures import Batch, Features
from tests.parity import runner
from tests.parity.weights import normal

TESTS: dict[str, dict[str, Any]] = {
    "test_fixedprop": {},
    "test_alpha0": {"alpha": 0.0},
    "test_alpha05": {"alpha": 0.5},
    "test_cls": {"boxes": "base"},
    "test_rm": {"guided": False},
    "test_detections": {"input_from": "detections"},
}
"""Settings of `Refine` for each set of detections."""

TRAININGS: dict[str, RefineTraining] = {
    "": RefineTraining(),
    "stop_guide": RefineTraining(guide_gradient=False),
    "carried": RefineTraining(matching="carried"),
    "sampled": RefineTraining(matching="sampled", sampler=Sampler(48, 0.25, order="first")),
    "proposal": RefineTraining(train_boxes="proposal"),
    "vanilla_mask": RefineTraining(mask_loss_on="proposal"),
    "rm": RefineTraining(),
}
"""How each variant of the training differs; ``rm`` differs in the step itself."""


def run_refine(
    model: str,
    state_dict: runner.Arrays,
    inputs: runner.Arrays,
    groups: set[str],
    tests: Collection[str] = tuple(TESTS),
) -> runner.Arrays:
    """Outputs of the groups asked for, with ``P2`` .. ``P5`` of the inputs in place of backbone and neck.

    ``inputs["variant"]`` names one of `TRAININGS`; ``tests`` are the sets of detections of the group "test".
    """
    net, batch = runner.load_model(model), runner.make_batch(inputs)
    variables = runner.heads_of(runner.load_variables(net, state_dict, batch))
    levels = {level: jnp.moveaxis(jnp.asarray(inputs[f"P{level}"]), 1, -1) for level in range(2, 6)}
    features = Features(levels, hw=batch.image.shape[1:3], true_hw=batch.true_hw)
    out: runner.Arrays = {}
    if "heads" in groups:
        out |= _heads(net, variables, features, batch, inputs)
    if "test" in groups:
        for prefix in tests:
            changed = _with(net, **TESTS[prefix])
            found = runner.apply(
                changed, variables, features, runner.proposals_of(inputs), batch.true_hw, method="detect"
            )
            out |= runner.detections(prefix, found, batch)
    if "train" in groups:
        variant = str(inputs.get("variant", ""))
        changed = _with(net, training=TRAININGS[variant], guided=variant != "rm")
        out |= _training(f"train_{variant}" if variant else "train", changed, variables, features, batch, inputs)
    return {name: value if isinstance(value, dict) else np.asarray(value) for name, value in out.items()}


def pyramid(inputs: runner.Arrays) -> runner.Arrays:
    """The pyramid of the golden numbers, by the names of the inputs."""
    height, width = (int(side) for side in inputs["pad_shape"][:2])
    return {
        f"P{level}": np.float32(6)
        * normal(f"mr/P{level}", (1, 256, height >> level, width >> level)).astype(np.float32)
        for level in range(2, 6)
    }


def _with(net: TwoStage, **settings: Any) -> TwoStage:
    step: Refine = net.parts[0]
    return net.clone(parts=(step.clone(**settings), *net.parts[1:]))


def _heads(
    net: TwoStage, variables: runner.Arrays, features: Features, batch: Batch, inputs: runner.Arrays
) -> runner.Arrays:
    rois = jnp.asarray(inputs["fixed_rois"], jnp.float32)[None]
    named = runner.apply(net, variables, features, rois, None, batch.true_hw, method="stage_intermediates")
    step = {name.removeprefix("refine/"): value for name, value in named.items() if name.startswith("refine/")}
    refined = named["masks/stage0/logits"]  # [N, 28, 28, K]
    of_label = jnp.take_along_axis(refined, step["final_labels"].reshape(-1, 1, 1, 1), axis=3)[..., 0]
    nchw = {
        "loop0/bbox_feats": named["stage0/crops"],
        "mask/feats": step["glance/crops"],
        "mask/conv4": step["glance/stage0/features"],
        "mask/pred0": step["glance/stage0/logits"],
        "head/sa_feats": step["crops"],
        "head/plain_feats": step["plain_crops"],
        "mask/link": step["joined"] - named["masks/crops"],
        "mask/refine_feats": step["joined"],
        "mask/refine_pred": refined,
    }
    base, ours = named["stage0/logits"][0], step["logits"][0]
    alphas = {name: float(name) for name in ("0", "0.5", "1", "2")}
    return {
        **{name: jnp.moveaxis(value, -1, 1) for name, value in nchw.items()},
        "loop0/cls": base,
        "loop0/reg": named["stage0/deltas"][0].reshape(len(base), -1),
        "guide_label": step["labels"][0],
        "head/B": step["boxes"][0],
        "head/P": step["guide"][0],
        "head/refine_cls": ours,
        "head/refine_reg": step["deltas"][0].reshape(len(base), -1),
        "head/rm_refine_cls": step["plain_logits"][0],
        **{f"head/logits_alpha{name}": net.parts[0].clone(alpha=a).combined(base, ours) for name, a in alphas.items()},
        "final_label": step["final_labels"][0],
        "head/Br": step["moved"][0],
        "mask/refine_pred_of_label": of_label,
    }


def _training(
    prefix: str, net: TwoStage, variables: runner.Arrays, features: Features, batch: Batch, inputs: runner.Arrays
) -> runner.Arrays:
    terms, grads, wanted = runner.stage_grads(net, variables, features, runner.proposals_of(inputs), batch)
    out = {f"{prefix}/{name}": value for name, value in terms.items()}
    out[f"{prefix}/total_loss"] = sum(terms.values())
    out[f"{prefix}/grad_norms"] = runner.norms(net, grads, trained_only=True)
    out[f"{prefix}/grad_features"] = np.array([float(jnp.linalg.norm(wanted.levels[level])) for level in range(2, 6)])
    return out
