"""Published files come once, whole, and right, or not at all; from a server in this process."""

import hashlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxdet.checkpoints.public import cache, table
from jaxdet.checkpoints.public.cache import WrongHash, cache_folder, fetch, located
from jaxdet.checkpoints.public.table import PublicWeights, Source
from tests.checkpoints.weight_server import WeightServer, serving

CONTENT = np.random.default_rng(0).bytes(300_000)
FILE = "small_fpn-01234567.pth"


@pytest.fixture
def server() -> Iterator[WeightServer]:
    with serving() as server:
        server.files[f"/v1/{FILE}"] = CONTENT
        yield server


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JAXDET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(cache, "_PAUSE", 0.0)
    monkeypatch.setattr(cache, "_WAIT", 0.01)
    return tmp_path / "cache" / "weights"


def weights(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, kind: str = "sha256", path: str = ""
) -> PublicWeights:
    """The row of a table that has no other."""
    digest = f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()[:8]}"
    row = PublicWeights(
        "small_fpn", "mask_rcnn_r50_fpn", (), 38.0, 34.0, digest, server.address + (path or f"/v1/{FILE}")
    )
    monkeypatch.setattr(table, "public_weights", lambda: {row.name: row})
    monkeypatch.setitem(table._SOURCES, server.address.removeprefix("http://"), Source("a test", "none"))
    return row


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_file_comes_once(server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> None:
    row = weights(server, monkeypatch, kind)
    assert fetch(row) == folder / FILE
    assert (folder / FILE).read_bytes() == CONTENT
    assert located("small_fpn") == located("small_fpn_coco") == (row, folder / FILE)
    assert server.asked == [""]


def test_a_download_goes_on_where_it_broke(server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> None:
    row = weights(server, monkeypatch)
    server.breaks_after = [100_000, 50_000]
    assert fetch(row).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-", "bytes=150000-"]


def test_a_later_process_goes_on(server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    row = weights(server, monkeypatch)
    folder.mkdir(parents=True)
    (folder / f".{FILE}.part").write_bytes(CONTENT[:123])
    assert fetch(row).read_bytes() == CONTENT
    assert server.asked == ["bytes=123-"]


def test_a_part_that_is_whole_needs_no_more(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    """As a process leaves it that is killed before it gives the file its name."""
    row = weights(server, monkeypatch)
    folder.mkdir(parents=True)
    (folder / f".{FILE}.part").write_bytes(CONTENT)
    assert fetch(row).read_bytes() == CONTENT


def test_a_server_without_ranges_sends_all_again(server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> None:
    row = weights(server, monkeypatch)
    server.ranges, server.breaks_after = False, [100_000]
    assert fetch(row).read_bytes() == CONTENT
    assert server.asked == ["", "bytes=100000-"]


def test_a_connection_that_brings_nothing_is_given_up(server: WeightServer, monkeypatch: pytest.MonkeyPatch) -> None:
    row = weights(server, monkeypatch)
    server.breaks_after = [10] + [0] * 99
    with pytest.raises(ConnectionError, match=r"small_fpn: .* cannot be downloaded \(the connection broke after 10 of"):
        fetch(row)
    assert len(server.asked) == 1 + cache._TRIES - 1


def test_another_file_is_never_kept(server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    row = weights(server, monkeypatch)
    server.files[f"/v1/{FILE}"] = CONTENT[:-1] + b"x"
    with pytest.raises(WrongHash, match=r"is thrown away; .*expected a file whose sha256 begins with"):
        fetch(row)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_a_file_that_was_changed_in_the_cache_is_refused(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    row = weights(server, monkeypatch)
    fetch(row).write_bytes(CONTENT[1:])
    with pytest.raises(
        WrongHash, match=f"{FILE}: expected a file whose sha256 .* Remove it, and it is downloaded again"
    ):
        fetch(row)
    (folder / FILE).unlink()
    assert fetch(row).read_bytes() == CONTENT


def test_a_file_is_hashed_once_until_it_changes(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    row, hashed = weights(server, monkeypatch), list[str]()
    real = hashlib.file_digest

    def counting(file: Any, kind: Any) -> Any:
        hashed.append(Path(file.name).name)
        return real(file, kind)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    for _ in range(3):
        fetch(row)
    assert hashed == [f".{FILE}.part", FILE]
    (folder / "other").write_bytes(CONTENT[::-1])
    (folder / "other").replace(folder / FILE)  # of the same size
    with pytest.raises(WrongHash):
        fetch(row)


def test_what_is_not_there_is_said_at_once(server: WeightServer, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    row = weights(server, monkeypatch, path="/gone.pth")
    with pytest.raises(ConnectionError, match=rf"\(404 Not Found\)\. If you have the file, put it into {folder}"):
        fetch(row)
    assert server.asked == [""]


def test_without_network_the_cache_and_files_by_hand_are_enough(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    with serving() as server:
        server.files[f"/v1/{FILE}"] = CONTENT
        row = weights(server, monkeypatch)
        fetch(row)
    assert located("small_fpn") == (row, folder / FILE)
    by_hand = (folder / FILE).rename(tmp_path / FILE)
    assert located(by_hand) == (row, by_hand)
    with pytest.raises(ConnectionError, match=r"cannot be downloaded \(.*refused"):
        located("small_fpn")
    by_hand.write_bytes(CONTENT[:-1])
    with pytest.raises(WrongHash):
        located(by_hand)


def test_what_lies_there_goes_before_a_name(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    weights(server, monkeypatch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_fpn").mkdir()
    assert located("small_fpn") is None
    assert located("another") is None
    assert server.asked == []


def test_two_at_once_download_once(
    server: WeightServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "jaxdet")
    row = weights(server, monkeypatch)
    answer, arrived = threading.Event(), threading.Event()
    receive = cache._receive

    def waiting(url: str, part: Path) -> None:
        arrived.set()
        answer.wait(10)
        receive(url, part)

    monkeypatch.setattr(cache, "_receive", waiting)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(fetch(row).read_bytes())) for _ in range(2)]
    threads[0].start()
    arrived.wait(10)
    threads[1].start()
    while "waiting for another process" not in caplog.text:
        threads[1].join(0.01)
    answer.set()
    for thread in threads:
        thread.join()
    assert found == [CONTENT, CONTENT]
    assert server.asked == [""]


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "weights"
    monkeypatch.delenv("JAXDET_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(cache.sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "jaxdet" / "weights"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "jaxdet" / "weights"
    monkeypatch.setattr(cache.sys, "platform", "darwin")
    assert cache_folder() == tmp_path / "Library" / "Caches" / "jaxdet" / "weights"
