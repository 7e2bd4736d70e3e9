"""Weight files and runs made to do harm, beside those of torch (``test_pth_hostile``)."""

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest

from jaxdet.checkpoints.files import bounds
from jaxdet.checkpoints.files.pth import read_pth
from jaxdet.checkpoints.files.weights import read_weights
from jaxdet.checkpoints.importing import import_weights
from jaxdet.checkpoints.names.table import plain_state
from jaxdet.checkpoints.reading import load
from jaxdet.checkpoints.store import CheckpointStore
from jaxdet.trained import load as load_trained
from tests.checkpoints.pickles import FLOATS, ORDERED_DICT, archive, program, tensor, unicode


def refused(path, reason, read=read_weights):
    with pytest.raises(ValueError, match=reason) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights"


def npy(header, data=b"", version=1):
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text + data


def npz(path, *members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def header(descr="'<f4'", shape="(3,)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


@pytest.mark.parametrize("version", [1, 2])
def test_the_hand_made_array_is_read(path, version):
    data = np.arange(6, dtype=np.float32).tobytes()
    content = npy(header(shape="(2, 3)", order="True"), data, version)
    np.testing.assert_array_equal(read_weights(npz(path, ("w.npy", content)))["w"], [[0, 2, 4], [1, 3, 5]])


def test_what_numpy_writes_is_read(path):
    arrays = {"a": np.arange(4.0), "b/c": np.ones((2, 0)), "d": np.float32(3), "e": np.asfortranarray(np.eye(3))}
    for write in (np.savez, np.savez_compressed):
        buffer = io.BytesIO()
        write(buffer, **arrays)
        path.write_bytes(buffer.getvalue())
        found = read_weights(path)
        assert set(found) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(("content", "reason"), [
    (npy(header(shape="(1099511627776,)")), "has 0 bytes, expected 4398046511104"),
    (npy(header(shape="(4,)"), bytes(12)), "has 12 bytes, expected 16"),
    (npy(header(shape="(-3, -1)"), bytes(12)), "has 12 bytes"),
    (npy(header(shape="(" * 500)), "broken header"),
    (npy(header(shape="__import__('os').mkdir('canary')")), "broken header"),
    (npy(header("'|O'"), bytes(24)), "expected numbers; objects would be a pickle"),
    (npy(header("[('a', '<f4')]"), bytes(12)), "expected numbers"),
    (npy(header("'<U9'"), bytes(12)), "expected numbers"),
    (npy(header(), bytes(12))[:20], "broken header"),
    (b"", "broken header"),
])  # fmt: skip
def test_arrays_that_are_not_what_they_say(path, content, reason):
    refused(npz(path, ("w.npy", content)), reason)


def test_objects_in_an_npz_do_not_run(path, tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    np.savez(tmp_path / "w.npz", w=np.array([Call()], dtype=object))
    refused(tmp_path / "w.npz", "objects would be a pickle")
    path.write_bytes(pickle.dumps({"w": Call()}))
    refused(path, "not one that torch.save wrote|which is refused")
    assert not (tmp_path / "canary").exists()


def test_zip_bombs(path, monkeypatch):
    monkeypatch.setattr(bounds, "_ALWAYS_ALLOWED", 1 << 10)
    bomb = npy(header(shape="(262144,)"), bytes(1 << 20))
    refused(npz(path, ("w.npy", bomb)), r"the archive's files have \d+ bytes, expected at most")
    refused(npz(path, ("w.npy", bomb), method=zipfile.ZIP_LZMA), "compressed or encrypted")  # a dictionary of gigabytes
    refused(npz(path, ("../w.npy", bomb)), "outside of itself")


@pytest.mark.parametrize("said", [
    {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
    {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}},
    {"w": {"dtype": "X9", "shape": [2], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}},
    {"w": {"dtype": "F32", "shape": [2**62, 0, 2**62], "data_offsets": [0, 0]}},
    {"w": 3}, [], "x",
])  # fmt: skip
def test_safetensors_that_lie(path, said):
    text = json.dumps(said).encode().ljust(200)
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    refused(path, "a broken safetensors file|neither torch's")


def test_what_is_no_regular_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_weights(tmp_path / "absent")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for name in ("pipe", "link"):
        refused(tmp_path / name, "expected a regular file")


def test_a_state_dict_that_holds_itself():
    state = {"a": 1}
    state["model"] = {"state_dict": state}
    with pytest.raises(ValueError, match="holds itself"):
        plain_state(state)


def test_prefixes_without_end():
    name = "module." * 200_000 + "weight"  # removed one by one, these would be copied for minutes
    assert list(plain_state({name: np.zeros(1)})) == ["weight"]
    assert list(plain_state({name: np.zeros(1), "module.bias": np.zeros(1)}))[1] == "bias"


@pytest.mark.parametrize("key", [
    b"K\x01\x85" + b"2\x86" * 90,  # (a, a), where a is (b, b) ..: to hash it takes 2^90 steps
    b")q\x000" + b"h\x00h\x00\x86q\x000" * 150 + b"h\x00h\x00\x86",
    b"ctorch\nSize\n]K\x01a\x85R",
    b"\x8a\x09" + b"\x01" * 9,  # an integer of 66 bits: thousands of them may have one hash
    ORDERED_DICT + b")R",
])  # fmt: skip
def test_keys_that_take_for_ever(path, key):
    pair = b"}" + key + b"K\x01"
    for body in (pair + b"s", b"}(" + key + b"K\x01u", b"(" + key + b"K\x01d", b"\x8f(" + key + b"\x90"):
        path.write_bytes(archive(program(body), FLOATS))
        refused(path, "a key that is neither a number of 64 bits nor a string")


def test_ordered_dicts_as_python_2_wrote_them(path):
    def content(items):
        return archive(program(ORDERED_DICT + pickle.dumps(items, 2)[2:-1] + b"\x85R"), FLOATS)

    path.write_bytes(content([["a", 1], [2, "b"]]))
    assert read_pth(path) == {"a": 1, 2: "b"}
    for key in (("a",), 2**70):
        path.write_bytes(content([[key, 1]]))
        refused(path, "a key that is neither a number of 64 bits nor a string")


def test_many_tensors_of_one_small_storage(path, monkeypatch):
    """Each of them may be torch's ``expand``, all of them become arrays of their own."""
    monkeypatch.setattr(bounds, "_ALWAYS_ALLOWED", 1 << 16)
    items = b"".join(unicode(f"w{i}") + tensor(size=(1000, 4), stride=(0, 1)) for i in range(20))
    path.write_bytes(archive(program(b"}(" + items + b"u"), FLOATS))
    refused(path, r"its arrays have 320000 bytes as float32, expected at most \d+ in \d+")


@pytest.mark.parametrize(("function", "argument"), [
    (b"ctorch\nSize\n", b"](" + b"K\x01" * 3000 + b"e"),
    (b"ctorch\ndevice\n", unicode("a" * 3000)),
    (b"c_codecs\nencode\n", unicode("a" * 3000)),
    (ORDERED_DICT, b"](" + b"K\x01K\x02\x86" * 3000 + b"e"),
])  # fmt: skip
def test_calls_that_copy_one_argument_again_and_again(path, function, argument):
    more = unicode("latin1") if b"codecs" in function else b""
    call = function + b"h\x01" + (more + b"\x86" if more else b"\x85") + b"R"
    body = argument + b"q\x010}(" + b"".join(unicode(f"x{i}") + call for i in range(100)) + b"u"
    path.write_bytes(archive(program(body), FLOATS))
    refused(path, "calls that copy more than the pickle holds", read_pth)


@pytest.fixture
def run(tmp_path):
    """The folder of a checkpoint without checksums, which a stranger would write anew."""
    metadata = {"config": {"class": "os.system"}, "categories": [{"id": 7, "name": "cat"}]}
    with CheckpointStore(tmp_path / "run") as store:
        store.save(1, {"variables": {"params": {"w": np.zeros(3000, np.float32)}}}, metadata)
    folder = tmp_path / "run" / "checkpoints" / "1"
    (folder / "checksums.json").unlink()
    return folder


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_pipes_and_links_in_a_checkpoint(run, make):
    make(run / "variables" / "more")
    refused(run, "expected a file or a folder in a checkpoint", load)
    (run / "variables" / "more").unlink()
    (run / "metadata" / "metadata").unlink()
    make(run / "metadata" / "metadata")
    refused(run, "expected a file or a folder in a checkpoint", load)


def test_arrays_that_are_larger_than_their_files(run, monkeypatch):
    assert load(run)[0]["params"]["w"].shape == (3000,)
    monkeypatch.setattr(bounds, "_ALWAYS_ALLOWED", 0)
    monkeypatch.setattr(bounds, "_MAX_EXPANSION", 1)
    refused(run, "its arrays have 12000 bytes, expected at most", load)


@pytest.mark.parametrize("categories", [{"id": 7}, [7], [{"name": "x"}], [{"id": "7", "name": "x"}], [{"id": None}]])
def test_categories_that_are_none(run, categories):
    file = run / "metadata" / "metadata"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"categories": categories}))
    refused(run, "expected categories", lambda path: import_weights(path, {}))


def test_metadata_that_is_none(run):
    refused(run, r"os\.system: config data may only name classes defined in jaxdet", load_trained)
    (run / "metadata" / "metadata").write_text("[" * 100_000)
    refused(run, "nested too deep", load)
