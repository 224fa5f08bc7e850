"""The page holds what the run's folder holds, escaped, and needs nothing else."""

import base64
import io
import json
import math
import re
import shlex
import shutil
from contextlib import suppress
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import yaml
from PIL import Image
from tiny_runs import HOSTILE, copied, train

from moco.cli.main import main
from moco.diagnosis.doctor import Finding
from moco.runs.config import Contrast
from moco.runs.folder import Run

SECTIONS = ["runs", "findings", "results", "curves", "map", "neighbours", "pairs", "views"]


class Page(HTMLParser):
    """The page's elements, its text and the data in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.text, self.json, self._open = "", "", ""
        self.feed(path.read_text())
        self.data = json.loads(self.json)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        self._open = dict(attributes).get("id", name) if name == "script" else name

    def handle_endtag(self, name):
        self._open = ""

    def handle_data(self, data):
        if self._open == "data":
            self.json += data
        elif self._open not in ("style", "script"):
            self.text += data

    def ids(self, name: str) -> list[str]:
        return [found["id"] for element, found in self.elements if element == name and "id" in found]


def report(*words: object) -> None:
    main(["report", *map(str, words), "--device", "cpu", "--precision", "fp32"])


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def page(run) -> Page:
    found = [
        Finding("queue", "good", "It is full.", "none is random", "go on", "a test"),
        Finding(HOSTILE, "problem", "Collapsed.", "feature std 0", "--lr 0.01", "a test"),
    ]
    order = ("problem", "good")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        "moco.report.sections.diagnose", lambda run: sorted(found, key=lambda finding: order.index(finding.severity))
    )
    (run / "knn.json").write_text(json.dumps({"protocol": "knn", "accuracy": {"top-1": 0.4321}}))
    report(run, "--points", 40)
    monkeypatch.undo()
    (run / "knn.json").unlink()
    return Page(run / "report.html")


def test_every_section_is_there(page):
    assert page.ids("section") == SECTIONS
    assert [name for name, _ in page.elements].count("h1") == 1
    links = [found["href"] for name, found in page.elements if name == "a"]
    assert links == [f"#{key}" for key in page.ids("section")]


def test_the_data_are_the_metrics(page, run):
    curves = page.data["runs"][0]["curves"]
    for name in ("loss", "accuracy", "lr", "knn"):
        of = [line for line in lines(run / "metrics.jsonl") if name in line]
        assert curves[name] == {key: [line[key if key != "value" else name] for line in of] for key in curves[name]}
    assert curves["images_per_second"]["value"] == [line["images_per_second"] for line in lines(run / "timing.jsonl")]
    assert set(curves) <= {*page.data["known"], "negative_histogram"}


def test_nothing_is_fetched_and_only_its_own_script_runs(page, run):
    sources = [found.get("src") for name, found in page.elements if name not in ("a",) and "src" in found]
    assert sources
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert not [name for name, _ in page.elements if name in ("link", "iframe", "object", "base")]
    assert [found for name, found in page.elements if name == "script"] == [
        {"type": "application/json", "id": "data"},
        {},
    ]
    (policy,) = [found["content"] for _, found in page.elements if "http-equiv" in found]
    assert "default-src 'none'" in policy
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?https?:""", (run / "report.html").read_text())


def test_the_command_runs_the_same_run(page, run, monkeypatch):
    (command,) = re.findall(r"<code>(.*?)</code>", (run / "report.html").read_text())
    called = []
    monkeypatch.setattr("moco.cli.commands.pretrain.pretrain", lambda *arguments: called.append(arguments))
    main(shlex.split(unescape(re.sub("<.*?>", "", command)))[1:])
    assert called[0][0] == Run.open(run).config()


def test_the_doctors_findings_are_shown_the_gravest_first(page):
    assert page.text.index("problem: ") < page.text.index("good: queue")
    assert "--lr 0.01" in page.text
    assert HOSTILE in page.text


