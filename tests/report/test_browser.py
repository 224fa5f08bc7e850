"""The page in a real browser: it opens soon and without an error, plots are drawn, hovering works, CSVs are right."""

import csv
import io
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from browser import Browser, find_browser
from PIL import Image
from tiny_runs import HOSTILE

from moco.cli.main import main
from moco.evaluation import nearest
from moco.report import Gallery
from moco.report.gallery import _uri
from moco.report.page import write_page
from moco.runs.folder import Run

pytestmark = pytest.mark.skipif(find_browser() is None, reason="there is no Chromium here (Debian: chromium)")

SIZES = [(390, 844, False), (390, 844, True), (1600, 1000, False), (1600, 1000, True)]

SAVED = """
(async () => {
  let saved = null;
  const before = URL.createObjectURL;
  URL.createObjectURL = (blob) => { saved = blob; return before(blob); };
  HTMLAnchorElement.prototype.click = function () {};
  BUTTON.click();
  URL.createObjectURL = before;
  return await saved.text();
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def page(run, second, tmp_path_factory) -> Path:
    """Of two runs, one of them of a hostile name, with monitored figures."""
    folder = tmp_path_factory.mktemp("pages")
    hostile = shutil.copytree(second, folder / HOSTILE.replace("/", "|"))
    with (hostile / "metrics.jsonl").open("a") as file:
        for step in (5, 15):
            counts = {f"{name}_histogram": [step + i for i in range(40)] for name in ("positive", "negative")}
            file.write(json.dumps({"step": step, "epoch": step / 7, "feature_std": 0.5, "mine": step, **counts}) + "\n")
    out = folder / "report.html"
    main(["report", str(run), str(hostile), "--out", str(out), "--points", "80", "--device", "cpu"])
    return out


def inked(browser: Browser) -> int:
    """Pixels of the first map that are not empty."""
    return browser.evaluate(
        "(() => { const c = MAPS[0].canvas; const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;"
        "let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n; })()"
    )


@pytest.mark.parametrize(("width", "height", "dark"), SIZES)
def test_it_is_drawn_without_an_error_and_fits(browser, page, width, height, dark):
    browser.open(page, width, height, dark)
    assert browser.errors == []
    assert browser.requests == [page.as_uri()]
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 300) == dark
    panels = browser.evaluate(
        "[...document.querySelectorAll('.panel')].map(p => [p.id, p.querySelectorAll('path').length])"
    )
    assert {"panel-loss", "panel-accuracy", "panel-knn", "panel-feature_std", "panel-mine", "histogram-1"} <= {
        name for name, _ in panels
    }
    assert all(count > 0 for _, count in panels)
    assert inked(browser) > 1000
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")


def test_lines_differ_without_colour_and_are_named(browser, page):
    browser.open(page)
    dashes = "[...document.querySelectorAll('#panel-loss .line')].map(l => l.getAttribute('stroke-dasharray'))"
    assert len(set(browser.evaluate(dashes))) == 2
    texts = browser.evaluate("[...document.querySelectorAll('#panel-loss text')].map(t => t.textContent)")
    assert "tiny" in texts
    assert f"chance, log(K+1) = {math.log(49):.2f}" in texts


def test_hovering_over_a_curve_shows_the_values_of_the_nearest_step(browser, page):
    browser.open(page)
    browser.evaluate("document.getElementById('panel-loss').scrollIntoView({block: 'center'})")
    x, y = browser.evaluate(
        "(() => { const s = document.querySelector('#panel-loss svg').getBoundingClientRect();"
        "return [s.left + 60, s.top + 60]; })()"
    )
    browser.point(x, y)
    text = browser.evaluate("document.querySelector('#panel-loss output').textContent")
    loss = browser.evaluate("DATA.runs[0].curves.loss")
    assert text.startswith(f"step {loss['step'][0]}, epoch ")
    assert f"tiny {loss['value'][0]:.4g}".rstrip("0") in text
    assert browser.evaluate("document.querySelectorAll('#panel-loss circle').length") == 2
    browser.evaluate("document.querySelector('#panel-loss svg').focus()")
    browser.key("ArrowRight")
    text = browser.evaluate("document.querySelector('#panel-loss output').textContent")
    assert text.startswith(f"step {loss['step'][1]}, ")
    assert browser.errors == []


def place(browser: Browser, image: int) -> list[float]:
    """Where in the window an image of the first map is."""
    browser.evaluate("MAPS[0].canvas.scrollIntoView({block: 'center'})")
    return browser.evaluate(
        f"(() => {{ const b = MAPS[0].canvas.getBoundingClientRect(), [x, y] = MAPS[0].place({image});"
        "return [b.left + x, b.top + y]; })()"
    )


def test_a_tap_shows_the_image_and_leaves_it_there(browser, page):
    browser.open(page, 390, 844)
    browser.tap(*place(browser, 7))
    assert browser.evaluate("MAPS[0].tip.hidden") is False
    left, right = browser.evaluate(
        "(() => { const b = MAPS[0].tip.getBoundingClientRect(); return [b.left, b.right]; })()"
    )
    assert left >= 0
    assert right <= 390
    assert browser.errors == []


def test_hovering_over_the_map_shows_the_image_and_its_nearest(browser, page):
    browser.open(page)
    browser.point(*place(browser, 7))
    assert browser.evaluate("MAPS[0].tip.hidden") is False
    at = browser.evaluate("MAPS[0].at")
    label = browser.evaluate(f"DATA.maps[0].labels[{at}]")
    assert f"class {label}" in browser.evaluate("MAPS[0].tip.textContent")
    painted = (
        "[...MAPS[0].tip.querySelectorAll('canvas')].map(c => c.getContext('2d').getImageData(8, 8, 1, 1).data[3])"
    )
    assert browser.evaluate(painted) == [255] * 6
    browser.point(2, 2)
    assert browser.evaluate("MAPS[0].tip.hidden") is True
    browser.evaluate("MAPS[0].canvas.focus()")
    browser.key("ArrowRight")
    browser.key("ArrowRight")
    assert browser.evaluate("MAPS[0].at") >= 0
    assert browser.errors == []


def test_a_chosen_class_is_set_off_and_pictures_take_the_place_of_marks(browser, page):
    browser.open(page)
    browser.evaluate("document.querySelector('#map-0 .legend button').click()")
    assert browser.evaluate("[...DATA.maps[0].labels.keys()].filter(i => MAPS[0].visible(i)).length") == len(
        [label for label in browser.evaluate("DATA.maps[0].labels") if label == 0]
    )
    assert browser.evaluate("document.querySelector('#map-0 .legend button').getAttribute('aria-pressed')") == "true"
    browser.evaluate("document.querySelector('#map-0 .legend button').click()")
    marks = inked(browser)
    browser.evaluate("document.querySelector('#map-0 .tools button').click()")
    browser.frame()
    assert inked(browser) > 2 * marks
    browser.point(*place(browser, 0))
    assert browser.evaluate("MAPS[0].at") == 0  # its picture is the first to be placed
    browser.evaluate("MAPS[0].zoomBy(3)")
    browser.frame()
    assert browser.errors == []


def test_the_button_turns_light_to_dark(browser, page):
    browser.open(page)
    before = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    browser.evaluate("document.getElementById('theme').click()")
    browser.frame()
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") != before
    assert browser.errors == []


def test_the_csv_is_the_metrics(browser, page, run):
    browser.open(page)
    text = browser.evaluate(SAVED.replace("BUTTON", "document.getElementById('csv-metrics')"))
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["run"] == "tiny"]
    found = {
        (int(row["step"]), key): float(row[key]) for row in rows for key in ("loss", "accuracy", "knn") if row[key]
    }
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert found == {
        (line["step"], key): line[key] for line in lines for key in ("loss", "accuracy", "knn") if key in line
    }
    text = browser.evaluate(SAVED.replace("BUTTON", "document.querySelector('#panel-knn button')"))
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["run"] == "tiny"]
    assert [float(row["knn"]) for row in rows] == [line["knn"] for line in lines if "knn" in line]
    text = browser.evaluate(SAVED.replace("BUTTON", "document.querySelector('#map-0 .tools button:last-child')"))
    assert len(list(csv.DictReader(io.StringIO(text)))) == 40


def test_a_hostile_name_is_text_in_the_plots_too(browser, page):
    browser.open(page)
    assert HOSTILE.replace("/", "|") in browser.evaluate("document.querySelector('#panel-loss output').textContent")
    assert browser.evaluate("document.scripts.length") == 2


def test_a_long_run_is_drawn_with_as_many_points_as_there_is_room_for_and_a_map_of_ten_thousand_images(
    browser, run, tmp_path
):
    """200 epochs of 390 steps, a line every 50, with all that the monitor measures; the images are noise."""
    shutil.copy(run / "config.yaml", tmp_path)
    draw = random.Random(0)
    keys = [
        "loss",
        "accuracy",
        "lr",
        "alignment",
        "uniformity",
        "rank",
        "feature_std",
        "key_drift",
        "queue_share",
        "bn_leak",
    ]
    with (tmp_path / "metrics.jsonl").open("w") as file:
        for step in range(50, 78_000, 50):
            line = {"step": step, "epoch": step / 390, **{key: draw.random() for key in keys}}
            if step % 500 == 0:
                line |= {"knn": draw.random(), "positive_histogram": [draw.randrange(9999) for _ in range(40)]}
            file.write(json.dumps(line) + "\n")
    out = tmp_path / "report.html"
    write_page([Run(tmp_path)], [large_gallery(10_000)], out)
    assert out.stat().st_size < 20e6
    browser.open(out)
    lengths = browser.evaluate("[...document.querySelectorAll('#panels path')].map((p) => p.getAttribute('d').length)")
    assert 1_000 < max(lengths) < 10_000  # 1,559 points would be 19,000
    browser.evaluate("MAPS[0].sheet.decode()")
    browser.frame()
    assert browser.errors == []
    assert inked(browser) > 10_000


def large_gallery(n: int) -> Gallery:
    places = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    noise = Image.effect_noise((800, 800), 60).resize((3200, 3200)).convert("RGB")
    mapped = {
        "x": places[:, 0].tolist(),
        "y": places[:, 1].tolist(),
        "labels": [i % 10 for i in range(n)],
        "classes": [f"class {i}" for i in range(10)],
        "names": [f"n0{i}.JPEG" for i in range(n)],
        "links": nearest(places, places[:100], 5)[1].tolist() * (n // 100),
        "sheet": _uri(noise, 75),
        "side": 32,
        "columns": 100,
    }
    return Gallery([], [], "", {}, mapped)
