import dataclasses
import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from jaxdet.data import Category, Data, Record
from jaxdet.evaluation import match_categories
from jaxdet.evaluation.evaluate import evaluate
from jaxdet.evaluation.inference import detect, for_host, image_of
from jaxdet.runtime.mesh import data_mesh
from jaxdet.structures import Batch, Detections, Masks
from tests.devices import free_address, outputs, start, wait

# pycocotools 2.0.11 decodes with a call that NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
DATA = Data(short_side=32, long_side=64, pad_multiple=32, workers=0)


class Squares:
    """In memory: image i has one dark square on white, at (4 + i, 5), of side 20, of category 3 or 90 by turns."""

    categories = (Category(3, "dog"), Category(90, "cat"))

    def __init__(self, count: int) -> None:
        portrait = np.arange(count) % 3 == 2
        self.sizes = np.where(portrait[:, None], [60, 40], [40, 60]).astype(np.int32)
        self.image_ids = 100 + 7 * np.arange(count)
        self.usable = np.ones(count, np.int32)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Record:
        image = np.full((*self.sizes[index], 3), 255, np.uint8)
        image[5:25, 4 + index : 24 + index] = 0
        return Record(index, int(self.image_ids[index]), f"{index}.png", image, ())

    def ground_truth(self) -> dict[str, Any]:
        images = [
            {"id": int(i), "height": int(h), "width": int(w)}
            for i, (h, w) in zip(self.image_ids, self.sizes, strict=True)
        ]
        annotations = [
            {
                "id": n + 1,
                "image_id": image["id"],
                "category_id": self.categories[n % 2].id,
                "bbox": [4 + n, 5, 20, 20],
                "area": 400,
                "iscrowd": 0,
                "segmentation": [[4 + n, 5, 24 + n, 5, 24 + n, 25, 4 + n, 25]],
            }
            for n, image in enumerate(images)
        ]
        return {
            "images": images,
            "annotations": annotations,
            "categories": [dataclasses.asdict(category) for category in self.categories],
        }


@dataclasses.dataclass(frozen=True)
class DarkSquare:
    """Finds the extent of what is dark; the label is the parity of the index.  The second slot is never valid."""

    num_classes: int = 2
    with_masks: bool = True
    whole: bool = False  #: masks of the whole canvas, cut by the boxes, not of the boxes

    def apply(self, variables: Any, batch: Batch, *, method: str) -> Detections:
        assert method == "predict"
        height, width = batch.image.shape[1:3]
        y, x = jnp.arange(height)[:, None] + 0.5, jnp.arange(width) + 0.5
        inside = (y < batch.true_hw[:, 0, None, None]) & (x < batch.true_hw[:, 1, None, None])
        dark = inside & (jnp.asarray(batch.image).sum(-1) < 3 * 128)
        rows, columns = dark.any(2), dark.any(1)
        low = jnp.stack([jnp.argmax(columns, 1), jnp.argmax(rows, 1)], 1)
        high = jnp.stack([width - jnp.argmax(columns[:, ::-1], 1), height - jnp.argmax(rows[:, ::-1], 1)], 1)
        box = jnp.concatenate([low, high], 1).astype(jnp.float32)
        boxes = jnp.stack([box, jnp.full_like(box, jnp.nan)], 1)
        count = len(box)
        scores = jnp.broadcast_to(jnp.asarray([0.9, 0.99]) * jnp.max(variables["confidence"]), (count, 2))
        labels = jnp.stack([jnp.asarray(batch.index) % 2, jnp.full(count, -5)], 1)
        valid = jnp.broadcast_to(jnp.asarray([True, False]), (count, 2))
        masks = Masks(jnp.ones((count, 2, 28, 28)), boxes) if self.with_masks else None
        if self.whole:
            canvas = jnp.broadcast_to(jnp.asarray([0, 0, width, height], jnp.float32), boxes.shape)
            values = jnp.broadcast_to(dark[:, None].repeat(2, 2).repeat(2, 3), (count, 2, 2 * height, 2 * width))
            masks = Masks(values.astype(jnp.float32), canvas, crop=boxes, threshold=0.4)
        return Detections(boxes, scores, labels, valid, jnp.zeros((count, 2), int), masks)


VARIABLES = {"confidence": np.arange(8, dtype=np.float32) / 7}  # the last of four parts has the largest


def test_every_image_once_and_all_found() -> None:
    source, calls = Squares(7), []
    metrics = evaluate(
        DarkSquare(), VARIABLES, source, DATA, batch_size=3, progress=lambda done, all_: calls.append((done, all_))
    )
    assert metrics["bbox/AP50"] == pytest.approx(1)
    assert metrics["segm/AP50"] == pytest.approx(1)
    assert metrics["bbox/AP"] > 0.7  # the resize by 0.8 rounds sides to whole pixels
    assert calls == [(3, 7), (5, 7), (7, 7)]  # 5 landscape images, 2 portrait ones


