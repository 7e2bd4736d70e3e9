"""Settings of the data: which source, and how its images become batches.

Their classes are stored by name in checkpoints, so this module keeps its name.  It imports next to nothing, because
configs and worker processes read it.
"""

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeAlias, runtime_checkable

import numpy as np

from jaxdet.data.records import Record, Source
from jaxdet.ranges import SHARE, Range, check_ranges

MAX_SIDE = 2**14  #: pixels; a batch of canvases with such sides takes all memory of most machines
#: Detections of a class in an image, the best ones, that COCO's numbers count.
COCO_DETECTIONS = 100


@dataclass(frozen=True)
class CocoFolder:
    """Plain COCO: a folder of images and an instances json, which are used as they are."""

    images: str  #: folder that ``file_name`` in the json is relative to
    annotations: str  #: path of the instances json
    stuff: str | None = None  #: folder of semantic maps (COCO-stuff's), for training with a semantic branch


@dataclass(frozen=True)
class Tfds:
    """A data set prepared by ``python -m jaxdet.data.sources.tfds_builder``; it has no semantic maps."""

    directory: str  #: the ``data_dir`` given to the builder, or the version folder inside it
    split: str  #: ``train`` or ``validation``


@dataclass(frozen=True)
class Scenes:
    """The built-in generated data; equal settings give equal bytes."""

    split: str = "train"  #: ``train`` or ``val``; no scene is in both
    count: int = 1000  #: number of images
    size: int = 160  #: long side of an image, in pixels
    seed: int = 0
    aspects: tuple[float, ...] = (1.0,)  #: ratios width / height, one of which is drawn for each image
    directory: str = ""  #: folder for the images; empty: the user's cache folder
    semantic: bool = False  #: make semantic maps too, of 10 classes: those of the objects, then two kinds of ground
    huddled: float = 0.0  #: share of objects placed onto another: their boxes have an IoU of 0.2 or more
    #: For the error if a setting of another source is changed here.
    hint: ClassVar[str] = (
        "for images in a folder take another config, such as mask_rcnn_r18_fpn_small, or `jaxdet train --data DIR`"
    )

    def __post_init__(self) -> None:
        if self.split not in ("train", "val"):
            raise ValueError(f"Scenes.split: expected 'train' or 'val', got {self.split!r}")
        check_ranges(self, count=Range(1, 10**7), size=Range(32, MAX_SIDE), seed=Range(0, 2**32 - 1))
        check_ranges(self, aspects=Range(0.25, 4), huddled=SHARE)


@runtime_checkable
class OwnSource(Protocol):
    """A source of one's own: a frozen dataclass of settings with this method (docs/YOUR_CODE.md)."""

    def open_source(self) -> Source:
        """Open the data; `jaxdet.data.listed_source` makes a source of annotations in COCO's form."""
        ...


SourceSettings: TypeAlias = CocoFolder | Tfds | Scenes | OwnSource


@dataclass(frozen=True)
class ShortSide:
    """Draw the limit of an image's shorter side: ``least``, ``least + step``, and so on up to ``data.short_side``.

    The canvas stays that of the largest, and ``data.long_side`` the limit of the longer side (mmdetection's
    ``multiscale_mode``: "range" is a step of 1, "value" the step between the values).
    """

    least: int  #: the smallest limit, in pixels of the resized image
    step: int = 1  #: pixels from one to the next

    def __post_init__(self) -> None:
        check_ranges(self, least=Range(1, MAX_SIDE), step=Range(1, MAX_SIDE))


@dataclass(frozen=True)
class Expand:
    """Lay the image somewhere on a plain ground with up to ``most`` times its sides: objects get smaller (SSD)."""

    most: float = 4.0  #: sides of the ground, in sides of the image; drawn from 1 to it, one factor for both
    probability: float = 0.5  #: share of the images that it happens to
    colour: tuple[float, float, float] = (123.675, 116.28, 103.53)  #: of the ground, RGB; ImageNet's mean

    def __post_init__(self) -> None:
        check_ranges(self, most=Range(1, 16), probability=SHARE, colour=Range(0, 255))


@dataclass(frozen=True)
class MinIoUCrop:
    """Cut out a part of which every instance overlaps, and so make objects larger (SSD, as mmdetection has it).

    With equal chances the image stays whole, or one of ``ious`` or 0 is drawn, and a part whose IoU with the box of
    every instance is at least that.  The part has the centre of an instance, and sides of which none is more than
    twice the other.  Of 50 parts the first that will do is taken; if none does, the draw is repeated.
    """

    ious: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    least: float = 0.3  #: the smallest side of the part, in sides of the image

    def __post_init__(self) -> None:
        check_ranges(self, ious=SHARE, least=Range(0.1, 1))  # a tenth: the whole image is enlarged to cut it out


