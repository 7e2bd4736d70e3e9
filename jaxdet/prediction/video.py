"""Prediction of videos: what is found in each frame, drawn into it, as a video again."""

from collections.abc import Callable, Iterator
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from jaxdet.prediction.predictor import Predictor
from jaxdet.runtime.files import replacing

SUFFIXES = frozenset((".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"))
_CODECS = {".avi": "MJPG"}  #: FourCC of what is written; MPEG-4 in other containers
_RATE = 25.0  #: frames a second, where a file does not say it


def is_video(path: str | PathLike[str]) -> bool:
    """Whether a path ends as that of a video does."""
    return Path(path).suffix.lower() in SUFFIXES


def frames(path: str | PathLike[str]) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video, ``[H, W, 3]`` uint8 RGB, which `Predictor.stream` takes.

    Raises:
        ValueError: it cannot be read, or has no frame.
    """
    video = _opened(path)
    try:
        while True:
            more, frame = video.read()
            if not more:
                return
            yield np.ascontiguousarray(frame[..., ::-1])
    finally:
        video.release()


def predict_video(
    predictor: Predictor,
    path: str | PathLike[str],
    out: str | PathLike[str],
    *,
    score_threshold: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Draw what is found into each frame of a video; sound is left out.

    Args:
        predictor: the model.
        path: a video that OpenCV reads.
        out: file to write, ``.mp4`` or ``.avi``, as long and as fast as the video.
        score_threshold: detections below it are left out; None: the predictor's.
        progress: called with the number of frames that are done, and of all as the file says it.

    Returns:
        How many frames there were.

    Raises:
        ValueError: the video cannot be read, or one of that name cannot be written.
    """
    video = _opened(path)
    rate, count = video.get(cv2.CAP_PROP_FPS) or _RATE, int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    video.release()
    done = 0
    with replacing(out) as place:
        writer = None
        try:
            for found in predictor.stream(frames(path), score_threshold=score_threshold):
                writer = writer or _writer(place, Path(out).suffix.lower(), rate, found.hw)
                writer.write(np.ascontiguousarray(found.plot(zoom=1)[..., ::-1]))
                done += 1
                if progress is not None:
                    progress(done, max(count, done))
        finally:
            if writer is not None:
                writer.release()
        if not done:
            raise ValueError(f"video {path}: expected frames, got none")
    return done


def _opened(path: str | PathLike[str]) -> cv2.VideoCapture:
    if not Path(path).is_file():
        raise ValueError(f"video {path}: expected a file, there is none")
    video = cv2.VideoCapture(str(path))
    if not video.isOpened():
        raise ValueError(f"video {path}: expected a video that OpenCV reads")
    return video


def _writer(path: Path, suffix: str, rate: float, hw: tuple[int, int]) -> cv2.VideoWriter:
    if suffix not in SUFFIXES:
        raise ValueError(f"video: expected a file to write that ends in .mp4 or .avi, got {suffix or 'no suffix'}")
    codec = cv2.VideoWriter.fourcc(*_CODECS.get(suffix, "mp4v"))
    writer = cv2.VideoWriter(str(path), codec, rate, (hw[1], hw[0]))
    if not writer.isOpened():
        raise ValueError(f"video: expected a kind that OpenCV writes, as .mp4 or .avi, got {suffix}")
    return writer
