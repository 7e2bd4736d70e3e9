"""A model over a data source.

Each device predicts its own images without talking to the others; meanwhile threads on the host paste the masks of
the batch before.
"""

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from numpy.typing import NDArray

from jaxdet.data import Category, Data, Source, eval_batches
from jaxdet.evaluation import image_results, match_categories
from jaxdet.evaluation.paste import LOGIT_RANGE
from jaxdet.evaluation.results import Result
from jaxdet.models.detector import Detector
from jaxdet.models.limits import Limits, with_limits
from jaxdet.runtime.agreement import from_all
from jaxdet.runtime.compiling import compiler_options
from jaxdet.runtime.mesh import data_mesh, layout_of, split_batch
from jaxdet.structures import Batch, Detections

Progress = Callable[[int, int], None]
"""Called with the number of images that this process has done, and of all images of the source."""

_S = TypeVar("_S")
_THREADS = min(8, os.cpu_count() or 1)
# Pixels of a mask up to which it travels as float32; mask heads predict 28 x 28.
_SMALL_MASK = 64 * 64
# Images whose masks may wait to be pasted before the devices wait for the host: bounds its memory.
_BACKLOG = 256


def detect(
    model: Detector,
    variables: Any,
    source: Source,
    data: Data,
    mesh: Mesh | None = None,
    *,
    batch_size: int | None = None,
    shard_parameters: bool = False,
    categories: Sequence[Category] | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Detections in every image of a source, each predicted exactly once.

    Args:
        model: any `Detector`.
        variables: of the model.
        source: images and ground truth.
        data: settings of resize, canvas and workers.
        mesh: devices, with one axis ``data``; None for all there are.
        batch_size: images over all devices; rounded up to a multiple of these.  None: 8, and on a CPU one for each
            device: there more gain nothing, and the empty slots of a batch that is not full cost as much as images.
        shard_parameters: keep the variables split over the devices, which gather them for each batch.
        categories: what the model's labels stand for, where the source may number them otherwise; they are
            found in the source by name.  None: the source's own.
        progress: called after each batch.

    Returns:
        COCO results in order of the source, the same on every process.

    Raises:
        ValueError: the model's classes are not those of the source, or another process could not do its part.  With
            ``shard_parameters`` only the process at fault knows what it was; for the others its connection breaks.
    """
    mesh = mesh if mesh is not None else data_mesh()
    ids = match_categories(model.num_classes, source.categories, categories)
    variables = jax.device_put(variables, layout_of(variables, mesh, split=shard_parameters))
    if batch_size is None:
        batch_size = 1 if mesh.devices.flat[0].platform == "cpu" else 8
    # Rounded up, so that every device has equally many images.
    size = -(-batch_size // mesh.size) * mesh.size
    share = {"process_index": jax.process_index(), "process_count": jax.process_count()}

    def own_share() -> list[tuple[int, list[Result]]]:
        found: dict[int, Future[list[Result]]] = {}
        with ThreadPoolExecutor(_THREADS) as pool, eval_batches(source, data, batch_size=size, **share) as batches:
            running: deque[tuple[Batch, Detections]] = deque()
            for batch in batches:
                running.append((batch, predict_batch(model, mesh, variables, split_batch(batch, mesh))))
                # One behind: the device has its next batch before the host waits for this one.
                if len(running) > 1:
                    _collect(*running.popleft(), source, ids, pool, found, progress)
            while running:
                _collect(*running.popleft(), source, ids, pool, found, progress)
            return [(index, future.result()) for index, future in found.items()]

    if shard_parameters and jax.process_count() > 1:
        # Each prediction gathers the variables from all processes: one that fails cannot tell the others, because they
        # wait for it inside the prediction.
        mine = own_share()
        return in_order(from_all(lambda: mine), len(source))
    return in_order(from_all(own_share), len(source))


def predict_batch(
    model: Detector, mesh: Mesh, variables: Any, batch: Batch, limits: Limits | None = None
) -> Detections:
    """Detections of a batch that is split over the mesh; does not wait for them.

    ``limits`` are those of this call, which compile nothing anew; None: the settings of the model.
    """
    found: Detections = _compiled()(model, mesh, variables, batch, limits)
    return found


@cache
def _compiled() -> Any:
    """Not made before the first use: importing a module must not start jax, which may have other processes to join."""
    return jax.jit(predict_on_mesh, static_argnums=(0, 1), compiler_options=compiler_options())


def predict_on_mesh(model: Detector, mesh: Mesh, variables: Any, batch: Batch, limits: Limits | None) -> Detections:
    """What `predict_batch` compiles."""

    # Every device runs its own images, so that no loop of one (NMS, say) waits for another's.
    def one_device(variables: Any, batch: Batch, limits: Limits | None) -> Detections:
        limited = model if limits is None else with_limits(model, limits)
        return for_host(limited.apply(variables, batch, method="predict"))

    specs = (P(), P("data"), P())
    mapped = jax.shard_map(one_device, mesh=mesh, in_specs=specs, out_specs=P("data"), check_vma=False)
    found: Detections = mapped(variables, batch, limits)
    return found


def for_host(found: Detections) -> Detections:
    """Detections as they travel from the device: masks of more pixels than a mask head's in 8 bits.

    A hundred float32 masks of a whole image at a stride of 4 pixels are 27 MB, in 8 bits a fourth of that; a pixel is
    cut otherwise only where its probability is nearer to the threshold than 1/510, or its logit than 0.03.  The small
    masks of mask heads (0.3 MB) stay as they are.
    """
    masks = found.masks
    if masks is None or masks.values.shape[-2] * masks.values.shape[-1] <= _SMALL_MASK:
        return found
    # 0 and 255 stand for the ends of the range; `paste` divides again.
    shares = (masks.values / LOGIT_RANGE + 1) / 2 if masks.logits else masks.values
    levels = jnp.round(jnp.clip(shares, 0.0, 1.0) * 255).astype(jnp.uint8)
    return dataclasses.replace(found, masks=dataclasses.replace(masks, values=levels))


def _local(leaf: jax.Array) -> NDArray[Any]:
    """This process's rows of an array that is split along its first axis."""
    # Rows in order of the batch, whatever the order of the devices; np.asarray waits for them.
    shards = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def _collect(
    batch: Batch,
    detections: Detections,
    source: Source,
    category_ids: Sequence[int],
    pool: ThreadPoolExecutor,
    found: dict[int, Future[list[Result]]],
    progress: Progress | None,
) -> None:
    """Wait for a batch from the device and hand its images to the threads."""
    host: Detections = jax.tree.map(_local, detections)
    # The last batch is filled up with images that do not count.
    for row in np.flatnonzero(batch.valid):
        index = int(batch.index[row])
        if index in found:
            raise RuntimeError(f"evaluation: image {index} of the source came twice")
        one, its = image_of(batch, int(row)), image_of(host, int(row))
        found[index] = pool.submit(results_of, one, its, int(source.image_ids[index]), category_ids)
    if len(found) > _BACKLOG:
        list(found.values())[-_BACKLOG].result()
    if progress is not None:
        # Processes do not talk about it: the others are assumed to be about as far.
        progress(min(len(found) * jax.process_count(), len(source)), len(source))


def image_of(structure: _S, row: int) -> _S:
    """One image of a batch of anything."""
    one: _S = jax.tree.map(lambda leaf: leaf[row], structure)
    return one


def results_of(
    batch: Batch, detections: Detections, image_id: int, category_ids: Sequence[int], score_threshold: float = 0.0
) -> list[Result]:
    """COCO results of one image: ``batch`` and ``detections`` without their leading axis, on the host."""
    keep = np.asarray(detections.valid) & (np.asarray(detections.scores) >= score_threshold)
    kept: Detections = jax.tree.map(lambda leaf: np.asarray(leaf)[keep], detections)
    return image_results(
        kept,
        image_id=image_id,
        category_ids=category_ids,
        scale=np.asarray(batch.scale),
        hw=(int(batch.original_hw[0]), int(batch.original_hw[1])),
    )


def in_order(parts: Sequence[Sequence[tuple[int, list[Result]]]], count: int) -> list[Result]:
    """Results of each image by its place, from all processes, as those of all images; every one of them once."""
    found = {index: results for part in parts for index, results in part}
    if sorted(found) != list(range(count)):
        raise RuntimeError(f"evaluation: expected every one of {count} images once, got {len(found)} of them")
    return [result for index in range(count) for result in found[index]]