def test_a_cpu_computes_no_empty_slots() -> None:
    """Five landscape images and two portrait ones: with batches of 8 it would have computed sixteen."""
    calls: list[int] = []
    detect(
        DarkSquare(),
        VARIABLES,
        Squares(7),
        DATA,
        data_mesh(jax.devices("cpu")[:1]),
        progress=lambda done, _: calls.append(done),
    )
    assert calls == [1, 2, 3, 4, 5, 6, 7]


def test_results_are_in_order_and_in_pixels_of_the_stored_images() -> None:
    source = Squares(5)
    results = detect(DarkSquare(), VARIABLES, source, DATA, batch_size=2)
    assert [result["image_id"] for result in results] == [100, 107, 114, 121, 128]
    assert [result["category_id"] for result in results] == [3, 90, 3, 90, 3]
    for i, result in enumerate(results):
        np.testing.assert_allclose(result["bbox"], [4 + i, 5, 20, 20], atol=1.3)
        assert result["segmentation"]["size"] == source.sizes[i].tolist()


@pytest.mark.parametrize("whole", [False, True])
def test_images_whose_ratio_is_not_kept(whole: bool) -> None:
    """Each axis has a scale of its own, other ones for landscape and portrait, and goes back by it."""
    source, data = Squares(6), Data(short_side=80, long_side=80, keep_ratio=False, pad_multiple=1, workers=0)
    metrics = evaluate(DarkSquare(whole=whole), VARIABLES, source, data, batch_size=4)
    assert metrics["bbox/AP"] > 0.85
    assert metrics["segm/AP50"] == pytest.approx(1)
    for i, result in enumerate(detect(DarkSquare(whole=whole), VARIABLES, source, data, batch_size=4)):
        np.testing.assert_allclose(result["bbox"], [4 + i, 5, 20, 20], atol=0.8)
        assert result["segmentation"]["size"] == source.sizes[i].tolist()


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_batch_size_changes_nothing(batch_size: int) -> None:
    source = Squares(5)
    assert detect(DarkSquare(), VARIABLES, source, DATA, batch_size=batch_size) == detect(
        DarkSquare(), VARIABLES, source, DATA, batch_size=2
    )


def test_without_masks() -> None:
    metrics = evaluate(DarkSquare(with_masks=False), VARIABLES, Squares(3), DATA)
    assert set(key.split("/")[0] for key in metrics) == {"bbox"}
    no_masks, nothing = dataclasses.replace(DATA, masks=False), {"confidence": np.float32(np.nan)}
    metrics = evaluate(DarkSquare(with_masks=False), nothing, Squares(3), no_masks)
    assert set(key.split("/")[0] for key in metrics) == {"bbox"}


