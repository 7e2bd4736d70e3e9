"""Bad weight files and bad run folders: good ones, and the ways to spoil them."""

import functools
import io
import json
import struct
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import save

from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.config import load_config, to_data
from tests.fuzz import torch_files
from tests.fuzz.mutations import as_json, spoilt_bytes, spoilt_tree
from tests.fuzz.torch_files import state
from tests.fuzz.worker import Files, read


def _file(name: str) -> Any:
    return lambda content: {name: content}


@functools.cache
def npz(compressed: bool = False) -> bytes:
    """The weights as NumPy writes them."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **state())
    return buffer.getvalue()


@functools.cache
def safetensors() -> bytes:
    """The weights as safetensors."""
    return save(state())


@functools.cache
def run() -> Files:
    """A run folder with a real config and a few weights."""
    config = to_data(load_config(str(Path(__file__).parents[2] / "configs" / "mask_rcnn_r18_fpn_small.py")))
    metadata = {"version": "0.1.0", "config": config, "categories": [{"id": 3, "name": "cat"}]}
    with tempfile.TemporaryDirectory() as folder:
        with CheckpointStore(folder) as store:
            store.save(7, {"variables": {"params": {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}}, metadata)
        # A stranger leaves the checksums out, or writes new ones.
        files = {f"run/{name}": content for name, content in read(Path(folder)).items()}
        return {name: content for name, content in files.items() if not name.endswith("checksums.json")}


@st.composite
def _run_bytes(draw: st.DrawFn) -> Files:
    files = run()
    name = draw(st.sampled_from(sorted(files)))
    content = files[name]
    assert isinstance(content, bytes)
    what = draw(st.sampled_from(["spoilt", "spoilt", "spoilt", "empty", "gone", "pipe", "link"]))
    if what == "gone":
        return {other: content for other, content in files.items() if other != name}
    changed = {"empty": b"", "pipe": None, "link": "/dev/zero"}
    return files | {name: draw(spoilt_bytes(content)) if what == "spoilt" else changed[what]}


@st.composite
def _run_json(draw: st.DrawFn) -> Files:
    """The trees of the files that are json: metadata, and the shapes and types that arrays are said to have."""
    files = run()
    trees = {name: json.loads(content) for name, content in files.items() if _is_json(content)}
    name = draw(st.sampled_from(sorted(trees)))
    return files | {name: as_json(draw(spoilt_tree(trees[name])))}


@st.composite
def _run_config(draw: st.DrawFn) -> Files:
    files = run()
    name = next(name for name in files if name.endswith("metadata/metadata"))
    metadata = json.loads(files[name] or b"")
    classes = st.sampled_from(
        ["os.system", "jaxdet.data.settings.Data", "jaxdet.experiment.Experiment", "subprocess.Popen"]
    )
    if draw(st.booleans()):
        metadata["config"] = draw(spoilt_tree(metadata["config"]))
    else:
        metadata["config"] = draw(spoilt_tree(metadata["config"], st.one_of(classes, st.integers(), st.none())))
    return files | {name: as_json(metadata)}


def _is_json(content: Any) -> bool:
    try:
        return isinstance(json.loads(content), dict)
    except (ValueError, TypeError):
        return False


@st.composite
def _safetensors_header(draw: st.DrawFn) -> Files:
    content = safetensors()
    (length,) = struct.unpack("<Q", content[:8])
    header = as_json(draw(spoilt_tree(json.loads(content[8 : 8 + length]))))
    said = draw(st.sampled_from([len(header), len(header), len(header), 2**40, 2**63, 0, len(header) - 1]))
    return {"weights": struct.pack("<Q", said) + header + content[8 + length :]}


_SHAPE_TEXTS = st.one_of(
    st.lists(st.integers(-3, 2**40), max_size=4).map(lambda shape: repr(tuple(shape))),
    st.sampled_from(["(3,)", "()", "3", "None", "(True,)", "(1.5,)", "(" * 500, "__import__('os').mkdir('x')"]),
)
_TYPE_TEXTS = st.sampled_from(
    [
        "'<f4'",
        "'|O'",
        "'<U9999999'",
        "'<M8[ns]'",
        "[('a','<f4')]",
        "'<f999'",
        "'|V0'",
        "'|V2'",
        "('<f4',(1000,))",
        "None",
    ]
)


_CONTENTS = [(0, 0), (12, 0), (0, 8), (12, 8), (12, 14), (1 << 20, 8), (1 << 26, 8)]  # bytes, and a method of zipfile


@st.composite
def _npz_headers(draw: st.DrawFn) -> Files:
    """Arrays whose headers lie, in archives whose tables are right."""
    text = f"{{'descr': {draw(_TYPE_TEXTS)}, 'fortran_order': {draw(st.sampled_from(['False', 'True', '3']))}, "
    header = (text + f"'shape': {draw(_SHAPE_TEXTS)}, }}").encode() + b"\n"
    version = draw(st.sampled_from([b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"]))
    size = struct.pack("<H" if version == b"\x01\x00" else "<I", len(header))
    length, method = draw(st.sampled_from(_CONTENTS))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        archive.writestr("backbone.conv1.weight.npy", b"\x93NUMPY" + version + size + header + bytes(length))
    return {"weights": buffer.getvalue()}


def valid() -> list[Files]:
    """One of each kind without fault."""
    files: list[Files] = [{"weights": content} for content in (torch_files.pth(), npz(), npz(True), safetensors())]
    return [*files, run()]


KINDS: dict[str, st.SearchStrategy[Files]] = {
    **torch_files.KINDS,
    "safetensors: bytes": st.deferred(lambda: spoilt_bytes(safetensors()).map(_file("weights"))),
    "safetensors: header": _safetensors_header(),
    "npz: bytes": st.deferred(lambda: st.booleans().flatmap(lambda c: spoilt_bytes(npz(c))).map(_file("weights"))),
    "npz: headers": _npz_headers(),
    "run: bytes": _run_bytes(),
    "run: json": _run_json(),
    "run: config": _run_config(),
}
