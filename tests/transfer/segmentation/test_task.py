"""moco segment as a user runs it, at a size that a test can wait for."""

import json
import shlex
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import moco
from moco.cli.main import main
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runs.folder import read_lines
from moco.runtime.errors import UserError
from moco.transfer.run import SegmentationRun
from moco.transfer.segmentation.config import Evaluation, SegmentationConfig, SegmentationSchedule
from moco.transfer.segmentation.pictures import as_mask
from moco.transfer.segmentation.recipes import SEGMENTATION
from moco.transfer.segmentation.sets import CITYSCAPES_IDS, VOC_CLASSES, DrawnImages
from moco.transfer.segmentation.suggest import Facts, examine, suggest
from moco.transfer.segmentation.task import Reader, SegmentationTask
from moco.transfer.segmentation.transforms import CROPS, SCALES
from moco.transfer.trainer import Trainer
from tests.ranks import run_ranks

SCHEDULE = "--iterations 4 --milestones 3 --lr 0.02 --log-every 2"
NETWORK = "--encoder resnet18w0.125 --head-width 0.05 --crop 33 --batch-size 2"
COMPUTE = "--workers 0 --device cpu --precision fp32"
TINY = shlex.split(f"--recipe own-fcn --labels 8 {SCHEDULE} {NETWORK} {COMPUTE}")


def segment(*words: object, code: int | None = None) -> None:
    if code is None:
        main(["segment", *map(str, words)])
        return
    with pytest.raises(SystemExit) as left:
        main(["segment", *map(str, words)])
    assert left.value.code == code


