"""Detect objects in images with a model that jaxdet has exported; nothing of jaxdet is needed.

    from load import Model          # this file lies in the exported folder, and may be copied elsewhere

    model = Model()                 # the folder of this file; Model("FOLDER") for another
    found = model("photo.jpg")      # found.boxes, .scores, .labels, .names, .masks, .to_coco()

    python load.py photo.jpg        # prints what is found: of each image a list of COCO's results

It needs Python 3.11, jax and numpy, flatbuffers because ``jax.export`` reads its files by it, and Pillow where images
are files and no arrays.  Resize, canvas and masks are those of ``jaxdet.predict``, pixel by pixel.
Boxes are ``x1, y1, x2, y2`` in pixels of the image, its top left corner being 0, 0; ``width = x2 - x1``.
Letters in shapes: H W image, h w canvas, B batch, N detections, m n bitmap of a mask.
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import jax.export
import numpy as np
from numpy.typing import NDArray

try:
    import cv2
except ImportError:
    cv2 = None  # type: ignore[assignment]

FORMAT = 2  #: version of the folder's layout; `Model` reads this one alone
MOST_PIXELS = 1 << 27  #: of an image, 134 million
_AGAIN = "copy the folder again, or export again"

Image = str | PathLike[str] | bytes | NDArray[np.uint8]
"""A path, the bytes of an image file, or an ``[H, W, 3]`` uint8 RGB array."""
_Floats = NDArray[np.float32]
_Mask = tuple[int, int, NDArray[np.bool_]]
"""The part of an image that a mask can reach: its top, its left, and which of its pixels are inside."""


@dataclass(frozen=True, eq=False)
class Found:
    """What was found in one image, best first."""

    boxes: _Floats  #: ``[N, 4]``
    scores: _Floats  #: ``[N]``, 0 to 1
    labels: NDArray[np.int32]  #: ``[N]``, classes from 0 in the order of `Model.categories`
    names: list[str]  #: of the classes
    category_ids: list[int]  #: the ids of the classes in the data set that the model was trained on
    hw: tuple[int, int]  #: height and width of the image
    mask_scores: _Floats | None = None  #: ``[N]``; None where a mask has the score of its box
    _masks: list[_Mask] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def masks(self) -> NDArray[np.bool_] | None:
        """``[N, H, W]``; None of a model without masks."""
        if self._masks is None:
            return None
        return np.array([_painted(mask, self.hw) for mask in self._masks], bool).reshape(-1, *self.hw)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """Results as COCO's json has them: ``bbox`` is x, y, width, height, ``segmentation`` compressed run lengths."""
        results = []
        for i, (x1, y1, x2, y2) in enumerate(self.boxes.tolist()):
            result: dict[str, Any] = {"image_id": image_id, "category_id": self.category_ids[i]}
            result |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": float(self.scores[i])}
            if self._masks is not None:
                result["segmentation"] = {"size": list(self.hw), "counts": _run_lengths(self._masks[i], self.hw)}
            if self.mask_scores is not None and self.mask_scores[i] != self.scores[i]:
                result["mask_score"] = float(self.mask_scores[i])
            results.append(result)
        return results


