"""What a run writes into its folder: the log, the curves and the config, by which the folder is its own."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jaxdet.config import to_data
from jaxdet.experiment import Run
from jaxdet.training.log import CURVES, RunLog
from jaxdet.training.workdir import _refusal, claimed, read_metrics
from jaxdet.training.writers.jsonl import LogFile, read_log
from tests.disk import files_of_at_most


def test_log_of_a_continued_run_has_each_step_once(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0) as log:
        for step in (2, 4, 6):
            log.scalars(step, {"loss": step / 2, "lr": 0.1})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('12\n\x00\x00\n{"step": 8, "lo')  # a bad disk, and killed while it wrote
    with RunLog(tmp_path, 4) as log:  # the last checkpoint was that of step 4
        log.scalars(6, {"loss": 10.0})
        log.scalars(6, {"bbox/AP": 0.5, "bbox/AP50": 0.6})
        log.curves()
        log.picture(6, "curves", tmp_path / CURVES)
        log.picture(6, "predictions", tmp_path / "there is none.png")
    records = [{k: v for k, v in record.items() if k != "time"} for record in read_log(tmp_path)]
    assert records == [
        {"step": 2, "loss": 1.0, "lr": 0.1},
        {"step": 4, "loss": 2.0, "lr": 0.1},
        {"step": 6, "loss": 10.0},
        {"step": 6, "bbox/AP": 0.5, "bbox/AP50": 0.6},
    ]
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.size == (1200, 400)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_a_line_that_does_not_fit_on_the_disk_is_not_begun(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = LogFile(tmp_path, [{"step": 0}])
    request.addfinalizer(file.close)
    with files_of_at_most(100):
        for step in range(1, 8):  # 12 bytes each
            file.append({"step": step})
        for step in (8, 9):
            with pytest.raises(OSError, match=r"too large: .*log\.jsonl"):
                file.append({"step": step})
    written = (tmp_path / "log.jsonl").read_text()
    assert written.endswith("}\n")
    assert [json.loads(line)["step"] for line in written.splitlines()] == list(range(8))


def test_writes_that_fall_short_are_continued(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    class Short(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(bytes(data)[:5])

    file = LogFile(tmp_path, [])
    file.close()
    file._file = Short(tmp_path / "log.jsonl", "ab")
    request.addfinalizer(file.close)
    for step in (1, 2):
        file.append({"step": step})
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_only_the_writing_process_writes(tmp_path: Path) -> None:
    with RunLog(tmp_path, 0, writes=False) as log:
        log.scalars(1, {"loss": 1.0})
        log.curves()
        log.picture(1, "x", Path(__file__))
    assert list(tmp_path.iterdir()) == []


def claim(workdir: Path, run: Run, config: dict[str, Any], *, accept_changes: bool) -> None:
    with claimed(workdir, run, config, accept_changes):
        pass


def test_a_folder_belongs_to_one_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run, config, other = Run(seed=1), to_data(Run(seed=1)), to_data(Run(seed=2))
    claim(tmp_path / "run", run, config, accept_changes=False)
    (tmp_path / "run" / "checkpoints" / "3").mkdir(parents=True)
    claim(tmp_path / "run", run, config, accept_changes=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    assert (tmp_path / "run" / "config.txt").read_text().startswith("Run(")
    (tmp_path / "run" / "metrics.json").write_text('{"bbox/AP": 0.5}')
    assert read_metrics(tmp_path / "run") == {"bbox/AP": 0.5}
    with pytest.raises(ValueError, match=r"seed: 1 -> 2\n.*--workdir.*\n?.*--accept-changes"):
        claim(tmp_path / "run", Run(seed=2), other, accept_changes=False)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == config
    longer = "optimizer.schedule.length: 12 -> 24"
    assert "The schedule alone differs: with --accept-changes" in _refusal(tmp_path, [longer])
    assert "The schedule alone" not in _refusal(tmp_path, [longer, "seed: 1 -> 2"])
    with caplog.at_level(logging.WARNING):
        claim(tmp_path / "run", Run(seed=2), other, accept_changes=True)
    assert "seed: 1 -> 2" in caplog.text
    assert read_metrics(tmp_path / "run") is None  # they are those of another config
    assert json.loads((tmp_path / "run" / "config.json").read_text())["seed"] == 2


def test_a_run_that_never_came_to_a_checkpoint_leaves_the_folder_free(tmp_path: Path) -> None:
    """Weights that are not there end a run after its config is written; the corrected command must go on."""
    claim(tmp_path, Run(init_from="typo.pth"), to_data(Run(init_from="typo.pth")), accept_changes=False)
    (tmp_path / "checkpoints").mkdir()
    claim(tmp_path, Run(), to_data(Run()), accept_changes=False)
    assert json.loads((tmp_path / "config.json").read_text())["init_from"] is None
    for kept in ("3.damaged", "6.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / kept).mkdir()
        with pytest.raises(ValueError, match=r"seed: 0 -> 2\n"):
            claim(tmp_path, Run(seed=2), to_data(Run(seed=2)), accept_changes=False)
        (tmp_path / "checkpoints" / kept).rmdir()


def test_damaged_files_of_a_run_are_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is damaged .*: expected JSON; remove it"):
        claim(tmp_path, Run(), to_data(Run()), accept_changes=False)
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(ValueError, match=r"metrics\.json is damaged"):
        read_metrics(tmp_path)


def test_a_setting_newer_than_the_run_counts_with_its_default(tmp_path: Path) -> None:
    config = to_data(Run(seed=1))
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    claim(tmp_path, Run(seed=1), config, accept_changes=False)
    stored = json.loads((tmp_path / "config.json").read_text())
    del stored["pictures"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    claim(tmp_path, Run(seed=1), config, accept_changes=False)
    with pytest.raises(ValueError, match="pictures: 8 -> 3"):
        claim(tmp_path, Run(seed=1, pictures=3), to_data(Run(seed=1, pictures=3)), accept_changes=False)