@dataclass(frozen=True)
class PhotometricDistortion:
    """Change brightness, contrast, saturation and hue, each with probability one half (SSD).

    Contrast comes before or after the other two, with equal chances.  Numbers of 0..255 are kept within it.
    """

    brightness: float = 32.0  #: the most that is added or taken off, of 255
    contrast: tuple[float, float] = (0.5, 1.5)  #: least and largest factor of all values
    saturation: tuple[float, float] = (0.5, 1.5)  #: least and largest factor
    hue: float = 18.0  #: the most that it turns, in degrees

    def __post_init__(self) -> None:
        check_ranges(self, brightness=Range(0, 255), hue=Range(0, 180))
        check_ranges(self, contrast=Range(0, 10), saturation=Range(0, 10))
        for name in ("contrast", "saturation"):
            least, largest = getattr(self, name)
            if least > largest:
                raise ValueError(
                    f"PhotometricDistortion.{name}: expected the least and the largest factor, got {least}, {largest}"
                )


@dataclass(frozen=True)
class LargeScaleJitter:
    """Draw a scale, and cut or fill up the image to the limits of its canvas (Ghiasi et al. 2021, "Copy-Paste", LSJ).

    A scale of 1 is the size that the image would have anyway.  A larger one shows a part, wherever it lies; of a
    smaller one the image lies at the top left and the rest is ``colour``.
    """

    least: float = 0.1  #: the smallest scale
    most: float = 2.0  #: the largest scale; scales between are equally likely
    colour: tuple[float, float, float] = (123.675, 116.28, 103.53)  #: beyond the image, RGB; ImageNet's mean

    def __post_init__(self) -> None:
        check_ranges(self, least=Range(0.05, 8), most=Range(0.05, 8), colour=Range(0, 255))
        if self.least > self.most:
            raise ValueError(f"LargeScaleJitter.most: expected at least least={self.least}, got {self.most}")


@dataclass(frozen=True)
class CopyPaste:
    """Paste instances of another image of the training set in front of those of an image (Ghiasi et al. 2021).

    The other image is mirrored or not, resized to between ``least`` and ``most`` of the size at which it would just fit
    into the image, and laid somewhere on it.  Each of its instances is pasted with probability one half, though one at
    least.  What they hide is taken from the masks of those behind; of these, one of which less than ``visible`` is left
    is no longer an object.  Masks are needed.
    """

    probability: float = 0.5  #: share of the images that it happens to
    least: float = 0.4  #: the smallest scale
    most: float = 1.2  #: the largest scale
    visible: float = 0.1  #: of an instance's pixels, the least share that has to be seen

    def __post_init__(self) -> None:
        check_ranges(self, probability=SHARE, least=Range(0.05, 8), most=Range(0.05, 8), visible=SHARE)
        if self.least > self.most:
            raise ValueError(f"CopyPaste.most: expected at least least={self.least}, got {self.most}")


@dataclass(frozen=True)
class Mosaic:
    """Show four images in one, each in a corner of it (Bochkovskiy et al. 2020): the image itself and three others.

    They meet in a point of the middle half.  Each is resized to between the size that just covers its corner and the
    one at which it would fit into the whole image, so that nothing stays empty, and a part of it is shown.
    """

    probability: float = 0.5  #: share of the images that it happens to

    def __post_init__(self) -> None:
        check_ranges(self, probability=SHARE)


@runtime_checkable
class OwnAugmentation(Protocol):
    """An augmentation of one's own: a frozen dataclass of settings with this method (docs/YOUR_CODE.md)."""

    def augmented(self, record: Record, rng: np.random.Generator) -> Record:
        """Make another record of an image and its annotations, in pixels of the stored image.

        Args:
            record: which is not changed itself; ``dataclasses.replace`` makes another.
            rng: for all draws: its seed follows from run, step and place in the batch.

        Returns:
            A record whose image has the same canvas (the same sides, or their ratio, will do), with annotations in its
            own pixels.
        """
        ...


Augmentation: TypeAlias = (
    ShortSide | Expand | MinIoUCrop | LargeScaleJitter | CopyPaste | Mosaic | PhotometricDistortion | OwnAugmentation
)