def test_a_measured_figure_stands_beside_the_published_one(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    config = (copy / "config.yaml").read_text().replace("recipe: cifar10-cpu", "recipe: cifar10-r18")
    (copy / "config.yaml").write_text(config)
    (copy / "knn.json").write_text(json.dumps({"protocol": "knn", "accuracy": {"top-1": 0.4321}}))
    (copy / "broken.json").write_text("{")
    report(copy, "--points", 10)
    html = unescape((copy / "report.html").read_text())
    row = re.search(r"<tr><th[^>]*>run</th><td>knn, top-1</td>(.*?)</tr>", html)
    assert re.findall(r"<td>(.*?)</td>", row[1]) == [
        "43.2",
        "83.8",
        "lightly's benchmark page: 200 epochs, batch 128",
    ]


def test_the_map_has_each_image_with_its_thumbnail_and_its_nearest(page, tmp_path):
    (found,) = page.data["maps"]
    assert len(found["x"]) == len(found["y"]) == len(found["labels"]) == 40
    assert min(found["x"]) == min(found["y"]) == 0
    assert max(found["x"]) == max(found["y"]) == 1
    assert found["classes"] == ["class 0", "class 1", "class 2"]
    assert all(i not in near and len(near) == 5 for i, near in enumerate(found["links"]))
    sheet = Image.open(io.BytesIO(base64.b64decode(found["sheet"].split(",")[1])))
    assert sheet.size == (7 * 16, 6 * 16)


def test_hostile_names_are_text(run, tmp_path):
    """Of the run, and of the classes."""
    images = tmp_path / "images"
    generator = np.random.default_rng(0)
    for name in ("<img src=x onerror=alert(1)>", "b"):
        for i in range(20):
            path = images / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    out = copied(run, tmp_path / HOSTILE.replace("/", "|"), f"folder:{images}")
    report(out, "--points", 10)
    page = Page(out / "report.html")
    assert len([name for name, _ in page.elements if name == "script"]) == 2
    assert not [found for _, found in page.elements if "onerror" in found]
    assert "<img src=x onerror=alert(1)>" in page.text
    assert HOSTILE.replace("/", "|") in page.text
    assert "<img src=x onerror=alert(1)>" in page.data["maps"][0]["classes"]


def test_several_runs_share_the_points_and_list_their_differences(run, second, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    report(run, second, "--points", 40)
    page = Page(tmp_path / "report.html")
    assert [run["name"] for run in page.data["runs"]] == ["tiny", "other"]
    assert [len(found["x"]) for found in page.data["maps"]] == [20, 20]
    assert page.ids("section") == SECTIONS
    assert "key_momentum 0.99 -> 0.5" in page.text


def test_runs_of_the_same_name_are_named_by_their_paths(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / run.name)
    report(run, copy, "--points", 10, "--out", tmp_path / "page.html")
    names = [run["name"] for run in Page(tmp_path / "page.html").data["runs"]]
    assert names == [str(run), str(copy)]


@pytest.mark.parametrize("mechanism", get_args(get_type_hints(Contrast)["mechanism"]))
def test_every_mechanism_has_a_page(mechanism, source, tmp_path):
    run = train(source, tmp_path / "run", f"--mechanism {mechanism} --hidden 16 --knn-every 0")
    report(run, "--points", 10)
    page = Page(run / "report.html")
    assert page.ids("section") == SECTIONS
    assert mechanism in page.text


def test_a_page_takes_the_place_of_nothing_but_a_page(run, capsys):
    before = (run / "config.yaml").read_bytes()
    with pytest.raises(SystemExit) as left:
        report(run, "--out", run / "config.yaml")
    assert left.value.code == 2
    assert "a page is an .html" in capsys.readouterr().err
    assert (run / "config.yaml").read_bytes() == before


def test_an_unlabelled_set_has_pictures_without_classes(run, tmp_path, random_npz):
    out = copied(run, tmp_path / "run", f"npz:{random_npz(120, classes=0)}")
    report(out, "--points", 30)
    page = Page(out / "report.html")
    assert page.ids("section") == SECTIONS
    assert page.data["maps"][0]["labels"] is None
    assert "12 training images, themselves left out, and their nearest of 120 training images." in page.text
    assert "≠" not in page.text


def test_without_its_images_the_page_names_the_reason(run, source, tmp_path, capsys):
    out = copied(run, tmp_path / "run", f"npz:{tmp_path / 'images.npz'}")
    report(out)
    page = Page(out / "report.html")
    assert page.ids("section") == ["runs", "findings", "results", "curves", "pictures"]
    assert "no pictures: --data npz:" in page.text
    assert page.data["maps"] == [None]
    message = capsys.readouterr()
    assert "no such path" in " ".join((message.out + message.err).split())
    report(out, "--data", source, "--points", 10)
    assert Page(out / "report.html").ids("section") == SECTIONS


def test_a_run_of_version_0_1_0_has_a_page_and_a_diagnosis(run, tmp_path, monkeypatch, capsys):
    old = shutil.copytree(run, tmp_path / "old")
    config = yaml.safe_load((old / "config.yaml").read_text())
    names = {"key_momentum": "momentum", "accumulation_steps": "accumulate", "cache_mb": "resident_mb"}
    names["shard_streams"] = "lanes"
    for group, options in config.items():
        if isinstance(options, dict):
            config[group] = {names.get(name, name): value for name, value in options.items()}
    config["contrast"]["momentum"] = 0.9
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    with (old / "metrics.jsonl").open("w") as file:
        for line in lines(run / "metrics.jsonl"):
            new = ("chance_loss", "keys_per_step", "images")
            line = {"spread" if key == "feature_std" else key: line[key] for key in line if key not in new}
            file.write(json.dumps(line) + "\n")
    report(old, "--points", 10)
    page = Page(old / "report.html")
    assert page.ids("section") == SECTIONS
    (shown,) = page.data["runs"]
    assert shown["chance"] == [pytest.approx(math.log(49)), "chance, log(K+1)"]
    assert "feature_std" in shown["curves"]
    assert "spread" not in shown["curves"]
    assert "--key-momentum 0.9" in page.text
    called = []
    monkeypatch.setattr("moco.cli.commands.pretrain.pretrain", lambda *arguments: called.append(arguments))
    (command,) = re.findall(r"<code>(.*?)</code>", (old / "report.html").read_text())
    main(shlex.split(unescape(re.sub("<.*?>", "", command)))[1:])
    assert called[0][0] == Run.open(old).config()
    capsys.readouterr()
    with suppress(SystemExit):
        main(["doctor", str(old)])
    assert "feature std" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_metrics_or_checkpoint_has_a_page(run, tmp_path):
    (tmp_path / "run").mkdir()
    shutil.copy(run / "config.yaml", tmp_path / "run")
    report(tmp_path / "run")
    text = Page(tmp_path / "run" / "report.html").text
    assert "no metrics yet" in text
    assert "the run has no checkpoint yet" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("NOWHERE", "no such path"),
        ("RUN --points 0", "--points 0: in 1..10000"),
        ("RUN --points 10001", "--points 10001: in 1..10000"),
        ("RUN RUN", "the same run is given twice"),
        ("RUN --out NOWHERE/page.html", "no such folder"),
        ("RUN --out RUN", "is a folder"),
        ("RUN --data npz:NOWHERE", "no such path"),
        ("RUN --pionts 5", "no option --pionts: did you mean --points?"),
        ("", "RUN"),
    ],
)
def test_bad_input_is_one_line(run, tmp_path, capsys, words, message):
    spelled = [word.replace("NOWHERE", str(tmp_path / "nowhere")).replace("RUN", str(run)) for word in words.split()]
    before = (run / "report.html").read_bytes() if (run / "report.html").exists() else None
    with pytest.raises(SystemExit) as left:
        main(["report", *spelled])
    assert left.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert before == ((run / "report.html").read_bytes() if (run / "report.html").exists() else None)


def test_files_of_many_sizes_are_decoded_and_named_and_a_broken_one_is_left_out(run, tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images" / "a").mkdir(parents=True)
    for i in range(30):
        pixels = generator.integers(0, 256, (16 + i % 3, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / "a" / f"{i}.png")
    (tmp_path / "images" / "a" / "4.png").write_bytes(b"no image")
    out = copied(run, tmp_path / "run", f"folder:{tmp_path / 'images'}", max_bad=0.5)
    report(out, "--points", 40, "--workers", 0)
    found = Page(out / "report.html").data["maps"][0]
    assert len(found["names"]) == len(set(found["names"])) == 29
    assert "4.png" not in found["names"]
