"""Files made to do harm: each is refused by a ValueError, and nothing in any of them has run."""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from jaxdet.checkpoints.files import restricted_pickle
from jaxdet.checkpoints.files.pth import MAGIC, PROTOCOL, read_pth
from tests.checkpoints.pickles import FLOATS, ORDERED_DICT, TENSOR, archive, integers, program, storage, tensor, unicode

FIXTURES = Path(__file__).parent / "fixtures"


def zipped(tmp_path, data, storages=(), extra=(), compression=zipfile.ZIP_STORED):
    path = tmp_path / "hostile.pth"
    path.write_bytes(archive(data, storages, extra, compression))
    return path


def streamed(tmp_path, data, tail=b""):
    head = [pickle.dumps(v, 2) for v in (MAGIC, PROTOCOL, {"little_endian": True})]
    path = tmp_path / "hostile.pth"
    path.write_bytes(b"".join(head) + data + tail)
    return path


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def refused(path, reason=None):
    with pytest.raises(ValueError, match=reason) as caught:
        read_pth(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_hand_made_tensor_is_read(tmp_path):
    """So that the refusals below are of what was made wrong, not of the way these files are made."""
    np.testing.assert_array_equal(read_pth(zipped(tmp_path, program(tensor()), FLOATS)), [[0, 1], [2, 3]])
    in_stream = tensor(what=storage(view=b"N"))
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + FLOATS["0"]
    np.testing.assert_array_equal(read_pth(streamed(tmp_path, program(in_stream), tail)), [[0, 1], [2, 3]])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("write", [zipped, streamed])
def test_calls_are_refused_and_do_not_happen(tmp_path, protocol, write):
    canary = tmp_path / "canary"
    calls = [
        Call(os.system, f"touch {canary}"),
        Call(os.mkdir, str(canary)),
        Call(eval, f"open({str(canary)!r}, 'w')"),
        Call(exec, f"open({str(canary)!r}, 'w')"),
        Call(open, str(canary), "w"),
        Call(__import__, "os"),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(list, Call(map, os.mkdir, [str(canary)])),
        Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(canary)))),
        Call(bytearray, 1 << 40),
    ]
    for call in calls:
        refused(write(tmp_path, pickle.dumps({"weight": call}, protocol)), "which is refused")
        assert not canary.exists()


