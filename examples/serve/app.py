"""Serve an exported model over HTTP: POST an image, get what is in it as JSON or as a picture.

    jaxdet export runs/demo exported
    python examples/serve/app.py exported --port 8000

    curl --data-binary @photo.jpg http://127.0.0.1:8000/detect
    curl --data-binary @photo.jpg "http://127.0.0.1:8000/picture?score_threshold=0.7" --output found.png
    curl http://127.0.0.1:8000/health

It needs fastapi, uvicorn and Pillow (``pip install 'jaxdet[serve]'``) and what the folder's ``load.py`` needs, and
nothing of jaxdet.  All programs are compiled before the first request is taken.  Images wait for each other, because
they share a device.  There is no authentication and no encryption: put it behind a server that has both.
"""

import argparse
import importlib.util
import io
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

try:
    import uvicorn
    from fastapi import FastAPI, HTTPException, Query, Request, Response
    from fastapi.concurrency import run_in_threadpool
    from PIL import Image, ImageDraw
except ImportError as error:
    raise SystemExit(f"this server needs fastapi, uvicorn and Pillow: pip install 'jaxdet[serve]' ({error})") from None

MOST_BYTES = 16 << 20  #: of an upload
MOST_PIXELS = 50_000_000  #: of the image in it, since a small file can hold a large one

Threshold = Annotated[float | None, Query(ge=0, le=1, description="least score; without it that of the export")]


def create_app(folder: Path, *, most_bytes: int = MOST_BYTES, most_pixels: int = MOST_PIXELS) -> FastAPI:
    """Compile all programs of an exported model, and make the application.

    Args:
        folder: what ``jaxdet export`` has written.
        most_bytes: largest upload; a larger one is answered with 413.
        most_pixels: largest image; a larger one is answered with 413.

    Raises:
        ValueError: it is no such folder, or the model in it cannot be used here.
    """
    loader = _loader_of(folder)
    model = loader.Model(folder)
    model.warm_up()
    turn = threading.Lock()
    app = FastAPI(title="jaxdet")

    @app.get("/health")
    def health() -> dict[str, Any]:
        categories = [category["name"] for category in model.categories]
        return {"status": "ok", "device": str(model.device), "categories": categories}

    @app.post("/detect")
    async def detect(request: Request, score_threshold: Threshold = None) -> dict[str, Any]:
        """What is found, as COCO's results, each with the name of its category."""
        pixels, found = await found_in(request, score_threshold)
        results = await run_in_threadpool(found.to_coco)
        named = [result | {"category": name} for result, name in zip(results, found.names, strict=True)]
        return {"height": pixels.shape[0], "width": pixels.shape[1], "detections": named}

    @app.post("/picture", response_class=Response)
    async def picture(request: Request, score_threshold: Threshold = None) -> Response:
        """The image with masks, boxes, names and scores drawn over it, as PNG."""
        pixels, found = await found_in(request, score_threshold)
        return Response(await run_in_threadpool(_drawn, pixels, found), media_type="image/png")

    async def found_in(request: Request, score_threshold: float | None) -> tuple[np.ndarray, Any]:
        encoded = await _body(request, most_bytes)
        return await run_in_threadpool(run, encoded, score_threshold)

    def run(encoded: bytes, score_threshold: float | None) -> tuple[np.ndarray, Any]:
        try:
            with Image.open(io.BytesIO(encoded)) as header:  # no pixels are decoded yet
                size = header.size
        except Exception as error:  # Pillow raises almost anything
            raise HTTPException(400, "expected the bytes of an image file as the body of the request") from error
        if size[0] * size[1] > most_pixels:
            raise HTTPException(413, f"expected an image of at most {most_pixels} pixels, got {size[0]} x {size[1]}")
        try:
            pixels = loader.read_image(encoded)
            with turn:
                return pixels, model(pixels, score_threshold=score_threshold)
        except ValueError as error:  # a broken file, or an image whose canvas the export has not
            raise HTTPException(422, str(error)) from error

    return app


async def _body(request: Request, most: int) -> bytes:
    """The body of a request, of which no more than ``most`` bytes are kept, whatever its header says."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise HTTPException(413, f"expected at most {most} bytes, got more")
    return bytes(body)


def _loader_of(folder: Path) -> Any:
    """The module ``load.py`` of an exported folder."""
    missing = [name for name in ("export.json", "load.py") if not (folder / name).is_file()]
    spec = importlib.util.spec_from_file_location("jaxdet_load", folder / "load.py")
    if missing or spec is None or spec.loader is None:
        raise ValueError(
            f"{folder}: expected a folder that jaxdet export has written, it has no {' and no '.join(missing)}"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _drawn(pixels: np.ndarray, found: Any) -> bytes:
    """A PNG of the image, with a colour for each class."""
    shown = pixels.astype(np.float32)
    colours = [np.random.default_rng(int(label)).integers(64, 256, 3) for label in found.labels]
    for mask, colour in zip(found.masks if found.masks is not None else (), colours, strict=False):
        shown[mask] = 0.5 * shown[mask] + 0.5 * colour
    image = Image.fromarray(shown.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for box, name, score, colour in zip(found.boxes, found.names, found.scores, colours, strict=True):
        draw.rectangle(box.tolist(), outline=tuple(colour.tolist()))
        draw.text(box[:2].tolist(), f"{name} {score:.2f}", fill=tuple(colour.tolist()))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def main(words: Sequence[str] | None = None) -> int:
    """Parse, and serve until the process is stopped; 1 with a message where the folder cannot be served."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what jaxdet export has written")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; 0.0.0.0 for all")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args(words)
    try:
        app = create_app(options.folder)
    except (ValueError, ImportError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    uvicorn.run(app, host=options.host, port=options.port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
