"""What a run would stumble over later, looked for before its first step: files and masks that are not there."""

from collections.abc import Iterable

from jaxdet.data.pipeline.augment import check_augment
from jaxdet.data.pipeline.plans import check_shards, own_positions, trainable
from jaxdet.data.records import Source
from jaxdet.data.settings import Data
from jaxdet.data.sources.stored import CHECK, StoredSource


def check_files(source: Source, setting: str, chosen: Iterable[int] | None = None) -> None:
    """Make sure that the images of a source, and its semantic maps, are there; their content is not looked at.

    Args:
        source: the data; one that does not lie in files passes.
        setting: the setting that names the source, for messages.
        chosen: positions of the images that are needed; None: all.

    Raises:
        ValueError: counts the missing files and names some, with the spelling that they have if it is another.
    """
    if not isinstance(source, StoredSource):
        return
    missing = source.store.missing(range(len(source)) if chosen is None else chosen)
    if missing:
        shown = "; ".join(missing[:3]) + ("; ..." if len(missing) > 3 else "")
        raise ValueError(
            f"{setting}: expected a file for every image, got none for {len(missing)} of them: {shown}; {CHECK}"
        )


def check_trainable(source: Source, data: Data, process_index: int = 0, process_count: int = 1) -> None:
    """Make sure that the images to train on have their files, and masks if these are to be learned.

    With ``data.skip_broken`` other images take the place of those that have not, and all pass.  What is drawn for them
    must fit their sizes (`check_augment`).  Of several processes each looks for the files of its shards alone.

    Raises:
        ValueError: what is missing, and the setting that does without it.
    """
    check_augment(data)
    check_shards(data, process_count)
    if data.skip_broken:
        return
    chosen = trainable(source, data)
    own = own_positions(len(source), data, process_index, process_count)
    check_files(source, "data.train", [index for index in chosen.tolist() if index in own])
    if not data.masks or not isinstance(source, StoredSource) or "maskless" not in source.table:
        return
    maskless = source.table["maskless"][chosen]
    if maskless.any():
        raise ValueError(
            f"data.train: expected a segmentation of every annotation, {maskless.sum()} annotations of "
            f"{(maskless > 0).sum()} images have none; set data.masks=false and take a model without masks; {CHECK}"
        )
