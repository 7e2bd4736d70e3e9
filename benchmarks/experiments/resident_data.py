"""A whole training set as arrays on the device, so that no step waits for the host."""

import dataclasses
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from jaxdet.data import Data, Source, train_batches
from jaxdet.data.pipeline.plans import TrainPlan, trainable
from jaxdet.structures import Batch

_READ = 50  # images at a time


def read_all(source: Source, data: Data, workers: int) -> Batch:
    """Every trainable image as it is, then every one mirrored: a batch of 2 N images, NumPy leaves."""
    parts = []
    for flip in (0.0, 1.0):
        settings = dataclasses.replace(data, flip_probability=flip, batch_size=_READ, workers=workers)
        steps = -(-len(trainable(source, data)) // _READ)
        with train_batches(source, settings, seed=0, start_step=0, steps=steps) as batches:
            everything = _joined(list(batches))
        index, first = np.unique(everything.index, return_index=True)
        first = first[index >= 0]  # the rest fills the last batch
        parts.append(jax.tree.map(lambda a, first=first: a[first], everything))
    return _joined(parts)


def _joined(batches: list[Batch]) -> Batch:
    joined: Batch = jax.tree.map(lambda *leaves: np.concatenate(leaves), *batches)
    return joined


def shapes(source: Source, data: Data) -> Batch:
    """What `read_all` will return, as shapes."""
    with train_batches(source, dataclasses.replace(data, batch_size=1, workers=0), seed=0, start_step=0) as batches:
        one = next(batches)
    count = 2 * len(trainable(source, data))
    like: Batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), one)
    return like


def rows_of(examples: int, batch_size: int, seed: int, start: int, steps: int) -> NDArray[np.int32]:
    """``[steps, batch_size]`` positions in `read_all` of the steps from ``start`` on, a function of seed and step.

    In each epoch every image comes once, mirrored or not; what the last batch lacks is filled with its first image.
    """
    plan = TrainPlan((np.arange(examples // 2),), batch_size, seed)
    rows = np.stack([plan.batch(step) for step in range(start, start + steps)])
    rows = np.where(rows < 0, rows[:, :1], rows)
    mirrored = np.random.default_rng([seed, start]).integers(0, 2, rows.shape)
    return (rows + mirrored * (examples // 2)).astype(np.int32)


def take(examples: Batch, rows: jax.Array) -> Any:
    """The batch of those rows."""
    return jax.tree.map(lambda a: a[rows], examples)