@pytest.mark.parametrize("module_and_name", [
    ("torch.storage", "_load_from_bytes"),
    ("torch.serialization", "load"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch._utils", "_rebuild_tensor_v2.__class__"),
    ("collections", "OrderedDict.__init__.__globals__"),
    ("collections", "namedtuple"),
    ("collections", "_sys.modules"),
    ("jaxdet.checkpoints.files.restricted_pickle", "load"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy", "load"),
    ("functools", "partial"),
    ("operator", "attrgetter"),
    ("builtins", "getattr"),
    ("__builtin__", "eval"),
    ("os", "system"),
])  # fmt: skip
def test_names_are_refused(tmp_path, module_and_name):
    module, name = module_and_name
    by_stack = b"\x80\x04" + unicode(module) + unicode(name) + b"\x93."
    refused(zipped(tmp_path, by_stack), "which is refused")
    refused(zipped(tmp_path, program(f"c{module}\n{name}\n".encode())), "which is refused")


def test_nothing_is_imported(tmp_path):
    (tmp_path / "sideeffect.py").write_text("raise SystemExit('imported')")
    refused(zipped(tmp_path, program(b"csideeffect\nx\n")), r"sideeffect\.x, which is refused")


@pytest.mark.parametrize("opcode", [
    b"(ios\nsystem\n",  # INST
    b"(cos\nsystem\nX\x01\x00\x00\x00xo",  # OBJ
    ORDERED_DICT + b")\x81",  # NEWOBJ
    b"\x82\x01",  # EXT1
    b"Pstorage\n",  # PERSID
])  # fmt: skip
def test_opcodes_that_torch_never_writes(tmp_path, opcode):
    refused(zipped(tmp_path, program(opcode)), "objects of classes of its own")


@pytest.mark.parametrize("target", [TENSOR, ORDERED_DICT, b"ctorch\nFloatStorage\n", b"ctorch\nTensor\n", storage()])
@pytest.mark.parametrize("name", ["__call__", "__defaults__", "_function", "numpy", "x"])
def test_allowed_names_cannot_be_changed(tmp_path, target, name):
    slots = b"N}" + unicode(name) + b"K\x01s\x86b"  # BUILD with (None, {name: 1}): setattr
    attributes = b"}" + unicode(name) + b"K\x01sb"  # BUILD with {name: 1}: update of __dict__
    for build in (slots, attributes):
        refused(zipped(tmp_path, program(target + build), FLOATS), "a broken pickle")
    assert read_pth(zipped(tmp_path, program(tensor()), FLOATS)).shape == (2, 2)


@pytest.mark.parametrize(("body", "reason"), [
    (tensor(offset=1), "reaches element 4 of a storage with 4"),
    (tensor(size=(3, 2)), "reaches element 5"),
    (tensor(stride=(3, 1)), "reaches element 4"),
    (tensor(stride=(-1, 1)), "strides"),
    (tensor(offset=-1), "offset -1"),
    (tensor(size=(2, -2)), "size"),
    (tensor(size=(2,)), "size"),
    (tensor(size=(1,) * 33, stride=(0,) * 33), "size"),
    (tensor(size=(1 << 30, 1 << 30), stride=(0, 0)), "elements on a storage of 4"),
    (tensor(size=(1 << 30, 0), stride=(0, 0), what=b"N"), "without a storage"),
    (tensor(what=b"K\x01"), "without a storage"),
    (tensor(rest=b"}" + unicode("conj") + b"\x88s"), "the flags"),
    (tensor(what=storage(key="1")), "'1' is not in the archive"),
    (tensor(what=storage(key="../data.pkl")), "the key"),
    (tensor(what=storage(key="")), "the key"),
    (tensor(what=storage(count=5)), "16 bytes, expected 5 elements"),
    (tensor(what=storage(count=-4)), "-4 elements"),
    (tensor(what=storage(kind="DoubleStorage")), "16 bytes, expected 4 elements of float64"),
    (tensor(what=storage(view=b"N")), "a storage described by"),
    (b"(" + unicode("module") + b"NtQ", "whole pickled modules"),
    (b"NQ", "expected a storage"),
    (b"K\x01Q", "expected a storage"),
    (b"ctorch._tensor\n_rebuild_from_type_v2\n(NN)NtR", "made by an unknown function"),
    (b"ctorch._utils\n_rebuild_tensor_v3\n(" + storage() + b"K\x00" + integers(2) + integers(1) + b"\x89NNtR",
     "an unknown type"),
    (b"c_codecs\nencode\n(" + unicode("x") + unicode("idna") + b"tR", "encoded as 'idna'"),
])  # fmt: skip
def test_tensors_outside_of_their_storage(tmp_path, body, reason):
    refused(zipped(tmp_path, program(body), FLOATS), reason)


def test_empty_tensors_need_no_bytes(tmp_path):
    body = tensor(size=(1 << 30, 0), stride=(1, 1), what=storage(count=0))
    assert read_pth(zipped(tmp_path, program(body), {"0": b""})).shape == (1 << 30, 0)


def test_memory_bombs(tmp_path):
    refused(zipped(tmp_path, program(b"Nr\xff\xff\xff\x7f")), "memo slot 2147483647 after")
    refused(zipped(tmp_path, program(b"X\xff\xff\xff\x7fabc")))
    refused(streamed(tmp_path, program(tensor(what=storage(count=1 << 30, view=b"N")))), "larger than the file")
    many = b"(" + b"".join(tensor(what=storage(key=str(i), count=200, view=b"N")) for i in range(90)) + b"t"
    refused(streamed(tmp_path, program(many)), "larger than the file")


@pytest.mark.parametrize("body", [
    b"}" + b")" + b"\x85" * 500_000 + b"K\x01s",  # a key to hash: the stack of the C code overflows
    b"}" + b")" + b"q\x00\x85" * 500_000 + b"K\x01s",
    b"}" + b"K\x01" + b"K\x01\x86" * 500_000 + b"K\x01s",
    b"}" + b")" + b"q\x000h\x00\x85" * 500_000 + b"K\x01s",  # through the memo
    b")" + b"\x85" * 500_000 + b"Q",
    b"]" * 500_000 + b"a" * 499_999,
])  # fmt: skip
def test_deep_nesting(tmp_path, body):
    refused(zipped(tmp_path, program(body)), "nested deeper than 200 levels")


def test_wide_is_not_deep(tmp_path):
    wide = {"state_dict": {str(i): (i, [i]) for i in range(5000)}, "list": [(i,) for i in range(5000)]}
    for protocol in range(2, 5):
        assert read_pth(zipped(tmp_path, pickle.dumps(wide, protocol))) == wide


@pytest.mark.parametrize("body", [b"0", b"\x85", b"h\x05", b"t", b"s", b"q\x00"])
def test_programs_that_run_out_of_stack(tmp_path, body):
    refused(zipped(tmp_path, program(body)), "a broken pickle")


def test_streams_whose_storages_do_not_match(tmp_path):
    body = program(tensor(what=storage(view=b"N")))
    keys, data = pickle.dumps(["0"], 2), struct.pack("<q", 4) + FLOATS["0"]
    refused(streamed(tmp_path, body, pickle.dumps(["1"], 2) + data), "list of storages")
    refused(streamed(tmp_path, body, pickle.dumps(["0", "0"], 2) + data), "list of storages")
    refused(streamed(tmp_path, body, pickle.dumps(Call(os.getcwd), 2) + data), "which is refused")
    refused(streamed(tmp_path, body, keys + data[:-1]), "ends inside storage '0'")
    refused(streamed(tmp_path, body, keys + struct.pack("<q", 5) + FLOATS["0"]), "another number of elements")
    refused(streamed(tmp_path, body, keys + data + b"x"), "more after its last storage")
    two = b"(" + tensor(what=storage(view=b"N")) + tensor(what=storage("LongStorage", view=b"N")) + b"t"
    refused(streamed(tmp_path, program(two), keys + data), "two different ones")
    part = b"(" + unicode("1") + b"K\x03K\x02t"
    refused(streamed(tmp_path, program(tensor(what=storage(view=part))), keys + data), "element 5 of 4")


def test_a_part_of_a_storage_in_a_stream(tmp_path):
    part = b"(" + unicode("1") + b"K\x01K\x02t"
    body = program(tensor(size=(2,), stride=(1,), what=storage(view=part)))
    tail = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + FLOATS["0"]
    np.testing.assert_array_equal(read_pth(streamed(tmp_path, body, tail)), [1, 2])


def test_archives_that_are_not_torchs(tmp_path):
    body = program(tensor())
    refused(zipped(tmp_path, body, FLOATS, [("../../outside", b"")]), "outside of itself")
    refused(zipped(tmp_path, body, FLOATS, [("/outside", b"")]), "outside of itself")
    refused(zipped(tmp_path, body, FLOATS, [("archive\\..\\outside", b"")]), "outside of itself")
    refused(zipped(tmp_path, body, FLOATS, [("other/data.pkl", body)]), "2 files")
    refused(zipped(tmp_path, body, FLOATS, [("archive/byteorder", b"big")]), "big-endian")
    refused(zipped(tmp_path, body, FLOATS, compression=zipfile.ZIP_DEFLATED), "compressed or encrypted")
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = zipped(tmp_path, body, FLOATS, [("archive/data.pkl", program(b"N"))])
    refused(path, "twice")
    refused(zipped(tmp_path, body + b"N.", FLOATS), "bytes after the end")


@pytest.mark.parametrize("name", ["tensors_zip.pth", "tensors_stream.pth"])
def test_truncated_files(tmp_path, name):
    content = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    for length in range(4, len(content), 13):
        path.write_bytes(content[:length])
        refused(path)


@pytest.mark.parametrize("name", ["tensors_zip.pth", "tensors_stream.pth"])
def test_damaged_files_give_arrays_or_a_clear_error(tmp_path, name):
    content = (FIXTURES / name).read_bytes()
    path = tmp_path / name
    random = np.random.default_rng(0)
    for position in random.integers(4, len(content), 300):
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            read_pth(path)
        except ValueError as error:
            assert name in str(error)  # noqa: PT017 - most, but not all, damage is found


def test_a_tensor_where_none_belongs():
    with pytest.raises(ValueError, match="a tensor where none belongs"):
        restricted_pickle.load(io.BytesIO(program(tensor())))
