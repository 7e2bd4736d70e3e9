"""The page: what is written, what its JavaScript computes, and what a browser makes of it."""

import base64
import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import jaxdet.report
from benchmarks.experiments.report_speed import HW, made
from jaxdet.report import report
from jaxdet.report.__main__ import main
from jaxdet.report.page import embedded, percent

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
ASSETS = Path(jaxdet.report.__file__).parent / "assets"
EVIL = "</script><img src=x onerror=\"document.title='broken'\">&amp;"
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node")
needs_browser = pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: make page says how")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two results, with pictures: ``out``, and what it is made of."""
    folder = tmp_path_factory.mktemp("page")
    truth, results = made(12, 6, 20, classes=3, seed=4)
    truth["categories"][1]["name"] = EVIL
    other = [result | {"score": result["score"] * 0.9} for result in results[::2]]
    for name, content in (("truth", truth), ("first", results), ("other", other)):
        (folder / f"{name}.json").write_text(json.dumps(content))
    (folder / "pictures").mkdir()
    for number, image in enumerate(truth["images"]):
        Image.new("RGB", HW[::-1], (20 * number, 90, 60)).save(folder / "pictures" / image["file_name"])
    report(
        results=folder / "first.json",
        truth=folder / "truth.json",
        other=folder / "other.json",
        images=folder / "pictures",
        out=folder / "out",
    )
    return folder