def weights(folder: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(SegmentationRun(folder))
    assert path is not None
    return read_checkpoint(path)["model"]


def results(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """11 images of 40 pixels, 2 of them for validation, with masks and names of classes."""
    root, drawn = tmp_path_factory.mktemp("own"), DrawnImages(range(11), 40)
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for i in range(11):
        image, labels = drawn.read(i)
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(root / "images" / f"{i:02}.png")
        as_mask(labels, drawn.classes).save(root / "masks" / f"{i:02}.png")
    (root / "classes.txt").write_text("\n".join(drawn.classes))
    return root


@pytest.fixture(scope="module")
def trained(own, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("segment") / "run"
    segment("random", *TINY, "--data", f"own:{own}", "--out", folder)
    return folder


def test_a_run_leaves_results_pictures_and_a_page(trained, own):
    found = results(trained)
    assert list(found["numbers"]) == ["mIoU", "pixel accuracy"]
    assert (found["recipe"], found["init"], found["labels"], found["images"]) == ("own-fcn", "random", "8", 2)
    ious = [row["IoU"] for row in found["per_class"]]
    assert [row["class"] for row in found["per_class"]] == list(DrawnImages.classes)
    assert sum(row["pixels"] for row in found["per_class"]) == 2 * 40 * 40
    there = [iou for iou in ious if iou is not None]
    assert found["numbers"]["mIoU"] == pytest.approx(sum(there) / len(there))
    with Image.open(trained / "predictions.png") as sheet:
        assert sheet.size == (3 * 326 + 6, 3 * 340 + 6)  # two images, and a row with the legend
    assert (trained / "report.html").is_file()
    lines = read_lines(trained / "metrics.jsonl")
    assert [(line["step"], line["lr"]) for line in lines if "loss" in line] == [(2, 0.02), (4, pytest.approx(0.002))]
    assert all(line["loss"] == line["cross_entropy"] for line in lines if "loss" in line)
    assert {name: lines[-1][name] for name in found["numbers"]} == found["numbers"]


def test_a_stopped_run_continues_bit_for_bit(trained, own, tmp_path, monkeypatch, capsys):
    """SIGTERM in the midst of step 3, whose metrics belong to the line of step 4."""
    update = Trainer.update

    def watched(self, samples):
        if self.step == 2:
            signal.raise_signal(signal.SIGTERM)
        update(self, samples)

    folder = tmp_path / "run"
    monkeypatch.setattr(Trainer, "update", watched)
    segment("random", *TINY, "--data", f"own:{own}", "--out", folder, code=128 + signal.SIGTERM)
    monkeypatch.undo()
    printed = capsys.readouterr().out
    assert "stopped after step 3" in printed
    main(shlex.split(printed.splitlines()[-1])[1:])  # the command that it prints
    before, after = weights(trained), weights(folder)
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert (folder / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()
    assert results(folder) == results(trained)


@pytest.mark.slow
def test_two_ranks_are_one_process(trained, own, tmp_path):
    """Batch norm, the loss's divisor, the confusion matrix: all over both ranks."""
    words = shlex.join(["segment", "random", *TINY, "--data", f"own:{own}", "--out", str(tmp_path / "run")])
    ended = run_ranks(2, words, [tmp_path])
    assert [rank.code for rank in ended] == [0, 0], ended[0].err + ended[1].err
    one, two = weights(trained), weights(tmp_path / "run")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-3, atol=1e-5, msg=name)
    pairs = zip(read_lines(tmp_path / "run" / "metrics.jsonl"), read_lines(trained / "metrics.jsonl"), strict=True)
    for line, expected in pairs:
        assert line == {
            name: pytest.approx(value, rel=1e-3, abs=0.5 if "mIoU" in expected else 0)
            for name, value in expected.items()
        }
    assert results(tmp_path / "run")["images"] == 2
    assert sum(row["pixels"] for row in results(tmp_path / "run")["per_class"]) == 2 * 40 * 40


def test_a_trained_network_is_evaluated_again(trained, tmp_path, own):
    segment(trained, "--eval-only", *shlex.split(COMPUTE), "--out", tmp_path / "again")
    assert results(tmp_path / "again") == results(trained)
    assert (tmp_path / "again" / "predictions.png").is_file()


def test_a_trained_network_gives_masks_of_any_image(trained, own, tmp_path, capsys):
    (tmp_path / "new" / "more").mkdir(parents=True)
    Image.new("RGB", (50, 30), "red").save(tmp_path / "new" / "a.jpg")
    Image.new("L", (20, 60), 90).save(tmp_path / "new" / "more" / "a.png")
    (tmp_path / "new" / "b.png").write_bytes(b"no image")
    out = tmp_path / "out"
    segment(trained, "--predict", tmp_path / "new", "--workers", 0, "--device", "cpu", "--out", out)
    assert "2 images, 1 could not be read" in capsys.readouterr().out
    for name, size in (("a", (50, 30)), ("a-2", (20, 60))):
        with Image.open(out / "masks" / f"{name}.png") as mask:
            assert (mask.mode, mask.size) == ("P", size)
            assert np.array(mask).max() < len(DrawnImages.classes)
    assert sorted(path.name for path in (out / "overlays").iterdir()) == ["a-2.png", "a.jpg"]
    assert (out / "classes.txt").read_text().split() == list(DrawnImages.classes)
    segment(trained, "--predict", tmp_path / "new", "--out", out, code=2)
    assert "not an empty folder" in capsys.readouterr().err
    segmenter = moco.load_segmenter(trained)
    assert segmenter.classes == list(DrawnImages.classes)
    (labels,) = segmenter([tmp_path / "new" / "a.jpg"])
    with Image.open(out / "masks" / "a.png") as mask:
        assert (np.array(mask) == labels.numpy()).all()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such run .*which moco segment writes"):
        moco.load_segmenter(tmp_path)


def test_several_starts_labels_and_seeds_give_a_table(trained, own, tmp_path):
    words = [*TINY, "--data", f"own:{own}", "--iterations", 1, "--milestones", 1, "--trials", 2]
    words += ["--compare", "random", trained, "--over-labels", 4, "--out", tmp_path / "all"]
    segment(*words)
    entries = json.loads((tmp_path / "all" / "comparison.json").read_text())
    assert [(entry["init"], entry["labels"], len(entry["numbers"])) for entry in entries] == [
        (init, "4", 2) for init in ("random", str(trained))
    ]
    assert all(set(numbers) == {"mIoU", "pixel accuracy"} for entry in entries for numbers in entry["numbers"])
    runs = sorted((tmp_path / "all").glob("*/results.json"))
    assert {(found["init"], found["labels"], found["seed"]) for found in map(results, (r.parent for r in runs))} == {
        (init, "4", seed) for init in ("random", str(trained)) for seed in (0, 1)
    }
    assert (tmp_path / "all" / "comparison.png").is_file()
    assert "±" in (tmp_path / "all" / "comparison.md").read_text()
    times = [path.stat().st_mtime_ns for path in runs]
    segment(*words)  # all is there: nothing is trained again
    assert times == [path.stat().st_mtime_ns for path in runs]


def test_its_encoder_starts_another_run(trained, own, tmp_path):
    segment(trained, *TINY, "--data", f"own:{own}", "--iterations", 1, "--lr", 1e-12, "--out", tmp_path / "run")
    before, after = weights(trained), weights(tmp_path / "run")
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    for name in (name for name in before if name.startswith("encoder.") and not name.endswith(statistics)):
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=1e-6)
    assert not torch.equal(before["head.0.weight"], after["head.0.weight"])
    segment(tmp_path / "run", "--eval-only", "--workers", 0)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["init"] == str(trained)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("random --recipe voc-fnc", "did you mean voc-fcn"),
        ("random --recipe own-fcn", "--data is missing"),
        ("random --recipe own-fcn --data nowhere", "set of labelled pixels"),
        ("random --recipe voc-fcn --data voc:nowhere", "no such folder"),
        ("random --recipe own-fcn --data own:OWN --labels 10", "there are 9 training images"),
        ("random --recipe own-fcn --data own:OWN --crop 8", "--crop 8: at least 16"),
        ("random --recipe own-fcn --data own:OWN --crop 16 --batch-size 1", "--crop 16: of a batch of one"),
        ("random --recipe own-fcn --data own:OWN --encoder vit_s_16", "needs a ResNet's stages"),
        ("random --recipe own-fcn --data own:OWN --test-images 0", "--test-images 0: at least 1"),
        ("random --recipe own-fcn --data own:OWN --regions 4", "no option --regions"),
        ("random --eval-only", "is no run of moco segment"),
        ("--recipe own-fcn --data own:OWN", "what it starts from is missing"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_run(words, message, own, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    segment(*words.replace("OWN", str(own)).split(), code=2)
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 2  # a table of suggestions is on stdout
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((40, 40), 77, np.uint8), "05.png: holds the value 77"),
        (np.zeros((40, 30), np.uint8), "05.png: is 40x40 pixels and its mask 30x40"),
    ],
)
def test_a_mask_of_another_value_or_size_ends_the_run_in_one_line(mask, message, own, tmp_path, capsys):
    """Without room for unreadable images; with it the next image takes its place, and it is counted."""
    words = [*TINY, "--labels", "all", "--iterations", "9"]  # two passes
    damaged = tmp_path / "own"
    for folder in ("images", "masks"):
        (damaged / folder).mkdir(parents=True)
        for path in (own / folder).iterdir():
            (damaged / folder / path.name).write_bytes(path.read_bytes())
    (damaged / "classes.txt").write_text((own / "classes.txt").read_text())
    Image.fromarray(mask).save(damaged / "masks" / "05.png")
    segment("random", *words, "--data", f"own:{damaged}", "--out", tmp_path / "a", code=2)
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 9 training images cannot be read" in error
    assert message in error
    segment("random", *words, "--data", f"own:{damaged}", "--out", tmp_path / "b", "--max-bad", 0.2)
    text = (tmp_path / "b" / "log.txt").read_text()
    assert text.count(message) == 1  # each is named once, though it comes up in each pass


def test_what_would_be_ignored_or_lost_is_refused(trained, own, tmp_path, capsys):
    before = (trained / "results.json").read_bytes()
    data = ("--data", f"own:{own}")
    for words, message in (
        ((trained, "--eval-only", "--lr", 3), "leave out lr 0.003 -> 3.0"),
        ((trained, "--predict", own, "--threshold", 0.3), "no option --threshold"),
        (("random", *TINY, *data, "--out", trained), "already holds a run"),
        ((trained, *TINY, *data, "--out", trained, "--resume"), f"init random -> {trained}"),
        (("random", "--recipe", "voc-fcn", "--out", trained, "--resume"), "recipe own-fcn -> voc-fcn"),
        (("random", *TINY, *data, "--lr", 3, "--out", trained, "--resume"), "lr 0.02 -> 3.0"),
    ):
        segment(*words, code=2)
        assert message in capsys.readouterr().err
    assert (trained / "results.json").read_bytes() == before


def test_a_set_of_other_classes_is_refused(trained, own, tmp_path, capsys):
    other = tmp_path / "own"
    for folder in ("images", "masks"):
        (other / folder).mkdir(parents=True)
        for path in (own / folder).iterdir():
            (other / folder / path.name).write_bytes(path.read_bytes())
    (other / "classes.txt").write_text("\n".join([*DrawnImages.classes, "one more"]))
    segment(trained, "--eval-only", "--data", f"own:{other}", "--workers", 0, "--out", tmp_path / "x", code=2)
    assert "it was trained for other classes" in capsys.readouterr().err
    names = list(DrawnImages.classes)
    (other / "classes.txt").write_text("\n".join([names[0], names[2], names[1], *names[3:]]))
    segment(trained, "--eval-only", "--data", f"own:{other}", "--workers", 0, "--out", tmp_path / "x", code=2)
    assert f"number 1 is {names[1]}, there {names[2]}" in capsys.readouterr().err


def config(**options) -> SegmentationConfig:
    from moco.runs.config import Encoder
    from moco.transfer.segmentation.config import Model

    training = SegmentationSchedule(crop=24, batch_size=2, **options)
    return SegmentationConfig(encoder=Encoder("resnet18w0.125"), model=Model(0.05), training=training)


def test_a_sample_is_a_pure_function_of_seed_epoch_and_image():
    images = DrawnImages(range(3), 40)
    first, again, later, other = (
        Reader(images, seed, 24)(epoch, 1) for seed, epoch in ((5, 0), (5, 0), (5, 1), (6, 0))
    )
    assert first[0].shape == (3, 24, 24)
    assert first[1].shape == (24, 24)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0])
    assert not torch.equal(first[0], other[0])