class Model:
    """An exported model on the device that jax chooses; a program is compiled when it is first needed.

    Args:
        folder: what ``jaxdet export`` has written; None: the folder of this file.

    Raises:
        ValueError: it is no such folder, of another format, incomplete or damaged, or has no program for this kind of
            device.
    """

    def __init__(self, folder: str | PathLike[str] | None = None) -> None:
        self.folder = Path(__file__).parent if folder is None else Path(folder)
        self.description: dict[str, Any] = _read_description(self.folder)  #: what ``export.json`` says
        self.device = jax.local_devices()[0]
        programs = sorted(self.description["programs"], key=lambda entry: entry["batch"])
        self._programs = [entry for entry in programs if entry["platform"] == platform_of(self.device)]
        if not self._programs:
            has = sorted({entry["platform"] for entry in programs})
            raise ValueError(
                f"{self.folder}: expected a program for this device ({self.device.platform}), it has {', '.join(has)}; "
                "export for it with --platforms, or choose another device by the environment variable JAX_PLATFORMS"
            )
        #: Height and width of the canvases that there are programs for.
        self.canvases: set[tuple[int, ...]] = {tuple(entry["canvas"]) for entry in self._programs}
        self.categories: list[dict[str, Any]] = self.description["categories"]  #: ``id`` and ``name`` of each label
        self._compiled: dict[str, Any] = {}
        for entry in (self.description["weights"], *self._programs):
            _check_file(self.folder / entry["file"], entry["sha256"])

    def __call__(self, image: Image, *, score_threshold: float | None = None) -> Found:
        """What is found in one image; arguments and errors as `predict`."""
        return self.predict([image], score_threshold=score_threshold)[0]

    def predict(self, images: Sequence[Image], *, score_threshold: float | None = None) -> list[Found]:
        """What is found in each of several images, as many at once as there are programs for.

        Args:
            images: pictures from files and bytes are turned as their EXIF orientation says, arrays never.
            score_threshold: detections below it are left out; None: the one that the folder was written with.

        Raises:
            ValueError: an image cannot be read, or the folder has no program for its canvas; a wrong threshold.
        """
        limit = self.description["score_threshold"] if score_threshold is None else score_threshold
        if not 0 <= limit <= 1:
            raise ValueError(f"score threshold: expected 0 to 1, got {limit!r}")
        pixels = [read_image(image) for image in images]
        places: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(pixels):
            places.setdefault(self._canvas(image.shape[:2]), []).append(place)
        found: dict[int, Found] = {}
        for canvas, members in places.items():
            fitting = [entry for entry in self._programs if tuple(entry["canvas"]) == canvas]
            while members:
                # The smallest program that takes all that are left, or the largest one.
                entry = next((each for each in fitting if each["batch"] >= len(members)), fitting[-1])
                now, members = members[: entry["batch"]], members[entry["batch"] :]
                found |= zip(now, self._run(entry, [pixels[place] for place in now], limit), strict=True)
        return [found[place] for place in range(len(pixels))]

    def warm_up(self) -> None:
        """Compile all programs and run each once, so that no image has to wait for it."""
        for entry in self._programs:
            self._run(entry, [np.zeros((*entry["canvas"], 3), np.uint8)], 1.0)

    @cached_property
    def _weights(self) -> Any:
        with np.load(self.folder / self.description["weights"]["file"], allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        # NumPy stores what it has no name for, as bfloat16, as bytes; jax knows the names.
        dtypes = self.description["weights"]["dtypes"]
        return jax.device_put({name: a.view(jax.numpy.dtype(dtypes[name])) for name, a in arrays.items()}, self.device)

    def _canvas(self, hw: tuple[int, ...]) -> tuple[int, ...]:
        """The canvas of an image; one of the model's, and one that there is a program for."""
        settings = self.description["preprocessing"]
        longest = max(self._resized_hw(hw))
        long = next(side for side in settings["canvas_longs"] if side >= longest)
        canvas = _oriented(hw, settings["canvas_short"], long)
        if canvas not in self.canvases:
            raise ValueError(
                f"an image of {hw[0]} x {hw[1]} pixels (height, width) needs a program for {canvas[0]} x {canvas[1]}, "
                f"the folder has {', '.join(f'{h} x {w}' for h, w in self.canvases)}; export without --image"
            )
        return canvas

    def _run(self, entry: dict[str, Any], images: Sequence[NDArray[np.uint8]], limit: float) -> list[Found]:
        canvas, batch = entry["canvas"], entry["batch"]
        image = np.zeros((batch, *canvas, 3), np.uint8)
        true_hw = np.tile(np.array(canvas, np.float32), (batch, 1))
        for slot, pixels in enumerate(images):
            rows, columns = self._resized_hw(pixels.shape[:2])
            image[slot, :rows, :columns] = resize(pixels, (rows, columns))
            true_hw[slot] = rows, columns
        outputs = jax.device_get(self._compile(entry)(self._weights, image, true_hw))
        each = [{name: array[slot] for name, array in outputs.items()} for slot in range(len(images))]
        return [self._found(its, pixels.shape[:2], limit) for its, pixels in zip(each, images, strict=True)]

    def _compile(self, entry: dict[str, Any]) -> Any:
        name = entry["file"]
        if name not in self._compiled:
            try:
                exported = jax.export.deserialize(bytearray((self.folder / name).read_bytes()))
                shapes, _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
                lowered = jax.jit(exported.call).lower(*shapes)
            except ValueError as error:
                versions = f"jax {self.description['jax']}, by which it was exported, or somewhat newer"
                raise ValueError(f"{name}: expected {versions}, got {jax.__version__}: {error}") from error
            try:
                self._compiled[name] = lowered.compile(self.description["compiler_options"].get(entry["platform"]))
            except jax.errors.JaxRuntimeError:  # of a version of XLA without the option, which only saves memory
                self._compiled[name] = lowered.compile()
        return self._compiled[name]

    def _resized_hw(self, hw: tuple[int, ...]) -> tuple[int, int]:
        settings = self.description["preprocessing"]
        limits = _oriented(hw, settings["short_side"], settings["long_side"])
        if not settings["keep_ratio"]:
            return limits
        scale = min(limits[0] / hw[0], limits[1] / hw[1])
        return max(int(hw[0] * scale + 0.5), 1), max(int(hw[1] * scale + 0.5), 1)

    def _found(self, outputs: dict[str, NDArray[Any]], hw: tuple[int, ...], limit: float) -> Found:
        rows, columns = self._resized_hw(hw)
        factors = np.array([columns / hw[1], rows / hw[0]] * 2, np.float32)
        boxes, scores, labels = np.asarray(outputs["boxes"] / factors, np.float32), outputs["scores"], outputs["labels"]
        mask_scores = outputs.get("mask_scores")
        numbers = np.isfinite(boxes).all(axis=1) & np.isfinite(scores if mask_scores is None else mask_scores)
        numbers &= (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # without area it lies outside of the image
        keep = outputs["valid"] & (scores >= limit) & numbers  # a score that is no number is not above the limit
        masks = None
        if "masks" in outputs:
            frames = outputs["mask_frames"][keep] / factors
            crops = outputs["mask_crop"][keep] / factors if "mask_crop" in outputs else [None] * len(frames)
            masks = [
                _paste(values, frame, (hw[0], hw[1]), crop, self.description["masks"])
                for values, frame, crop in zip(outputs["masks"][keep], frames, crops, strict=True)
            ]
        classes = [self.categories[label] for label in labels[keep]]
        names, ids = [[category[key] for category in classes] for key in ("name", "id")]
        mask_scores = None if mask_scores is None else mask_scores[keep]
        return Found(boxes[keep], scores[keep], labels[keep], names, ids, (hw[0], hw[1]), mask_scores, masks)


def read_image(image: Image) -> NDArray[np.uint8]:
    """An image as ``[H, W, 3]`` uint8 RGB; files and bytes by Pillow, upright, the first of several frames.

    Raises:
        ValueError: it is none, has more than 8 bits a channel, or more pixels than `MOST_PIXELS`.
    """
    if not isinstance(image, str | PathLike | bytes):
        pixels = np.asarray(image)
        if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or 0 in pixels.shape:
            raise ValueError(f"image: expected [H, W, 3] uint8 RGB, got {pixels.shape} {pixels.dtype}")
        return pixels
    try:
        from PIL import Image as Pillow
        from PIL import ImageOps
    except ImportError as error:
        raise ImportError("images from files need Pillow: pip install pillow; without it give arrays") from error
    name = f"of {len(image)} bytes" if isinstance(image, bytes) else str(image)
    try:
        with Pillow.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"at most {MOST_PIXELS} pixels, got {opened.width} x {opened.height}")
            if opened.mode.startswith(("I", "F")):
                raise ValueError(f"8 bits a channel, got the mode {opened.mode}")
            opened.load()  # Pillow turns a TIFF while it reads it, and then says that it is upright
            upright = ImageOps.exif_transpose(opened)
            if upright.mode in ("P", "PA"):
                upright = upright.convert("RGBA")
            return np.array(upright.convert("RGB"))
    except Exception as error:  # Pillow raises almost anything on broken files
        raise ValueError(f"image {name}: expected a whole image file, got {error}") from error


def resize(image: NDArray[np.uint8], hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize ``[H, W, 3]`` uint8 bilinearly, with the rounding of ``cv2.INTER_LINEAR``, by which jaxdet resizes.

    Where OpenCV is installed, it does this, tens of times sooner.  It counts weights in 1/2048, keeps 7 fractional bits
    of what it mixes along the columns, and rounds twice (resize.cpp of OpenCV 5.0); so does NumPy here.
    """
    if hw == image.shape[:2]:
        return image
    if cv2 is not None:
        return np.asarray(cv2.resize(image, hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)
    (left, right), across = _lines(image.shape[1], hw[1], ends=True)
    taps, down = _lines(image.shape[0], hw[0], ends=False)
    used, places = np.unique(taps, return_inverse=True)  # of an image that is made much smaller, few rows count
    above, below = places.reshape(2, -1)
    rows = image[used].astype(np.int32)
    lines = rows.take(left, 1) * across[0][:, None]
    lines += rows.take(right, 1) * across[1][:, None]
    lines >>= 4
    mixed = lines.take(above, 0) * down[0][:, None, None] >> 16
    mixed += lines.take(below, 0) * down[1][:, None, None] >> 16
    return ((mixed + 2) >> 2).astype(np.uint8)


def _lines(before: int, after: int, *, ends: bool) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
    """For each line of the result the two lines ``[2, after]`` that it mixes, and their weights in 1/2048.

    ``ends``: beyond the outermost centres the weight is all of one line (columns), and not that of the same line twice
    (rows), which is rounded otherwise.
    """
    position = ((np.arange(after) + 0.5) * (1.0 / (after / before)) - 0.5).astype(np.float32)
    first = np.floor(position)
    share = position - first
    if ends:
        share = np.where((first < 0) | (first >= before - 1), np.float32(0), share)
    taps = np.clip(np.stack([first, first + 1]), 0, before - 1).astype(np.intp)
    return taps, np.rint(np.stack([1 - share, share]) * np.float32(2048)).astype(np.int32)


def _paste(
    values: NDArray[Any],
    frame: _Floats,
    hw: tuple[int, int],
    crop: _Floats | None,
    painting: dict[str, Any],
) -> _Mask:
    """Paint the bitmap ``values [m, n]`` that covers ``frame``: a pixel asks it at its centre, bilinearly.

    Outside of the frame there is nothing; with a ``crop`` the mask ends there, and around it the nearest value counts.
    """
    if painting["snapped"]:
        frame = _snapped(frame, values.shape)
    if not _has_extent(frame) or (crop is not None and not _has_extent(crop)):
        return 0, 0, np.zeros((0, 0), bool)
    cut = [None, None] if crop is None else [crop[::2], crop[1::2]]
    left, column_taps, column_weights = _taps(values.shape[1], frame[::2], hw[1], cut[0])
    top, row_taps, row_weights = _taps(values.shape[0], frame[1::2], hw[0], cut[1])
    threshold = painting["threshold"]
    if values.dtype == np.uint8:  # large bitmaps leave the device in 8 bits
        values = values / np.float32(255)
        values = (values * 2 - 1) * np.float32(painting["logit_range"]) if painting["logits"] else values
    if painting["logits"]:
        threshold = float(np.log(threshold / (1 - threshold)))
    framed = np.pad(values.astype(np.float32), 1, mode="constant" if crop is None else "edge")
    lines = (framed[row_taps[0]] * row_weights[0][:, None] + framed[row_taps[1]] * row_weights[1][:, None]).T.copy()
    mixed = lines[column_taps[0]] * column_weights[0][:, None] + lines[column_taps[1]] * column_weights[1][:, None]
    return top, left, (mixed >= threshold).T


def _taps(cells: int, ends: _Floats, limit: int, cut: _Floats | None) -> tuple[int, NDArray[np.intp], _Floats]:
    """The first pixel that a bitmap of ``cells`` reaches along an axis, and for each from there two cells and weights.

    float32 in this order: a probability of exactly one half has to fall to the same side as in jaxdet.
    """
    low, high = ends
    reach = (np.float64(high) - low) / cells
    start = int(np.clip(np.floor(low - reach), 0, limit))
    stop = int(np.clip(np.ceil(high + reach), start, limit))
    if cut is not None:
        start = int(np.clip(np.ceil(cut[0] - 0.5), start, stop))
        stop = int(np.clip(np.ceil(cut[1] - 0.5), start, stop))
    centres = np.arange(start, stop, dtype=np.float32) + np.float32(0.5)
    position = ((centres - low) / (high - low) * 2 - 1 + 1) * np.float32(cells / 2) - np.float32(0.5)
    first = np.clip(np.floor(position), -1, cells - 1)
    share = np.clip(position - first, 0, 1).astype(np.float32)
    return start, np.stack([first, first + 1]).astype(np.intp) + 1, np.stack([1 - share, share])


def _snapped(frame: _Floats, cells: tuple[int, ...]) -> _Floats:
    """The frame of a bitmap as torchvision has it when it paints: a ring of cells around it, cut to whole pixels."""
    number = np.asarray([cells[1], cells[0]], np.float32)
    low, high = frame[:2], frame[2:]
    half = (high - low) * np.float32(0.5) * ((number + 2) / number)
    centre = (low + high) * np.float32(0.5)
    first = np.trunc(centre - half)
    size = np.maximum(np.trunc(centre + half) - first + 1, 1)
    ring = size / (number + 2)
    return np.concatenate([first + ring, first + size - ring])


def _has_extent(box: _Floats) -> bool:
    with np.errstate(over="ignore"):
        extent = box[2:] - box[:2]
    return bool(np.isfinite(box).all() and np.isfinite(extent).all() and (extent > 0).all())


def _painted(mask: _Mask, hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask in its image ``[H, W]``."""
    top, left, inside = mask
    image = np.zeros(hw, bool)
    image[top : top + len(inside), left : left + inside.shape[1]] = inside
    return image


def _run_lengths(mask: _Mask, hw: tuple[int, int]) -> str:
    """COCO's compressed run lengths: down the columns, from the third on as differences, in digits of 5 bits."""
    pixels = np.concatenate([[False], _painted(mask, hw).T.ravel()])
    edges = np.flatnonzero(pixels[1:] != pixels[:-1])
    counts = np.diff(np.concatenate([[0], edges, [hw[0] * hw[1]]])).tolist()
    text = []
    for i, count in enumerate(counts):
        number = count - counts[i - 2] if i > 2 else count
        more = True
        while more:
            digit, number = number & 31, number >> 5
            more = number != (-1 if digit & 16 else 0)
            text.append(chr(48 + digit + (32 if more else 0)))
    return "".join(text)


def _oriented(hw: tuple[int, ...], short: int, long: int) -> tuple[int, int]:
    """Height and width with these sides: landscape for an image that is wider than high."""
    return (short, long) if hw[1] > hw[0] else (long, short)


def platform_of(device: Any) -> str:
    """The name that ``jax.export`` has for a device's platform; ``gpu`` stands for two of them."""
    gpu = "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"
    return gpu if device.platform == "gpu" else str(device.platform)


def _read_description(folder: Path) -> dict[str, Any]:
    if not (file := folder / "export.json").is_file():
        raise ValueError(f"{folder}: expected a folder that jaxdet export has written, it has no export.json")
    try:
        description: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        found = description.get("format")
    except (ValueError, AttributeError) as error:  # no JSON, or no object
        raise ValueError(f"{file}: expected the description of an export, it is damaged ({error}); {_AGAIN}") from error
    if found != FORMAT:
        raise ValueError(f"{file}: expected format {FORMAT}, got {found}; take the load.py that lies beside it")
    return description


def sha256_of(file: Path) -> str:
    """By which a file of the folder is known again."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _check_file(file: Path, sha256: str) -> None:
    try:
        whole = sha256_of(file) == sha256
    except OSError as error:
        raise ValueError(f"{file}: expected a file of the export, got {error.strerror}; {_AGAIN}") from error
    if not whole:
        raise ValueError(f"{file}: expected the file that was exported, it is damaged or another one; {_AGAIN}")


def main(words: Sequence[str] | None = None) -> int:
    """Print what is found in images as JSON; 1 with a message where something cannot be read."""
    parser = argparse.ArgumentParser(description="Print what is found: for each image a list of COCO's results.")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--folder", help="what jaxdet export has written; the folder of this file, if not given")
    parser.add_argument("--score-threshold", type=float, metavar="SHARE", help="least score; that of the export")
    given = parser.parse_args(words)
    try:
        model = Model(given.folder)
        found = [model(image, score_threshold=given.score_threshold) for image in given.images]
    except (ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(json.dumps([one.to_coco(number) for number, one in enumerate(found)], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
