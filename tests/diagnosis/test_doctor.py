"""Every illness is made to happen in a tiny real run, and is named; a healthy run is called healthy."""

import io
import json
import time
from pathlib import Path

import pytest
import torch
from torchvision.transforms.functional import to_pil_image

from moco.cli.main import main
from moco.data import Encoded, InMemory, Source
from moco.data.sources.shapes import draw
from moco.diagnosis.doctor import RULES, diagnose
from moco.diagnosis.records import Records
from moco.runs.config import Compute, Config, Contrast, Encoder, Log, Training, Views, with_options
from moco.runs.folder import Run, read_lines
from moco.training import Diverged, pretrain
from moco.training.build import device_of

CONFIG = Config(
    recipe="shapes-cpu",
    views=Views("shapes", 16),
    encoder=Encoder("tiny"),
    contrast=Contrast(32, 128, 0.99, 0.1, head="mlp", bn_group=8),
    training=Training(epochs=12, batch_size=32, lr=0.01, schedule="cosine", weight_decay=5e-4),
    compute=Compute(device="cpu", precision="fp32", workers=0),
    log=Log(knn_every=0, knn_k=20, log_every=4, monitor_every=24),
)


@pytest.fixture(scope="module")
def source() -> Source:
    train, test = (draw(torch.arange(start, start + count), size=16) for start, count in ((0, 512), (512, 256)))
    return Source(InMemory(train.images, train.labels), InMemory(test.images, test.labels), None)


def findings(folder: Path, source: Source, **options: object) -> dict:
    """The doctor's findings of a run of the healthy settings but for some options, by name."""
    config = with_options(CONFIG, **options)
    run = Run.create(folder / "run", config)
    pretrain(
        config,
        source,
        run,
        device_of(config.compute),
    )
    return {finding.name: finding for finding in diagnose(run)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"symmetric": True, "epochs": 8},
        {"iterations": 144, "warmup": 8.0},
        {"mechanism": "end-to-end", "epochs": 8},
        {"mechanism": "memory-bank", "lr": 0.001, "epochs": 20},
        {"mechanism": "moco-v3", "hidden": 64, "temperature": 0.2, "epochs": 8},
    ],
)
def test_a_healthy_run_is_called_healthy_at_its_end_and_on_its_way(tmp_path, source, options, caplog):
    with caplog.at_level("WARNING", logger="moco"):
        found = findings(tmp_path, source, **options)
    assert set(found) == {"healthy"}
    assert found["healthy"].severity == "good"
    assert not caplog.records


@pytest.mark.parametrize(
    ("illness", "options"),
    [
        ("queue still filling", {"queue_size": 8192, "epochs": 2}),
        ("at chance", {"lr": 1e-7, "epochs": 6}),
        ("collapsed", {"lr": 0.3, "weight_decay": 1.0, "epochs": 6}),
        ("K too large for this data set", {"queue_size": 512, "epochs": 4}),
        ("momentum too high for this many steps", {"momentum": 0.9999, "epochs": 2}),
        ("momentum too high for this many steps", {"momentum": 1.0, "epochs": 2}),
        ("momentum too low", {"momentum": 0.0, "epochs": 6}),
        ("momentum too low", {"momentum": 0.9, "epochs": 24}),
        ("learning rate too high", {"lr": 3.0, "epochs": 6}),
        ("still improving", {"knn_every": 6}),
        ("converged", {"schedule": "step", "milestones": (2.0,), "gamma": 1e-9, "knn_every": 1}),
    ],
)
def test_an_illness_is_named(tmp_path, source, illness, options):
    found = findings(tmp_path, source, **options)
    assert illness in found
    assert "healthy" not in found or found[illness].severity in ("note", "good")
    for said in (found[illness].text, found[illness].evidence, found[illness].advice, found[illness].source):
        assert said


def test_shuffling_cures_the_cheat(tmp_path, source):
    options = {"bn_group": 4, "epochs": 16, "lr": 0.03, "head": "linear"}
    look_ups = {}
    for shuffle in (True, False):
        found = findings(tmp_path / str(shuffle), source, **options, shuffle=shuffle)
        assert ("cheating through BN" in found) == (not shuffle)
        lines = read_lines(Run(tmp_path / str(shuffle) / "run").metrics)
        look_ups[shuffle] = [line["accuracy"] for line in lines if "accuracy" in line][-10:]
    assert sum(look_ups[False]) > 1.2 * sum(look_ups[True])


def test_end_to_end_cheats_too(tmp_path, source):
    options = {"mechanism": "end-to-end", "bn_group": 4, "epochs": 16, "lr": 0.03, "head": "linear", "shuffle": False}
    assert "cheating through BN" in findings(tmp_path, source, **options)


def test_a_run_that_diverged_is_called_so(tmp_path, source):
    with pytest.raises(Diverged):
        findings(tmp_path, source, lr=1e6)
    (found, *_) = diagnose(Run(tmp_path / "run"))
    assert (found.name, found.severity) == ("diverged", "problem")


