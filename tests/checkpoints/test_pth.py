"""Files that torch wrote (fixtures/make_fixtures.py), read without it."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxdet.checkpoints.files.pth import read_pth
from jaxdet.checkpoints.files.weights import read_weights

FIXTURES = Path(__file__).parent / "fixtures"
KINDS = ("zip", "stream")


def numbers(*shape, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype(kind):
    content = read_pth(FIXTURES / f"tensors_{kind}.pth")
    dtypes = {name.removeprefix("dtype."): value for name, value in content.items() if name.startswith("dtype.")}
    assert len(dtypes) == 11
    for name, value in dtypes.items():
        expected = numbers(2, 3, dtype=ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name))
        assert value.dtype == expected.dtype
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_views_of_a_storage(kind):
    content = read_pth(FIXTURES / f"tensors_{kind}.pth")
    whole = numbers(4, 6)
    np.testing.assert_array_equal(content["transposed"], whole.T)
    np.testing.assert_array_equal(content["strided"], whole[1::2, ::3])
    np.testing.assert_array_equal(content["offset"], whole[2, 3:])
    np.testing.assert_array_equal(content["shared"], whole)
    np.testing.assert_array_equal(content["expanded"], np.repeat(np.arange(3)[:, None], 4, axis=1))
    assert np.shares_memory(content["shared"], content["transposed"])
    assert content["scalar"].shape == ()
    assert content["scalar"] == 5
    assert content["empty"].shape == (0, 4)
    np.testing.assert_array_equal(content["parameter"], numbers(2))
    np.testing.assert_array_equal(content["layer.weight"], numbers(3, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_checkpoint(kind):
    content = read_pth(FIXTURES / f"training_{kind}.pth")
    assert content["meta"] == {"epoch": 3, "classes": ("cat", "dog"), "size": (1, 2), "raw": b"\xff\x00"}
    assert content["optimizer"]["param_groups"][0]["momentum"] == 0.9
    weights = read_weights(FIXTURES / f"training_{kind}.pth")
    assert set(weights) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    np.testing.assert_array_equal(weights["0.weight"], numbers(3, 2, 1, 1))


def test_types_without_a_storage_class():
    content = read_pth(FIXTURES / "new_dtypes_zip.pth")
    assert content["float8"].dtype == ml_dtypes.float8_e4m3fn
    np.testing.assert_array_equal(content["float8"].astype(np.float32), numbers(4))
    np.testing.assert_array_equal(content["uint16"], numbers(3, dtype=np.uint16))


@pytest.mark.parametrize(("name", "reason"), [
    ("whole_module_zip.pth", "objects of classes of its own .*save the bare state dict"),
    ("whole_module_stream.pth", "objects of classes of its own .*save the bare state dict"),
    ("torchscript.pt", "TorchScript archive, which is code"),
    ("sparse_zip.pth", r"torch\._utils\._rebuild_sparse_tensor, which is refused"),
])  # fmt: skip
def test_what_is_no_state_dict_is_refused_with_a_reason(name, reason):
    with pytest.raises(ValueError, match=rf"{name}: .*{reason}"):
        read_weights(FIXTURES / name)


def test_safetensors_and_npz_by_content(tmp_path):
    arrays = {"a.weight": numbers(2, 3), "b": numbers(4, dtype=np.float16), "c": numbers(2, dtype=ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "weights.bin")
    np.savez(tmp_path / "weights.npz", **{k: v for k, v in arrays.items() if k != "c"})
    (tmp_path / "weights.npz").rename(tmp_path / "weights.pth")
    for name, count in (("weights.bin", 3), ("weights.pth", 2)):
        loaded = read_weights(tmp_path / name)
        assert len(loaded) == count
        for key, value in loaded.items():
            assert value.dtype == arrays[key].dtype
            np.testing.assert_array_equal(value, arrays[key])


def test_files_of_other_kinds(tmp_path):
    def refused(content, reason):
        path = tmp_path / "weights.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"weights\.pth: .*{reason}"):
            read_weights(path)

    refused(b"", "the file is empty")
    refused(b"\x89HDF\r\n\x1a\n" + bytes(50), r"neither torch's \.pth, nor safetensors, nor \.npz")
    refused(b"\x10\x00\x00\x00\x00\x00\x00\x00{broken", "a broken safetensors file")
    refused(b"\xff" * 8 + b"{", "a broken safetensors file")
    refused(b"PK\x03\x04broken", "a broken archive")
    refused(b"\x80\x02K\x01.", "not one that torch.save wrote")
    with pytest.raises(FileNotFoundError):
        read_weights(tmp_path / "missing.pth")


def test_npz_with_pickled_objects_is_refused(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"objects\.npz: .*pickle"):
        read_weights(tmp_path / "objects.npz")
