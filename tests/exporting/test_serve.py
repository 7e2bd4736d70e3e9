"""The server of examples/serve, asked as over HTTP."""

import io
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import jaxdet
from jaxdet.exporting import loader
from tests.exporting.halves import grey, halves
from tests.modules import module_at

APP = Path(__file__).parents[2] / "examples" / "serve" / "app.py"
LOADER = Path(loader.__file__).read_text()


def encoded(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def app() -> Any:
    pytest.importorskip("flatbuffers", reason="of the extra `export`")
    pytest.importorskip("fastapi", reason="of the extra `serve`")
    pytest.importorskip("uvicorn", reason="of the extra `serve`")
    pytest.importorskip("httpx", reason="by which fastapi's test client asks")
    return module_at(APP)


@pytest.fixture(scope="module")
def client(app: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Of a model for images that are wider than high."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # starlette 1.x names the successor of httpx as soon as it is imported
        from fastapi.testclient import TestClient

    folder = tmp_path_factory.mktemp("served") / "halves"
    jaxdet.export(halves(), folder, image=(32, 64))
    with TestClient(app.create_app(folder, most_bytes=20_000, most_pixels=5_000)) as client:
        yield client


def test_without_its_packages_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit, match=r"pip install 'jaxdet\[serve\]' \(.*uvicorn"):
        module_at(APP)


def test_health(client: Any) -> None:
    answer = client.get("/health")
    assert answer.status_code == 200
    assert answer.json()["status"] == "ok"
    assert answer.json()["categories"] == ["dog", "cat"]


def test_detections(client: Any) -> None:
    answer = client.post("/detect", content=encoded(grey(255, (20, 60))))
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert (said["height"], said["width"]) == (20, 60)
    (one,) = said["detections"]
    assert (one["category"], one["category_id"], one["score"]) == ("cat", 90, 1)
    np.testing.assert_allclose(one["bbox"], [0, 0, 30, 20], atol=1e-3)
    assert one["segmentation"]["size"] == [20, 60]
    assert len(client.post("/detect?score_threshold=0.1", content=encoded(grey(255))).json()["detections"]) == 2


def test_a_picture(client: Any) -> None:
    image = grey(255, (20, 60))
    answer = client.post("/picture", content=encoded(image))
    assert answer.headers["content-type"] == "image/png"
    changed = (np.asarray(Image.open(io.BytesIO(answer.content))).astype(int) - image).any(-1)
    assert changed.shape == (20, 60)
    assert changed[12:, 1:29].mean() > 0.9
    assert not changed[12:, 33:].any()


@pytest.mark.parametrize("path", ["/detect", "/picture"])
def test_what_is_refused(client: Any, path: str) -> None:
    whole = encoded(np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8))
    for content, status, message in (
        (b"", 400, "expected the bytes of an image"),
        (b"no picture", 400, "expected the bytes of an image"),
        (whole[: len(whole) // 2], 422, "expected a whole image file"),
        (bytes(20_001), 413, "at most 20000 bytes"),
        (encoded(grey(0, (71, 71))), 413, "at most 5000 pixels, got 71 x 71"),
        (encoded(grey(0, (64, 32))), 422, "needs a program for 64 x 32"),
    ):
        answer = client.post(path, content=content)
        assert (answer.status_code, message in answer.json()["detail"]) == (status, True), answer.text
    assert client.post(f"{path}?score_threshold=2", content=whole).status_code == 422
    assert client.get(path).status_code == 405
    assert client.post(path, content=whole).status_code == 200


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "it has no export.json and no load.py"),
        ({"load.py": "raise RuntimeError('somebody else's')"}, "it has no export.json"),
        ({"export.json": "{}"}, "it has no load.py"),
        ({"export.json": "{}", "load.py": LOADER}, f"expected format {loader.FORMAT}, got None"),
    ],
)
def test_a_folder_that_cannot_be_served(
    app: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    assert app.main([str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert str(tmp_path) in line
    assert said in line
