"""moco detect as a user runs it, at a size that a test can wait for."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moco
from moco.cli.main import main
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runtime.errors import UserError
from moco.transfer.config import number_of, scaled
from moco.transfer.detection.config import DetectionConfig, DetectionSchedule
from moco.transfer.detection.recipes import DETECTION
from moco.transfer.detection.suggest import Facts, suggest
from moco.transfer.run import DetectionRun

TINY = [
    *("--data", "shapes", "--size", "48", "--labels", "6", "--encoder", "resnet18w0.125", "--head-width", "0.05"),
    *("--iterations", "3", "--batch-size", "2", "--warmup", "1", "--milestones", "2", "--sides", "48", "64"),
    *("--test-side", "48", "--test-images", "3", "--regions", "8", "--proposals", "8", "--precise-bn", "1"),
    *("--workers", "0", "--log-every", "1", "--no-masks", "--device", "cpu", "--precision", "fp32"),
]


def detect(*words: str, code: int | None = None) -> None:
    if code is None:
        main(["detect", *words])
        return
    with pytest.raises(SystemExit) as left:
        main(["detect", *words])
    assert left.value.code == code


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(DetectionRun(folder))
    assert path is not None
    return read_checkpoint(path)["model"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("detect") / "run"
    detect("random", "--recipe", "own-c4", *TINY, "--out", str(folder))
    return folder


def test_a_run_leaves_results_pictures_and_a_page(trained):
    results = json.loads((trained / "results.json").read_text())
    assert {"AP", "AP50", "AP75"} <= set(results["numbers"])
    assert (results["recipe"], results["labels"], results["images"]) == ("own-c4", "6", 3)
    assert all((trained / name).is_file() for name in ("detections.png", "precision-recall.png", "report.html"))
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert {"loss", "loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "lr"} <= set(lines[0])
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]


@pytest.mark.parametrize("structure", ["dc5", "fpn"])
def test_the_other_structures_train_too(tmp_path, structure):
    masks = ["--masks"] if structure == "fpn" else []
    words = ["random", "--recipe", "own-fpn", *TINY, "--structure", structure, "--iterations", "1", "--milestones", "1"]
    detect(*words, *masks, "--out", str(tmp_path / "run"))
    numbers = json.loads((tmp_path / "run" / "results.json").read_text())["numbers"]
    assert ("mask AP" in numbers) == bool(masks)


def test_a_stopped_run_continues_bit_for_bit(trained, tmp_path, monkeypatch):
    from moco.transfer import loop
    from moco.transfer.trainer import Trainer

    class KilledError(Exception):
        pass

    update = Trainer.update

    def killed_at_2(self, samples):
        if self.step == 2:
            raise KilledError
        update(self, samples)

    folder = tmp_path / "run"
    words = ["random", "--recipe", "own-c4", *TINY, "--checkpoint-minutes", "0", "--out", str(folder)]
    monkeypatch.setattr(loop.Trainer, "update", killed_at_2)
    with pytest.raises(KilledError):
        main(["detect", *words])
    monkeypatch.undo()
    detect(*words, "--resume", "auto")
    before, after = weights(trained), weights(folder)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (folder / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


def test_a_run_that_was_stopped_is_evaluated_with_bn_s_statistics_computed_anew(trained, tmp_path, monkeypatch):
    """As it would be at its end; of a run that is finished they are in its checkpoint."""
    from moco.transfer import trainer

    calls = []
    monkeypatch.setattr(trainer, "precise_bn", lambda *_arguments: calls.append(1))
    detect(str(trained), "--eval-only", "--workers", "0", "--out", str(tmp_path / "again"))
    assert calls == []
    longer = shutil.copytree(trained, tmp_path / "longer")
    config = longer / "config.yaml"
    config.write_text(config.read_text().replace("iterations: 3", "iterations: 4"))
    detect(str(longer), "--eval-only", "--workers", "0")
    assert calls == [1]
    assert (longer / "evaluation-step-3" / "results.json").is_file()


def test_a_recipe_opens_with_what_it_costs_and_should_reach(trained, tmp_path, capsys):
    words = ["random", "--recipe", "voc07-r50-c4", *TINY, "--iterations", "1", "--milestones", "1"]
    detect(*words, "--out", str(tmp_path / "run"))
    opening = capsys.readouterr().out
    assert "cost: 9,000 steps of 16 images" in opening
    assert "should reach: AP 46.6, AP50 74.9, AP75 50.1 (MoCo IN-1M)" in opening


def test_a_trained_detector_is_evaluated_again_and_used(trained, tmp_path, capsys):
    before = json.loads((trained / "results.json").read_text())["numbers"]
    detect(str(trained), "--eval-only", "--workers", "0", "--out", str(tmp_path / "again"))
    assert json.loads((tmp_path / "again" / "results.json").read_text())["numbers"] == before
    detector = moco.load_detector(trained)
    (found,) = detector([torch.randint(0, 256, (3, 60, 50), dtype=torch.uint8)])
    assert found.boxes.shape == (len(found), 4)
    assert len(detector.classes) == 10


def test_a_trained_detector_predicts(trained, tmp_path):
    from PIL import Image

    Image.new("RGB", (60, 40), "red").save(tmp_path / "red.png")
    detect(str(trained), "--predict", str(tmp_path / "red.png"), "--workers", "0", "--out", str(tmp_path / "found"))
    values = json.loads((tmp_path / "found" / "detections.json").read_text())
    assert [image["width"] for image in values["images"]] == [60]
    assert (tmp_path / "found" / "red.png").is_file()


@pytest.mark.slow
def test_several_starts_and_seeds_give_a_table(trained, tmp_path, capsys):
    words = ["--recipe", "own-c4", *TINY, "--iterations", "1", "--milestones", "1", "--trials", "2"]
    words += ["--compare", "random", str(trained), "--out", str(tmp_path / "all")]
    detect(*words)
    entries = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert [(entry["init"], len(entry["numbers"])) for entry in entries] == [("random", 2), (str(trained), 2)]
    assert (tmp_path / "all" / "comparison.png").is_file()
    assert "±" in (tmp_path / "all" / "comparison.md").read_text()
    times = {path: path.stat().st_mtime for path in (tmp_path / "all").glob("*/results.json")}
    detect(*words)  # all is there: nothing is trained again
    assert times == {path: path.stat().st_mtime for path in (tmp_path / "all").glob("*/results.json")}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["random", "--recipe", "voc-r50-c44"], "did you mean voc-r50-c4"),
        (["random", "--recipe"], "--recipe: its value is missing"),
        (["random"], "--recipe NAME is missing"),
        (["--recipe", "own-c4", *TINY], "what it starts from is missing"),
        (["nowhere", "--recipe", "own-c4", *TINY], "nowhere: no such path"),
        (["random", "--recipe", "own-c4", "--data", "shapes", "--labels", "0"], "--labels 0"),
        (["random", "--recipe", "own-c4", "--data", "shapes", "--labels", "20000"], "there are 10000 training images"),
        (["random", "--recipe", "own-c4"], "--data is missing"),
        (["random", "--recipe", "voc-r50-c4", "--data", "voc:nowhere"], "no such path"),
        (["random", "--recipe", "own-c4", *TINY, "--encoder", "vit_s_16"], "needs a ResNet's stages"),
        (["random", "--recipe", "own-c4", *TINY, "--masks", "--structure", "dc5"], "dc5 has no mask head"),
        (["random", "--recipe", "own-c4", *TINY, "--keypoints"], "only fpn has a keypoint head"),
        (["random", "--recipe", "own-c4", *TINY, "--lr", "-1"], "--lr -1.0: above 0"),
        (["random", "--eval-only"], "is no run of moco detect"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    detect(*words, code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("runs/*"))


def test_a_run_that_is_there_is_not_lost(trained, capsys):
    before = (trained / "results.json").read_bytes()
    detect("random", "--recipe", "own-c4", *TINY, "--out", str(trained), code=2)
    assert "already holds a run" in capsys.readouterr().err
    detect("random", "--recipe", "own-c4", *TINY, "--lr", "1", "--out", str(trained), "--resume", code=2)
    assert "holds a run with other options: lr" in capsys.readouterr().err
    assert (trained / "results.json").read_bytes() == before


def test_commands_refuse_each_others_runs(trained, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["doctor", str(trained)])
    assert "is a run of moco detect" in capsys.readouterr().err


def test_with_another_batch_rate_and_length_follow_the_linear_rule():
    recipe = DETECTION["voc-r50-c4"].config.training
    asked = DetectionSchedule(batch_size=4)
    training, about = scaled(asked, recipe)
    assert (training.lr, training.iterations, training.milestones, training.warmup) == (
        0.005,
        96_000,
        (72_000, 88_000),
        400,
    )
    assert "linear rule" in about
    assert scaled(DetectionSchedule(batch_size=4, lr=0.01), recipe)[0].lr == 0.01
    assert scaled(DetectionSchedule(), recipe) == (DetectionSchedule(), "")


@pytest.mark.parametrize(("labels", "number"), [("all", 200), ("10%", 20), ("0.1%", 1), ("7", 7)])
def test_labels(labels, number):
    assert number_of(labels, 200) == number


@pytest.mark.parametrize("labels", ["", "0", "-3", "0%", "101%", "nan%", "ten", "1.5"])
def test_wrong_labels(labels):
    with pytest.raises(UserError, match="--labels"):
        number_of(labels, 200)


def test_published_settings():
    """Of the released code's configurations: 24k steps of 16, and COCO's 1x and 2x."""
    voc, dc5 = DETECTION["voc-r50-c4"].config, DETECTION["voc-r50-dc5"].config
    assert (voc.training.lr, voc.training.batch_size, voc.training.warmup) == (0.02, 16, 100)
    assert (voc.training.sides[0], voc.training.sides[-1], voc.evaluation.test_side) == (480, 800, 800)
    assert (dc5.model.structure, dc5.training) == ("dc5", voc.training)
    coco = DETECTION["coco-r50-fpn-2x"].config
    assert (coco.training.iterations, coco.training.milestones) == (180_000, (120_000, 160_000))
    assert (coco.model.structure, coco.model.masks, coco.evaluation.metric) == ("fpn", True, "coco")


def test_suggestions_follow_from_images_and_machine():
    config = DetectionConfig(recipe="own-c4")
    on_cpu, choices = suggest(Facts(300, 480, 90, False, None), config)
    assert (on_cpu.evaluation.test_side, on_cpu.training.batch_size, on_cpu.model.regions) == (400, 4, 64)
    assert on_cpu.training.lr == pytest.approx(0.005)
    on_gpu, _ = suggest(Facts(300, 480, 20, True, 80.0), config)
    assert on_gpu.evaluation.test_side > 480  # small objects: images are enlarged
    assert on_gpu.model.masks
    assert all(choice.reason for choice in choices)


def test_masks_are_not_suggested_for_a_structure_without_a_mask_head():
    config = DETECTION["own-c4"].config
    for structure, masks in (("c4", True), ("dc5", False)):
        own = replace(config, model=replace(config.model, structure=structure))
        suggested, choices = suggest(Facts(300, 480, 90, True, None), own)
        (choice,) = [choice for choice in choices if choice.flag == "--masks"]
        assert suggested.model.masks == choice.value == masks
