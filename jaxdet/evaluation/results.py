"""COCO results: a list of dicts, one for each detection of each image.

``image_id``, ``category_id`` (both as the data set numbers them), ``bbox`` (x, y, width, height in pixels of the
stored image), ``score`` and, with masks, ``segmentation`` (compressed run lengths).  One key more than COCO has:
``mask_score`` where a branch of the model rates masks apart from boxes; masks are then ranked by it.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from jaxdet.data.masks import encode_mask
from jaxdet.data.validation.entries import MAX_BOX_VALUE as BOX
from jaxdet.data.validation.entries import check_ids_differ, each, hw_of, is_number, whole
from jaxdet.evaluation.paste import paste_rle, snapped
from jaxdet.messages import short
from jaxdet.runtime.files import read_json_file, write_json

if TYPE_CHECKING:  # `structures` imports jax, which scoring a file of results does without
    from jaxdet.structures import Detections

Result: TypeAlias = dict[str, Any]
Truth: TypeAlias = Mapping[str, Any]
"""An instances json as a dict: ``images``, ``annotations``, ``categories``."""


def image_results(
    found: "Detections",
    *,
    image_id: int,
    category_ids: Sequence[int],
    scale: NDArray[np.float32],
    hw: tuple[int, int],
) -> list[Result]:
    """Detections of one image as COCO results, in the order given.

    Args:
        found: without the leading axis of a batch, on the host, in pixels of the resized image; ``valid`` is not asked.
        image_id: of the data set.
        category_ids: the id that each label stands for.
        scale: ``[2]`` resized size / stored size (y, x).
        hw: size of the stored image.

    Returns:
        A result for each detection.  One whose box or score is not finite is left out: JSON has no such number.  So
        is one whose box has no area: it lies outside of the image and is no object in it.

    Raises:
        ValueError: a label without a category.
    """
    boxes, scores, labels, masks = found.boxes, found.scores, found.labels, found.masks
    mask_scores = scores if found.mask_scores is None else found.mask_scores
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(category_ids):
        raise ValueError(
            f"labels: expected 0 to {len(category_ids) - 1} (the data has {len(category_ids)} categories), "
            f"got {labels.min()} to {labels.max()}; is the model's num_classes that of the data?"
        )
    # (y, x) -> (x1, y1, x2, y2): resized pixels per stored pixel of each coordinate.
    factors = np.asarray(scale, np.float32)[[1, 0, 1, 0]]
    original = boxes / factors
    results = []
    numbers = np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & np.isfinite(mask_scores)
    for i in np.flatnonzero(numbers & (original[:, 2:] > original[:, :2]).all(axis=1)):
        x1, y1, x2, y2 = (float(side) for side in original[i])
        result: Result = {"image_id": int(image_id), "category_id": int(category_ids[labels[i]])}
        result |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(scores[i])}
        if masks is not None:
            crop = None if masks.crop is None else masks.crop[i] / factors
            frame = masks.frames[i] / factors
            frame = snapped(frame, masks.values[i].shape) if masks.snapped else frame
            result["segmentation"] = paste_rle(masks.values[i], frame, hw, masks.threshold, crop, masks.logits)
            # COCO has no such key: it is written only where it says something new.
            if mask_scores[i] != scores[i]:
                result["mask_score"] = float(mask_scores[i])
        results.append(result)
    return results


def write_results(path: str | PathLike[str], results: Sequence[Result]) -> None:
    """Write a results json; folders are made where they are missing."""
    write_json(path, list(results), indent=None)


def read_results(path: str | PathLike[str], truth: Truth) -> list[Result]:
    """Read a results json and check it against the ground truth that it is to be scored by.

    Raises:
        ValueError: not readable, not JSON, or not COCO results for these images and categories.
    """
    results = read_json_file(path, "results")
    if not isinstance(results, list) or not all(isinstance(each, dict) for each in results):
        raise ValueError(f"results {path}: expected a list of detections (COCO results format)")
    try:
        return check_results(results, truth)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def check_results(results: Sequence[Result], truth: Truth) -> list[Result]:
    """COCO results from elsewhere, every field looked at, masks brought to compressed run lengths.

    Raises:
        ValueError: names the first detection with a fault and what is expected.
    """
    # Ids first, for all results at once: the list of unknown ones tells more than the first fault.
    try:
        sizes = image_sizes(truth)
    except ValueError as error:
        raise ValueError(f"ground truth: {error}") from error
    check_ids(results, truth)
    return [_checked(result, number, sizes) for number, result in enumerate(results)]


def image_sizes(truth: Truth) -> dict[int, tuple[int, int]]:
    """Height and width of the images of a ground truth by their ids.

    Raises:
        ValueError: an image without them, of an impossible size, or an id twice.
    """
    pairs = each("images", truth["images"], lambda image: (whole(image, "id"), _hw(image)))
    check_ids_differ("image", [image_id for image_id, _ in pairs])
    return dict(pairs)


def _hw(image: Any) -> tuple[int, int]:
    if isinstance(image, Mapping) and (image.get("height") is None or image.get("width") is None):
        raise ValueError("expected width and height; write those of the image's file into the json")
    return hw_of(image)


def check_ids(results: Sequence[Result], truth: Truth) -> None:
    """Make sure that every result names an image and a category of the ground truth.

    Raises:
        ValueError: lists some that it does not know.
    """
    for key, table in (("image_id", "images"), ("category_id", "categories")):
        missing = next((number for number, result in enumerate(results) if key not in result), None)
        if missing is not None:
            raise ValueError(f"results: expected {key} in every detection, detection {missing} has none")
        known = set(each(table, truth.get(table, []), lambda entry: whole(entry, "id")))
        named = each("results", results, lambda result, key=key: whole(result, key))  # type: ignore[misc]
        unknown = sorted(set(named) - known)
        if unknown:
            raise ValueError(
                f"results: expected every {key} among the {len(known)} {table} of the ground truth, got {len(unknown)} "
                f"unknown: {', '.join(map(repr, unknown[:5]))}{', ...' if len(unknown) > 5 else ''}; "
                "are these results of another data set, or labels instead of category ids?"
            )


def _checked(result: Result, number: int, sizes: Mapping[Any, tuple[int, int]]) -> Result:
    try:
        checked = dict(result)
        checked["score"] = _finite([result.get("score")], "score", 1)[0]
        if "mask_score" in result:
            checked["mask_score"] = _finite([result["mask_score"]], "mask_score", 1)[0]
        if result.get("bbox") is not None:
            checked["bbox"] = _finite(result["bbox"], "bbox", 4)
        if result.get("segmentation") is not None:
            checked["segmentation"] = encode_mask(result["segmentation"], sizes[result["image_id"]])
        if result.get("bbox") is None and result.get("segmentation") is None:
            raise ValueError("expected a bbox or a segmentation, got neither")
    except ValueError as error:
        raise ValueError(f"results: detection {number} (image {result['image_id']}): {error}") from error
    return {key: value for key, value in checked.items() if value is not None}


def _finite(values: Any, name: str, count: int) -> list[float]:
    numbers = isinstance(values, list | tuple) and len(values) == count
    if not numbers or not all(is_number(value, BOX) for value in values):
        expected = "a finite number" if count == 1 else f"{count} finite numbers"
        raise ValueError(f"{name}: expected {expected}, got {short(values[0] if count == 1 else values)}")
    return [float(value) for value in values]
