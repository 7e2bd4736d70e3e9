"""Which layout a folder has."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxdet.data.convert.folder import Folder
from jaxdet.data.convert.found import Contents, Unusable
from jaxdet.data.convert.readers import cvat, labelme, masks, supervisely, voc, yolo


@dataclass(frozen=True)
class Layout:
    """A format that can be read."""

    name: str  #: as ``--format`` takes it
    signs: Callable[[Folder], tuple[bool, str]]  #: whether a folder has it, and by what one sees it
    read: Callable[[Folder], Contents]


LAYOUTS = (
    Layout("yolo", yolo.signs, yolo.read),
    Layout("voc", voc.signs, voc.read),
    Layout("labelme", labelme.signs, labelme.read),
    Layout("cvat", cvat.signs, cvat.read),
    Layout("supervisely", supervisely.signs, supervisely.read),
    Layout("masks", masks.signs, masks.read),
)
NAMES = tuple(layout.name for layout in LAYOUTS)


@dataclass(frozen=True)
class Recognised:
    """What a folder was taken for."""

    layout: Layout
    why: str  #: by what it is seen
    others: dict[str, str]  #: why it is none of the others, by their names


def recognise(folder: Folder) -> Recognised:
    """Tell the layout of a folder.

    Raises:
        ValueError: it has none of them, or more than one; the message says what was looked for, or seen.
    """
    signs = {layout.name: layout.signs(folder) for layout in LAYOUTS}
    found = [layout for layout in LAYOUTS if signs[layout.name][0]]
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, (_, why) in signs.items())
        raise ValueError(
            f"{folder.root}: expected a data set as {', '.join(NAMES)}, got none of them ({reasons}); name the folder "
            "that holds images and annotations, or prepare COCO's json and run `jaxdet data check`"
        )
    if len(found) > 1:
        seen = "; ".join(f"{layout.name}: {signs[layout.name][1]}" for layout in found)
        raise ValueError(f"{folder.root}: expected one layout, got signs of several ({seen}); choose one by --format")
    others = {name: why for name, (its, why) in signs.items() if not its}
    return Recognised(found[0], signs[found[0].name][1], others)


def named(folder: Folder, name: str) -> Recognised:
    """The layout of a name, whatever the folder looks like.

    Raises:
        ValueError: there is no such layout, or what it cannot do without is not there.
    """
    layout = next((layout for layout in LAYOUTS if layout.name == name), None)
    if layout is None:
        raise ValueError(f"--format: expected one of {', '.join(NAMES)}, got {name}")
    fits, why = layout.signs(folder)
    if not fits:
        raise ValueError(f"{folder.root}: expected a data set as {name}, which --format names, got {why}")
    return Recognised(layout, why, {})


def foreign(path: Path) -> str | None:
    """The name of the layout that a folder seems to have; None if it has none or several, or is no folder."""
    if not path.is_dir():
        return None
    try:
        return recognise(Folder(path)).layout.name
    except (ValueError, Unusable):
        return None
