"""From settings to an open data source."""

from jaxdet.data.records import Source
from jaxdet.data.scenes.write import cached_scenes
from jaxdet.data.settings import CocoFolder, Scenes, SourceSettings
from jaxdet.data.sources.coco import open_coco
from jaxdet.data.sources.tfds import open_tfds


def open_source(settings: SourceSettings | None) -> Source:
    """Open a data source; generated scenes are written first where they are not there yet.

    Raises:
        ValueError: no settings, or what they name cannot be read or has no images.
    """
    if settings is None:
        raise ValueError("data: expected a source (CocoFolder, Tfds or Scenes), got None; set data.train or data.val")
    source = _opened(settings)
    if not len(source):
        raise ValueError(f"data: expected images, got none in {settings}")
    return source


def _opened(settings: SourceSettings) -> Source:
    if isinstance(settings, CocoFolder):
        return open_coco(settings.images, settings.annotations, settings.stuff)
    if isinstance(settings, Scenes):
        folder = cached_scenes(settings)
        maps = str(folder / "semantic") if settings.semantic else None
        return open_coco(str(folder / "images"), str(folder / f"instances_{settings.split}.json"), maps)
    return open_tfds(settings.directory, settings.split)