@dataclass(frozen=True)
class Data:
    """How records become batches.  The defaults are those of the reference's COCO training.

    An image is resized, its ratio kept, so that it fits into ``short_side`` x ``long_side``, and is laid on one of two
    canvases, landscape or portrait, whose sides are these numbers rounded up to ``pad_multiple``; ``canvas_ratios``
    adds narrower ones, and each image lies on the narrowest that it fits.  In training
    ``augment`` first mixes images (`CopyPaste`, `Mosaic`), then changes them as augmentations of one's own say
    (`OwnAugmentation`), then draws what is seen, and then colours, each in the order given.
    """

    train: SourceSettings | None = None  #: the training set; None: for evaluation alone
    val: SourceSettings | None = None  #: the validation set; None: training is not evaluated
    short_side: int = 800  #: limit of an image's shorter side, in pixels
    long_side: int = 1333  #: limit of an image's longer side, in pixels
    #: the shorter and the longer side in training, where they are others than in evaluation; None: the same
    train_sides: tuple[int, int] | None = None
    keep_ratio: bool = True  #: False: an image fills ``short_side`` x ``long_side``, each axis with a scale of its own
    #: ratios, longer side by shorter, of further canvases, which save the margins of images that are not as long; for
    #: each there are two programs more to compile
    canvas_ratios: tuple[float, ...] = ()
    pad_multiple: int = 32  #: sides of a canvas are multiples of it; 32 is the stride of the coarsest backbone level
    batch_size: int = 16  #: images in a training batch, over all processes
    #: equal parts of the training set, in its order, each of which one process reads alone, so that a host needs the
    #: images of its own shards.  1: every process reads from all of it
    shards: int = 1
    max_boxes: int = 100  #: ground-truth slots of an image; what does not fit is counted and reported
    masks: bool = True  #: False: read no masks, for data or models that have none
    mask_size: int = 112  #: side of the bitmap into which an instance's mask is cropped for the batch
    whole_masks: bool = False  #: True: masks are bitmaps of the whole canvas in a batch, which is exact and large
    flip_probability: float = 0.5  #: share of training images that are mirrored
    augment: tuple[Augmentation, ...] = ()  #: what else is drawn for a training image
    min_box: float = 0.0  #: leave out objects with a side under this, in pixels of the batch, which is counted
    filter_empty: bool = True  #: leave out training images without usable annotations
    min_side: int = 32  #: leave out training images with a shorter side than this, in pixels
    skip_broken: bool = False  #: True: another image takes the place of a broken one in training, which is counted
    workers: int = 2  #: processes that prepare batches; 0: the training process itself
    prefetch: int = 2  #: batches that each worker keeps ready

    def __post_init__(self) -> None:
        check_ranges(self, pad_multiple=Range(1, 4096), batch_size=Range(1, 10**6), max_boxes=Range(1, 10**5))
        check_ranges(self, shards=Range(1, 10**6))
        check_ranges(self, workers=Range(0, 10**4), prefetch=Range(1, 10**4), flip_probability=SHARE)
        check_ranges(self, mask_size=Range(4, 4096))  # at least 4: there is a ring of 1 around a mask
        check_ranges(self, short_side=Range(1, MAX_SIDE), long_side=Range(1, MAX_SIDE), min_side=Range(0, 10**6))
        check_ranges(self, min_box=Range(0, MAX_SIDE))
        check_ranges(self, train_sides=Range(1, MAX_SIDE))
        if self.train_sides is not None and self.train_sides[0] > self.train_sides[1]:
            raise ValueError(f"data.train_sides: expected the shorter side first, got {self.train_sides}")
        if self.long_side < self.short_side:
            raise ValueError(
                f"data.long_side: expected at least data.short_side={self.short_side}, got {self.long_side}; set both, "
                f"as in data.short_side={self.short_side} data.long_side={self.short_side * 5 // 3}"
            )
        if self.canvas_ratios:
            check_ranges(self, canvas_ratios=Range(1, 100))
        if not self.keep_ratio and self.canvas_ratios:
            raise ValueError(
                f"data.canvas_ratios: expected none with data.keep_ratio=False, where every image fills the largest "
                f"canvas, got {self.canvas_ratios}; set data.canvas_ratios=() or data.keep_ratio=True"
            )
        if not self.keep_ratio and any(isinstance(entry, ShortSide) for entry in self.augment):
            raise ValueError(
                "data.augment: expected no ShortSide, which draws sizes of images whose ratio is kept, with "
                "data.keep_ratio=False; leave it out, or set data.keep_ratio=True"
            )

    def in_training(self) -> "Data":
        """These settings as training takes them: with ``train_sides`` for its sides."""
        if self.train_sides is None:
            return self
        short, long = self.train_sides
        return dataclasses.replace(self, short_side=short, long_side=long, train_sides=None)
