"""A checkpoint to give away: weights, config and categories, without what only its run has a use for.

    python -m jaxdet.checkpoints.publish runs/mine weights/mine

The folder that it writes is read like any checkpoint, by evaluation, prediction and ``run.init_from``, and is less than
half as large as that of the run: the optimizer's state is left out.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from jaxdet.checkpoints.files.bounds import check_files
from jaxdet.checkpoints.reading import METADATA, VARIABLES, damages, find_step, read_metadata, refuse, write_checksums
from jaxdet.runtime.files import check_local, write_json

_KEPT = ("format", "step", "version", "config", "trusted", "categories")  #: of the metadata


def publish(checkpoint: str | PathLike[str], target: str | PathLike[str]) -> Path:
    """Copy a checkpoint without the state of its optimizer.

    Args:
        checkpoint: a run folder, of which the newest checkpoint is taken, or the folder of one step.
        target: the folder to write, which does not exist yet; it is there completely or not at all.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is nothing at ``checkpoint``.
        DamagedCheckpoint: weights or metadata are not what was written.
        ValueError: it is no checkpoint, or ``target`` exists.
    """
    source, target = find_step(checkpoint), Path(target)
    check_local(target, "the folder to write")
    if target.exists():
        raise ValueError(f"{target} exists: expected a folder that is not there yet")
    check_files(source)
    refuse(source, damages(source, (VARIABLES, METADATA)))
    metadata = read_metadata(source)
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed process has left
    shutil.copytree(source / VARIABLES, scratch / VARIABLES)
    write_json(scratch / METADATA / METADATA, {key: metadata[key] for key in _KEPT if key in metadata}, indent=None)
    write_checksums(scratch)
    scratch.rename(target)
    return target


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, publish, say what was written; 1 with a message where the input is at fault."""
    title, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        description=title, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", help="run folder (its newest checkpoint is taken), or the folder of one step")
    parser.add_argument("target", help="folder to write")
    options = parser.parse_args(arguments)
    try:
        folder = publish(options.checkpoint, options.target)
    except (ValueError, OSError) as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB of weights, with the config (and the paths of data in it) and the categories")
    return 0


if __name__ == "__main__":
    sys.exit(main())
