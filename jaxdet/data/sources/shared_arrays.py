"""Arrays that several processes read without each holding a copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jaxdet.runtime.files import ScratchFolder


class SharedArrays(Mapping[str, NDArray[Any]]):
    """Named arrays in memory-mapped temporary files.

    Pickling writes the folder's name only, so a worker process costs no memory beyond the pages it touches, which
    the operating system shares.  The files go when the object that wrote them goes.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._scratch: ScratchFolder | None = ScratchFolder()
        self._folder = str(self._scratch.path)
        for name, array in arrays.items():
            np.save(Path(self._folder) / f"{name}.npy", array)
        self._arrays = _mapped(self._folder)

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __getstate__(self) -> str:
        return self._folder

    def __setstate__(self, folder: str) -> None:
        self._scratch = None  # it is another's
        self._folder = folder
        self._arrays = _mapped(folder)


def _mapped(folder: str) -> dict[str, NDArray[Any]]:
    paths = sorted(Path(folder).glob("*.npy"))
    return {path.stem: _load(path) for path in paths}


def _load(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.load(path, mmap_mode="r")
    return array


def pack_texts(texts: list[bytes]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Join byte strings into one array ``[total]`` and the offsets ``[n + 1]`` at which each begins."""
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    return np.frombuffer(b"".join(texts), np.uint8), offsets


def unpack_text(joined: NDArray[np.uint8], offsets: NDArray[np.int64], index: int) -> bytes:
    """The byte string number ``index`` of ``pack_texts``."""
    return joined[offsets[index] : offsets[index + 1]].tobytes()
