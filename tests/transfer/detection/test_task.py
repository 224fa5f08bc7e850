"""moco detect as a user runs it, at a size that a test can wait for."""

import json
import logging
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import moco
from moco.cli.main import main
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runs.config import Encoder
from moco.runs.folder import read_lines
from moco.runtime.errors import UserError
from moco.transfer.config import LabelledData, number_of, scaled
from moco.transfer.detection.config import DetectionConfig, DetectionSchedule, Model
from moco.transfer.detection.recipes import DETECTION
from moco.transfer.detection.suggest import Facts, examine, suggest
from moco.transfer.detection.task import DetectionTask, build, open_sets
from moco.transfer.run import DetectionRun
from tests.ranks import run_ranks
from tests.transfer.detection.annotations.test_coco import annotation
from tests.transfer.detection.annotations.test_coco import write as write_coco
from tests.transfer.detection.annotations.test_yolo import BOX
from tests.transfer.detection.annotations.test_yolo import write as write_yolo

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


@pytest.mark.slow
def test_two_ranks_are_one_process(tmp_path):
    """Gradients, BN, the losses' divisors, precise BN, evaluation: all over both ranks.

    An image has at most 240 anchors, fewer than the RPN samples, and --regions is more than the proposals: all are
    trained on, whatever the order in which a rank draws them. A single side: one process pads a batch to its largest.
    """
    words = ["random", "--recipe", "own-c4", *TINY, "--masks", "--sides", "48", "--regions", "512", "--lr", "0.1"]
    words += ["--iterations", "2"]
    detect(*words, "--out", str(tmp_path / "one"))
    ended = run_ranks(2, shlex.join(["detect", *words, "--out", str(tmp_path / "two")]), [tmp_path])
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    one, two = (weights(tmp_path / name) for name in ("one", "two"))
    start = build(DetectionRun.open(tmp_path / "one").config(), 10, 0)
    moved = {name: one[name] - value.detach() for name, value in start.named_parameters()}
    for part in ("encoder", "rpn", "box_predictor", "mask_head"):
        steps = torch.cat([step.flatten() for name, step in moved.items() if name.startswith(part)])
        apart = torch.cat([(two[name] - one[name]).flatten() for name in moved if name.startswith(part)])
        assert apart.norm() < 0.05 * steps.norm(), part
    for name in (name for name in one if "running" in name):
        torch.testing.assert_close(two[name], one[name], rtol=1e-2, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    pairs = zip(
        read_lines(tmp_path / "two" / "metrics.jsonl"), read_lines(tmp_path / "one" / "metrics.jsonl"), strict=True
    )
    for found, expected in pairs:
        assert found == {
            name: pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True) for name, value in expected.items()
        }
    assert json.loads((tmp_path / "two" / "results.json").read_text())["images"] == 3


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


VOC_SIDES, COCO_SIDES = tuple(range(480, 801, 32)), tuple(range(640, 801, 32))
ONE, TWO = (90_000, (60_000, 80_000)), (180_000, (120_000, 160_000))
"""COCO's 1x and 2x: steps in all, and those at which the learning rate falls."""
SOURCES = {"voc": "voc:data/VOCdevkit", "voc07": "voc:data/VOCdevkit/VOC2007", "coco": "coco:data/coco"}


@pytest.mark.parametrize(
    ("name", "network", "schedule", "warmup", "sides", "metric"),
    [
        ("voc-r50-c4", ("c4", False, False), (24_000, (18_000, 22_000)), 100, VOC_SIDES, "voc07"),
        ("voc07-r50-c4", ("c4", False, False), (9_000, (6_750, 8_250)), 100, VOC_SIDES, "voc07"),
        ("voc-r50-dc5", ("dc5", False, False), (24_000, (18_000, 22_000)), 100, VOC_SIDES, "voc07"),
        ("coco-r50-c4-1x", ("c4", True, False), ONE, 1000, COCO_SIDES, "coco"),
        ("coco-r50-c4-2x", ("c4", True, False), TWO, 1000, COCO_SIDES, "coco"),
        ("coco-r50-fpn-1x", ("fpn", True, False), ONE, 1000, COCO_SIDES, "coco"),
        ("coco-r50-fpn-2x", ("fpn", True, False), TWO, 1000, COCO_SIDES, "coco"),
        ("coco-keypoints-r50-fpn", ("fpn", False, True), TWO, 1000, COCO_SIDES, "coco"),
    ],
)
def test_published_settings(name, network, schedule, warmup, sides, metric):
    """Section 4.2, and of what it leaves out the released code's Detectron2 configurations (warm-up, precise BN).

    The steps of voc07-r50-c4 fall in proportion to voc-r50-c4.
    """
    config = DETECTION[name].config
    model, training, evaluation = config.model, config.training, config.evaluation
    assert (model.structure, model.masks, model.keypoints) == network
    assert (model.head_width, model.regions, config.encoder.encoder) == (1, 512, "resnet50")
    assert (training.iterations, training.milestones) == schedule
    assert (training.lr, training.batch_size, training.warmup, training.gamma) == (0.02, 16, warmup, 0.1)
    assert (training.schedule, training.sgd_momentum, training.weight_decay) == ("step", 0.9, 1e-4)
    assert (training.sides, training.max_side) == (sides, 1333)
    assert (evaluation.test_side, evaluation.metric, evaluation.precise_bn) == (800, metric, 200)
    assert (evaluation.proposals, evaluation.test_images) == (1000, None)
    assert (config.data.source, config.data.labels) == (SOURCES[name.partition("-")[0]], "all")