def content_of(folder: Path) -> Any:
    text = (folder / "out" / "index.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_what_is_written(folder: Path) -> None:
    out = folder / "out"
    expected = {f"{number}.{suffix}" for number in range(12) for suffix in ("js", "jpg")}
    assert {path.name for path in (out / "images").iterdir()} == expected
    first, other = json.loads((out / "report.json").read_text())
    assert (first["images"], first["model"]) == (12, {})
    assert first["bbox"]["AP50"] == pytest.approx(first["coco"]["bbox/AP50"])
    assert first["segm"]["AP50"] == pytest.approx(first["coco"]["segm/AP50"])
    assert other["bbox"]["best"]["score"] < first["bbox"]["best"]["score"]
    content = content_of(folder)
    assert content["classes"][1] == EVIL
    assert content["reports"] == [first, other]
    with Image.open(out / "images" / "3.jpg") as picture:
        assert picture.size == (640, 480)


def test_a_page_needs_nothing_from_elsewhere(folder: Path) -> None:
    text = (folder / "out" / "index.html").read_text()
    assert "<!--" not in re.sub(r"<!doctype html>", "", text)  # every part has been put in
    assert not re.search(r"https?://|@import|fetch\(|XMLHttpRequest", text)


def test_embedded_text_ends_no_script() -> None:
    assert "<" not in embedded({EVIL: [EVIL]})
    assert json.loads(embedded({EVIL: [EVIL]})) == {EVIL: [EVIL]}


def test_hundredths_are_rounded_down() -> None:
    assert percent(np.array([0.29, 0.57, 0.999, 1.0, 0.0, -1.0])).tolist() == [29, 57, 99, 100, 0, -100]


def run_node(script: str) -> Any:
    program = f"const page = require({json.dumps(str(ASSETS / 'plots.js'))});\n{script}"
    done = subprocess.run(["node", "-e", program], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


@needs_node
def test_masks_are_those_of_pycocotools() -> None:
    draw = np.random.default_rng(0)
    for shape in ((7, 5), (40, 300), (1, 1), (300, 200)):
        mask = np.asfortranarray(draw.random(shape) < 0.5, np.uint8)
        mask[:, : shape[1] // 2] = 1  # a run longer than 32 * 32 pixels
        counts = coco_mask.encode(mask)["counts"].decode()
        height, width = shape
        found = run_node(f"console.log(JSON.stringify([...page.decodeMask({json.dumps(counts)}, {height}, {width})]))")
        assert found == mask.ravel(order="F").tolist()


@needs_node
def test_errors_are_counted_as_python_counts_them(folder: Path) -> None:
    """Without a least score the page counts TIDE's errors; with one, those of the results from that score on."""
    content = content_of(folder)
    data = json.dumps({"truth": content["truth"], "run": content["runs"][0]["bbox"]})
    found = run_node(
        f"""const data = {data};
        const truth = {{first: page.unpacked(data.truth.first, Uint32Array),
          label: page.unpacked(data.truth.label, Uint16Array), crowd: page.unpacked(data.truth.crowd, Uint8Array)}};
        const run = page.columnsOf(data.run);
        const count = (filter) => [...page.countErrors(truth, run, filter)];
        console.log(JSON.stringify([count({{}}), count({{label: 1}}), count({{error: 5}}), count({{score: 101}}),
          count({{score: 50}})]));"""
    )
    whole, of_class, missed, none, half = (np.array(counts).reshape(12, 6) for counts in found)
    numbers = content["reports"][0]["bbox"]
    assert whole.sum(0).tolist() == list(numbers["errors"].values())
    assert 0 < of_class.sum() < whole.sum()
    np.testing.assert_array_equal(missed[:, 5], whole[:, 5])
    assert missed[:, :5].sum() == 0
    # Above every score nothing is found, and every object is missed.
    assert (none[:, :5].sum(), none[:, 5].sum()) == (0, content["reports"][0]["objects"])
    # From 0.5 on it is the page of the results from 0.5 on.
    results = [r for r in json.loads((folder / "first.json").read_text()) if r["score"] >= 0.5]
    (folder / "half.json").write_text(json.dumps(results))
    again = report(results=folder / "half.json", truth=folder / "truth.json", out=folder / "half")
    assert half.sum(0).tolist() == list(again[0]["bbox"]["errors"].values())


DRIVER = """<script>
const wait = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));
const press = (key) =>
  document.body.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const broken = [];
window.onerror = (message) => broken.push(message);
(async () => {
  const seen = {};
  seen.cards = document.querySelectorAll(".card").length;
  const rows = [...document.querySelectorAll(".card tr")].map((row) => [row.firstChild.textContent, row.lastChild]);
  seen.changes = Object.fromEntries(rows.map(([name, last]) => [name, [last.textContent[0], last.className]]));
  document.querySelector('[data-error="missed"]').dispatchEvent(new MouseEvent("click", {bubbles: true}));
  seen.error = at("error").selectedOptions[0].textContent;
  at("error").value = -1; at("error").onchange({target: at("error")});
  await wait(500);
  seen.listed = list.length;
  seen.worst = [sums[list[0]], Math.max(...sums)];
  seen.rects = document.querySelectorAll("#boxes rect").length;
  seen.picture = at("picture").naturalWidth;
  seen.painted = at("masks").getContext("2d").getImageData(0, 0, 640, 480).data.some((value) => value > 0);
  const first = chosen.image;
  press("ArrowRight"); await wait(300);
  seen.moved = [first, chosen.image, list[1]];
  press("t"); press("p");
  seen.hidden = document.querySelectorAll("#boxes rect").length;
  press("t"); press("p"); press("r"); await wait(100);
  seen.run = [chosen.run, chosen.image];
  at("score").value = 100; at("score").oninput({target: at("score")});
  seen.all = list.reduce((sum, image) => sum + sums[image], 0);
  seen.names = [...at("class").options].map((option) => option.textContent);
  seen.broken = broken; seen.title = document.title;
  const result = document.createElement("pre");
  result.id = "seen"; result.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(seen))));
  document.body.append(result);
})();
</script>"""


@needs_browser
def test_a_browser_shows_it(folder: Path) -> None:
    page = folder / "out" / "driven.html"
    page.write_text((folder / "out" / "index.html").read_text().replace("</body>", f"{DRIVER}</body>"))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=8000", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder / 'browser'}", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout)
    assert found, done.stderr[-2000:]
    seen = json.loads(base64.b64decode(found[1]))
    assert (seen["broken"], seen["title"]) == ([], "jaxdet report")
    assert (seen["cards"], seen["error"], seen["listed"], seen["picture"]) == (6, "missed", 12, 640)
    assert seen["worst"][0] == seen["worst"][1] > 0
    assert seen["changes"]["AP"] == ["-", "worse"]
    assert seen["changes"]["best threshold"] == ["-", ""]  # neither better nor worse
    assert seen["rects"] > 0
    assert seen["painted"]
    assert seen["moved"][0] != seen["moved"][1] == seen["moved"][2]
    assert seen["hidden"] == 0
    assert seen["run"] == [1, seen["moved"][1]]
    assert EVIL in seen["names"]
    assert seen["all"] == json.loads((folder / "out" / "report.json").read_text())[0]["objects"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected a run or --results"),
        (["--results", "r.json"], "expected --truth instances.json with --results"),
        (["runs/none", "--truth", "t.json"], "expected --truth and --images together"),
        (["--results", "r.json", "--truth", "{}/truth.json", "data.workers=0"], "settings are those of a model"),
        (["--results", "{}/first.json", "--truth", "{}/truth.json", "--other", "runs/none"], "expected --images"),
    ],
)
def test_what_is_refused(
    folder: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [word.replace("{}", str(folder)) for word in arguments]
    assert main([*words, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err


def test_boxes_alone_from_the_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = copy.deepcopy(json.loads((folder / "first.json").read_text()))
    for result in results:
        del result["segmentation"]
    (tmp_path / "boxes.json").write_text(json.dumps(results))
    command = ["--results", str(tmp_path / "boxes.json"), "--truth", str(folder / "truth.json")]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert "classification" in capsys.readouterr().out
    (numbers,) = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "bbox" in numbers
    assert "segm" not in numbers