class Slow:
    """Images that take their time to come."""

    remote = False

    def __init__(self, images: torch.Tensor) -> None:
        self.files = []
        for image in images:
            file = io.BytesIO()
            to_pil_image(image).save(file, "PNG")
            self.files.append(file.getvalue())

    def __len__(self) -> int:
        return len(self.files)

    def read(self, position: int) -> bytes:
        time.sleep(0.005)
        return self.files[position]

    def name(self, position: int) -> str:
        return f"{position}.png"


def test_starving_for_data_is_named(tmp_path, source):
    slow = Source(Encoded(Slow(source.train.images[:96])), None, None)
    assert "starving for data" in findings(tmp_path, slow, epochs=4, queue_size=16)


def test_what_is_found_is_said_once_while_training(tmp_path, source, caplog, monkeypatch):
    with caplog.at_level("WARNING", logger="moco"):
        findings(tmp_path, source, momentum=0.9999, epochs=4)
    assert sum("momentum too high" in record.message for record in caplog.records) == 1


def test_the_command_tells_and_its_exit_code_too(tmp_path, source, capsys):
    findings(tmp_path, source, epochs=2, momentum=0.9, lr=0.001, queue_size=32)
    main(["doctor", str(tmp_path / "run")])
    assert "healthy" in capsys.readouterr().out
    (told,) = json.loads((tmp_path / "run/findings.json").read_text())
    assert told["severity"] == "good"
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(tmp_path)])
    assert left.value.code == 2


def test_damaged_records_and_a_run_of_somebody_else_are_read(tmp_path, source, capsys):
    findings(tmp_path, source, epochs=2, momentum=0.9, lr=0.001, queue_size=32)
    run = tmp_path / "run"
    for name, line in (("metrics", {"step": 32, "loss": "x"}), ("timing", {"step": 32, "waiting": "y"})):
        with (run / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
    (run / "findings.json").mkdir()
    main(["doctor", str(run)])
    said = capsys.readouterr().out
    assert "healthy" in said
    assert "not kept" in said


def records(lines: list[dict], **options: object) -> Records:
    return Records(with_options(CONFIG, **options), lines, [])


def named(lines: list[dict], **options: object) -> set[str]:
    made = records(lines, **options)
    return {finding.name for rule in RULES if (finding := rule(made))}


def test_gains_to_the_last_are_still_improving():
    gains = [{"step": 10 * i, "epoch": i, "knn": 0.3 + 0.01 * i} for i in range(12)]
    assert named(gains) == {"still improving"}
    flat = [{"step": 10 * i, "epoch": i, "knn": 0.3 + min(0.01 * i, 0.03)} for i in range(12)]
    assert named(flat) == {"converged"}


@pytest.mark.parametrize(
    ("groups", "shuffle", "advice"), [(4, True, None), (4, False, "--shuffle"), (1, True, "--bn-group 8")]
)
def test_shuffling_helps_where_there_are_groups_to_shuffle(groups, shuffle, advice):
    lines = [{"step": 100, "epoch": 6.0, "accuracy": 0.9, "bn_leak": 0.5, "bn_groups": groups}]
    found = [finding for rule in RULES if (finding := rule(records(lines, shuffle=shuffle)))]
    assert [finding.name for finding in found] == (["cheating through BN"] if advice else [])
    assert not advice or found[0].advice.startswith(advice)


@pytest.mark.parametrize("number", range(9, 22))
@pytest.mark.parametrize("gain", [0.004, 0.01, 0.04])
def test_a_gain_is_never_called_converged_however_steady(number, gain):
    lines = [{"step": 10 * i, "epoch": i, "knn": 0.1 + gain * i} for i in range(number)]
    assert named(lines) == {"still improving"}


@pytest.mark.parametrize("queue_size", [512, 8192])
def test_the_advice_on_k_is_an_eighth_of_the_images_however_full_the_queue_is(queue_size):
    lines = [{"step": 8, "epoch": 8 * 32 / 1000, "queue_real": 0.1, "queue_share": 0.05, "same_image": 0.0}]
    made = records(lines, queue_size=queue_size)
    (found,) = (finding for rule in RULES if (finding := rule(made)) and finding.name.startswith("K too large"))
    assert "--queue-size 125 " in found.advice
    assert f"{queue_size / 1000:.0%} of the keys" in found.evidence


def test_a_loss_that_rises_while_the_queue_fills_is_no_illness():
    lines = [
        {"step": step, "epoch": step / 1600, "loss": 3 + step / 64, "accuracy": 0.1, "queue_real": step / 128}
        for step in range(4, 64, 4)
    ]
    assert named(lines, queue_size=4096) == {"queue still filling"}


def test_a_loss_that_rises_with_the_queue_full_is():
    lines = [
        {"step": step, "epoch": step / 16, "loss": 2 + step / 200, "accuracy": 0.1, "queue_real": 1.0}
        for step in range(4, 400, 4)
    ]
    assert "learning rate too high" in named(lines)