def test_every_published_recipe_is_in_the_table():
    (table,) = (mark for mark in test_published_settings.pytestmark if mark.name == "parametrize")
    assert [row[0] for row in table.args[1]] == [name for name in DETECTION if not name.startswith("own-")]


def test_without_masks_objects_that_have_none_are_trained_on(tmp_path, capsys):
    polygon = "0 0.25 0.25 0.75 0.25 0.75 0.5"
    write_yolo(tmp_path, {"train/a": f"{polygon}\n{polygon}\n{BOX}", "train/b": BOX, "val/c": f"{polygon}\n{BOX}"})
    words = ["random", "--recipe", "own-c4", *TINY, "--data", f"yolo:{tmp_path}", "--labels", "all"]
    detect(*words, "--iterations", "1", "--milestones", "1", "--out", str(tmp_path / "run"))
    assert "without a mask" not in capsys.readouterr().err
    config = DetectionRun.open(tmp_path / "run").config()
    train, test = open_sets(config)
    assert ([len(train.target(i)) for i in range(len(train))], len(test.target(0))) == ([3, 1], 2)
    train, test = open_sets(replace(config, model=replace(config.model, masks=True)))
    assert ([len(train.target(i)) for i in range(len(train))], len(test.target(0))) == ([2], 1)


@pytest.mark.parametrize("recipe", ["own-c4", "own-fpn"])
def test_masks_are_suggested_where_objects_have_them(recipe, tmp_path):
    polygon = "0 0.25 0.25 0.75 0.25 0.75 0.5"
    for name, line in (("masks", polygon), ("boxes", BOX)):
        write_yolo(tmp_path / name, {"train/a": line, "val/b": line})
        config = replace(DETECTION[recipe].config, data=LabelledData(f"yolo:{tmp_path / name}"))
        facts = examine(open_sets(config)[0], None)
        assert facts.masks == suggest(facts, config)[0].model.masks == (name == "masks")


def coco_with_keypoints(folder: Path, visibility: list[int]) -> DetectionConfig:
    """An image for each visibility, with two persons of one keypoint, seen so in the second."""
    for name in ("train", "val"):
        persons = [
            annotation(image, keypoints=[10, 12, v]) for image, seen in enumerate(visibility, 1) for v in (0, seen)
        ]
        path = write_coco(folder, persons, f"{name}.json", images=len(visibility), categories={3: "person"})
        data = json.loads(path.read_text())
        data["categories"][0]["keypoints"] = ["nose"]
        path.write_text(json.dumps(data))
    return DetectionConfig(
        data=LabelledData(f"coco:{folder}"),
        encoder=Encoder("resnet18w0.125"),
        model=Model("fpn", keypoints=True, head_width=0.05),
    )


def test_a_keypoint_detector_is_trained_on_images_with_a_visible_keypoint(tmp_path, caplog):
    config = coco_with_keypoints(tmp_path, [2, 0, 1, 0])
    with caplog.at_level(logging.WARNING, "moco"):
        train, test = open_sets(config)
    assert [Path(train.name(i)).name for i in range(len(train))] == ["1.png", "3.png"]
    assert len(test) == 4
    (line,) = (record.getMessage() for record in caplog.records)
    assert line.startswith(f"coco:{tmp_path}: skipped 2 training images without a visible keypoint (the first: ")
    assert line.endswith("2.png)")
    assert DetectionTask(config, train, test).images == 2
    assert len(open_sets(replace(config, data=replace(config.data, labels="50%")))[0]) == 1
    assert len(open_sets(replace(config, model=Model()))[0]) == 4


def test_without_a_visible_keypoint_there_is_nothing_to_train_on(tmp_path):
    config = coco_with_keypoints(tmp_path, [0, 0])
    with pytest.raises(UserError, match=r"--keypoints: the objects of .* have none: --no-keypoints"):
        DetectionTask(config, *open_sets(config))


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
