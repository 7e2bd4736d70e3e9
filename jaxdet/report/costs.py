"""What a model costs: its parameters, and the products of one image."""

from typing import Any

import jax
import numpy as np

from jaxdet.data import Source, eval_batches
from jaxdet.trained import Trained


def model_costs(trained: Trained, source: Source) -> dict[str, Any]:
    """``parameters``, and ``flops`` of the canvas of the first image.

    FLOPs are XLA's count of the traced program (a product and a sum are two).  Loops count as one round: those of
    rolled stages and of NMS, so that the number is a lower bound.  It is left out where XLA does not tell it.
    """
    experiment = trained.experiment
    count = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(trained.variables.get("params", {})))
    model: Any = experiment.model
    with eval_batches(source, experiment.data, batch_size=1, process_index=0, process_count=1) as batches:
        batch = next(iter(batches))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), (trained.variables, batch))
    lowered = jax.jit(lambda variables, batch: model.apply(variables, batch, method="predict")).lower(*shapes)
    costs = lowered.cost_analysis() or {}
    flops = costs.get("flops")
    return {"parameters": count} | ({"flops": float(flops)} if flops else {})