def test_new_layers_depend_on_the_seed_alone():
    one, same, other = (
        SegmentationTask(config(seed=seed), DrawnImages([0], 40), DrawnImages([1], 40)).model.state_dict()
        for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.0.weight"], other["head.0.weight"])


@pytest.mark.parametrize(
    ("name", "source", "classes", "crop", "lr", "iterations", "milestones"),
    [
        ("voc-fcn", "voc:data/VOCdevkit", 21, 513, 0.003, 30_000, (21_000, 27_000)),
        ("cityscapes-fcn", "cityscapes:data/cityscapes", 19, 769, 0.01, 90_000, (63_000, 81_000)),
    ],
)
def test_published_settings(name, source, classes, crop, lr, iterations, milestones):
    """Section 4.2 and appendix A.5."""
    config = SEGMENTATION[name].config
    training, kind = config.training, source.partition(":")[0]
    assert isinstance(training, SegmentationSchedule)
    assert (config.data.source, config.data.labels, config.encoder.encoder) == (source, "all", "resnet50")
    assert len({"voc": VOC_CLASSES, "cityscapes": CITYSCAPES_IDS}[kind]) == classes
    assert (training.crop, training.lr, training.iterations, training.milestones) == (crop, lr, iterations, milestones)
    assert (training.batch_size, training.weight_decay, training.sgd_momentum) == (16, 1e-4, 0.9)
    assert (training.schedule, training.gamma, training.warmup) == ("step", 0.1, 0)
    assert (SCALES, CROPS[kind]) == ((0.5, 2.0), crop)
    assert (config.model.head_width, config.evaluation) == (1, Evaluation(None))


def test_every_published_recipe_is_in_the_table():
    (table,) = (mark for mark in test_published_settings.pytestmark if mark.name == "parametrize")
    assert [row[0] for row in table.args[1]] == [name for name in SEGMENTATION if not name.startswith("own-")]


def test_suggestions_follow_from_images_and_machine(own):
    plain = SegmentationConfig(recipe="own-fcn")
    on_cpu, choices = suggest(Facts(300, 500, None), plain)
    assert (on_cpu.training.crop, on_cpu.training.batch_size) == (257, 4)
    assert on_cpu.training.lr == pytest.approx(0.003 / 4)
    assert on_cpu.training.iterations == 45 * 300 // 4
    assert on_cpu.training.milestones == (2362, 3037)
    on_gpu, _ = suggest(Facts(10_582, 500, 80.0), plain)
    assert (on_gpu.training.crop, on_gpu.training.batch_size, on_gpu.training.lr) == (513, 16, 0.003)
    assert on_gpu.training.iterations == pytest.approx(30_000, rel=0.02)  # VOC's own
    assert suggest(Facts(1, 20, None), plain)[0].training.iterations == 200
    assert all(choice.reason for choice in choices)
    assert examine(DrawnImages(range(5), 40), None) == Facts(5, 40, None)


def test_without_a_readable_image_nothing_is_suggested():
    class Broken(DrawnImages):
        def read(self, index):
            raise UserError("disk 7: cannot be read")

    with pytest.raises(UserError, match="no training image can be read: disk 7"):
        examine(Broken(range(5), 40), None)