def test_masks_of_the_whole_canvas() -> None:
    """They travel in 8 bits and come out where the boxes' own masks do, without rounded corners."""
    found, expected = (detect(DarkSquare(whole=whole), VARIABLES, Squares(5), DATA) for whole in (True, False))
    for one, other in zip(found, expected, strict=True):
        assert one["bbox"] == other["bbox"]
        masks = [coco_mask.decode(result["segmentation"]).astype(bool) for result in (one, other)]
        assert (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum() > 0.85
        for axis in (0, 1):
            centres = np.arange(masks[0].shape[1 - axis]) + 0.5
            low, extent = one["bbox"][axis], one["bbox"][2 + axis]
            np.testing.assert_array_equal(masks[0].any(axis), (centres >= low) & (centres < low + extent))
    metrics = evaluate(DarkSquare(whole=True), VARIABLES, Squares(5), DATA)
    assert metrics["segm/AP50"] == pytest.approx(1)


def test_what_travels_to_the_host() -> None:
    """Large masks in 8 bits, rounded to the nearest; small ones, boxes and crops as they are."""

    def found(side: int) -> Detections:
        values = jnp.linspace(-0.1, 1.1, side * side).reshape(1, 1, side, side)
        frames, one = jnp.ones((1, 1, 4)), jnp.ones((1, 1))
        masks = Masks(values, frames, crop=2 * frames, threshold=0.4)
        return Detections(frames, one, one.astype(int), one > 0, one.astype(int), masks)

    small = found(64)
    assert for_host(small) is small
    large, sent = found(65), jax.jit(for_host)(found(65))
    assert sent.masks.values.dtype == jnp.uint8
    expected = np.clip(np.asarray(large.masks.values), 0, 1)
    assert np.abs(np.asarray(sent.masks.values) / 255 - expected).max() <= 0.5 / 255 + 1e-6
    assert (int(sent.masks.values.min()), int(sent.masks.values.max())) == (0, 255)
    same = large.replace(masks=large.masks.replace(values=sent.masks.values))
    assert jax.tree.structure(sent) == jax.tree.structure(same), "the threshold is that of the model"
    jax.tree.map(np.testing.assert_array_equal, sent, same)
    without = large.replace(masks=None)
    assert for_host(without) is without
    assert image_of(sent, 0).masks.values.shape == (1, 65, 65)


def test_second_evaluation_compiles_nothing(caplog: pytest.LogCaptureFixture) -> None:
    jax.clear_caches()
    counts = []
    for _ in range(2):
        caplog.clear()
        with jax.log_compiles():
            evaluate(DarkSquare(), VARIABLES, Squares(3), DATA, batch_size=2)
        counts.append(sum("compilation of jit(predict_on_mesh)" in record.getMessage() for record in caplog.records))
    assert counts == [2, 0]  # a landscape and a portrait canvas


def test_no_detection_at_all() -> None:
    nothing = {"confidence": np.float32(np.nan)}  # a score that is no number is left out
    assert detect(DarkSquare(), nothing, Squares(2), DATA) == []
    assert evaluate(DarkSquare(), nothing, Squares(2), DATA)["segm/AP"] == 0


def test_labels_are_matched_by_name() -> None:
    source = Squares(4)
    turned = (Category(1, "cat"), Category(2, "dog"))
    results = detect(DarkSquare(), VARIABLES, source, DATA, categories=turned)
    assert [result["category_id"] for result in results] == [90, 3, 90, 3]


class TestMatchCategories:
    SOURCE = (Category(3, "dog"), Category(90, "cat"))

    def test_same_names_other_ids(self) -> None:
        assert match_categories(2, self.SOURCE, (Category(1, "dog"), Category(2, "cat"))) == (3, 90)

    def test_names_that_repeat_are_matched_in_order_only(self) -> None:
        twice = (Category(1, "x"), Category(2, "x"))
        assert match_categories(2, twice, twice) == (1, 2)
        with pytest.raises(ValueError, match="only in the data"):
            match_categories(2, self.SOURCE, twice)

    def test_other_number(self) -> None:
        with pytest.raises(ValueError, match=r"expected 80 .* got 2: dog, cat"):
            match_categories(80, self.SOURCE)

    def test_other_names(self) -> None:
        with pytest.raises(ValueError, match=r"only in the data: \['dog'\], only in the model: \['cow'\]"):
            match_categories(2, self.SOURCE, (Category(1, "cat"), Category(2, "cow")))


ONE = """
import json, jax
from tests.evaluation.test_evaluate import DATA, VARIABLES, DarkSquare, Squares, detect
assert jax.device_count() == 4
print(json.dumps(detect(DarkSquare(), VARIABLES, Squares(7), DATA, batch_size=3)))
"""
TWO = """
import json, sys, jax
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
from tests.evaluation.test_evaluate import DATA, VARIABLES, DarkSquare, OneBroken, Squares, detect
assert jax.device_count() == 4 and jax.local_device_count() == 2
try:
    detect(DarkSquare(), VARIABLES, OneBroken(7), DATA, batch_size=3)
except ValueError as error:
    print("stopped by", error)
print(json.dumps(detect(DarkSquare(), VARIABLES, Squares(7), DATA, batch_size=3, shard_parameters=True)))
print(json.dumps(detect(DarkSquare(), VARIABLES, Squares(7), DATA, batch_size=3)))
"""


class OneBroken(Squares):
    """One of its images cannot be read, and it takes a while to see that."""

    broken = 3

    def __getitem__(self, index: int) -> Record:
        if index == self.broken:
            time.sleep(0.5)
            raise ValueError(f"{index}.png is broken")
        return super().__getitem__(index)


SHARDED = """
import sys, jax, numpy as np
from jaxdet.runtime.hosts import explained, run_main
from tests.evaluation.test_evaluate import DATA, DarkSquare, OneBroken, detect

def main():
    jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=int(sys.argv[2]))
    source, variables = OneBroken(24), {"confidence": np.ones(2**15, np.float32)}
    source.broken = 11  # when the first batches are on their way
    try:
        detect(DarkSquare(), variables, source, DATA, batch_size=4, shard_parameters=True)
    except ValueError as error:
        print("stopped by", explained(error), file=sys.stderr)
        return 1
    return 0

run_main(main)
"""


def test_a_broken_image_is_named_and_ends_all_where_predictions_need_all() -> None:
    """With shared variables a process cannot tell the others, who wait for its part of the next prediction."""
    address = free_address()
    processes = [start(["-c", SHARDED, address, str(process)], 2) for process in (0, 1)]
    said = [errors for _, errors in wait(processes, timeout=120)]
    assert sum("stopped by 11.png is broken" in errors for errors in said) == 1
    assert all(process.returncode for process in processes)


def test_any_number_of_devices_and_processes() -> None:
    """Also with the variables split over them.  Processes that a broken image stops are stopped together, may go on."""
    expected = detect(DarkSquare(), VARIABLES, Squares(7), DATA, mesh=data_mesh(jax.devices()[:1]))
    address = free_address()
    one = start(["-c", ONE], 4)
    two = [start(["-c", TWO, address, str(process)], 2) for process in (0, 1)]
    alone, *both = outputs([one, *two])
    for said in (alone, *both):
        assert json.loads(said.splitlines()[-1]) == expected
    assert all(json.loads(said.splitlines()[-2]) == expected for said in both)
    stopped = [line for said in both for line in said.splitlines() if line.startswith("stopped by ")]
    assert len(stopped) == 2
    assert all("3.png is broken" in line for line in stopped)
    assert sum("process " in line for line in stopped) == 1, "the other one had it"
