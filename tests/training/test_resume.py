"""A run stopped anywhere and continued gives the numbers that it would have given, bit for bit."""

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from moco.cli.main import main
from moco.data import InMemory, open_source
from moco.data.formats.pack import pack
from moco.data.sources.source import Source
from moco.runs.checkpoint import newest_checkpoint, read_checkpoint
from moco.runs.config import Compute, Config, Contrast, Data, Encoder, Log, Training, Views
from moco.runs.folder import Run, read_lines
from moco.runtime.errors import UserError
from moco.runtime.signals import Stopped
from moco.training import Pretraining, build, pretrain
from moco.training.build import device_of
from tests.sabotage import dropout

STEPS = 11  # 2 epochs of 87 images, 16 at a time; 9 of 96 are held out


@pytest.fixture(scope="session")
def images(random_npz) -> Path:
    return random_npz(96)


@pytest.fixture
def config(images) -> Config:
    return Config(
        recipe="shapes-cpu",
        data=Data(f"npz:{images}"),
        views=Views("cifar", 16),
        encoder=Encoder("tinyw0.25"),
        contrast=Contrast(16, 48, 0.9, 0.1, head="mlp", symmetric=True, bn_group=8),
        training=Training(epochs=2, batch_size=16, lr=0.06, schedule="cosine", warmup=0.5),
        compute=Compute(device="cpu", precision="fp32", workers=0),
        log=Log(knn_every=1, knn_k=5, log_every=3),
    )


def train(config: Config, run: Run, resume: bool = False) -> None:
    pretrain(
        config,
        open_source(config.data.source),
        run,
        device_of(config.compute),
        resume,
    )


def stop_after(monkeypatch, *steps: int, number: int = signal.SIGTERM) -> None:
    """A signal comes in the midst of each of these steps, once."""
    update, left = Pretraining.update, set(steps)

    def watched(self, *views):
        if self.step + 1 in left:
            left.discard(self.step + 1)
            signal.raise_signal(number)
        update(self, *views)

    monkeypatch.setattr(Pretraining, "update", watched)


@pytest.mark.parametrize(
    ("mechanism", "optimizer"),
    [("end-to-end", "sgd"), ("memory-bank", "sgd"), ("moco-v3", "lars"), ("moco-v3", "adamw"), ("end-to-end", "muon")],
)
def test_the_other_mechanisms_continue_too(tmp_path, monkeypatch, config, mechanism, optimizer):
    contrast = replace(config.contrast, mechanism=mechanism, symmetric=False, hidden=32)
    config = replace(config, contrast=contrast, training=replace(config.training, optimizer=optimizer))
    whole, stopped = (Run.create(tmp_path / name, config) for name in ("whole", "stopped"))
    train(config, whole)
    stop_after(monkeypatch, 4)
    with pytest.raises(Stopped):
        train(config, stopped)
    train(config, Run.open(stopped.path), resume=True)
    assert_same_run(whole.path, stopped.path)


def test_a_memory_bank_that_does_not_fit_says_what_it_would_take(tmp_path, monkeypatch, config):
    config = replace(config, contrast=replace(config.contrast, dim=128, mechanism="memory-bank", symmetric=False))
    monkeypatch.setattr("moco.runtime.device.Device.free_bytes", lambda self: 40_000)
    with pytest.raises(UserError, match=r"a vector for each of 87 images takes .* GB free: .* --mechanism moco"):
        train(config, Run.create(tmp_path / "run", config))


def test_continued_within_an_epoch_with_other_workers_from_shards(tmp_path, monkeypatch, config):
    with np.load(config.data.source.removeprefix("npz:")) as arrays:
        pixels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
        pack(Source(InMemory(pixels), None, None), tmp_path / "shards", images_per_shard=20, workers=0)
    config = replace(
        config,
        data=Data(f"shards:{tmp_path / 'shards'}"),
        compute=replace(config.compute, workers=2, cache_mb=0),
    )
    monkeypatch.setattr("moco.data.sources.shards._OPEN", 2)

    def run_in(folder, config, resume=False):
        run = Run.open(folder) if resume else Run.create(folder, config)
        source = open_source(config.data.source, cache_mb=0)
        pretrain(
            config,
            source,
            run,
            device_of(config.compute),
            resume,
        )
        return run

    whole = run_in(tmp_path / "whole", config)
    stop_after(monkeypatch, 2, 9)
    with pytest.raises(Stopped):
        run_in(tmp_path / "stopped", config)
    for workers in (0, 1):
        resumed = replace(config, compute=replace(config.compute, workers=workers))
        Run.open(tmp_path / "stopped").require(resumed)
        if workers == 0:
            with pytest.raises(Stopped):
                run_in(tmp_path / "stopped", resumed, resume=True)
        else:
            run_in(tmp_path / "stopped", resumed, resume=True)
    assert_same_run(whole.path, tmp_path / "stopped")


def assert_same(one: object, other: object, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for i, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}/{i}")
    else:
        assert one == other, where


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, queue, optimiser, everything in the last checkpoint; and metrics.jsonl byte for byte."""
    paths = newest_checkpoint(Run(one)), newest_checkpoint(Run(other))
    assert paths[0].name == paths[1].name
    states = [read_checkpoint(path) for path in paths]
    assert "query.backbone.stem.0.weight" in states[0]["mechanism"]
    assert states[0]["optimizer"]["state"]
    assert_same(*states)
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()


def changed(config: Config, name: str) -> Config:
    return {
        "fp32": config,
        "bf16": replace(config, compute=replace(config.compute, precision="bf16")),
        "accumulate": replace(config, training=replace(config.training, accumulation_steps=2)),
        "checkpoints": replace(config, log=replace(config.log, checkpoint_minutes=0.0, keep_checkpoints=2)),
        "progressive": replace(config, views=replace(config.views, start_scale=0.75, start_share=0.5)),
        "no shuffle, v1": replace(config, contrast=Contrast(16, 40, shuffle=False, bn_group=None)),
    }[name]


@pytest.mark.parametrize(
    "name",
    # Without bf16 instructions the second takes 12 s.
    [
        "fp32",
        pytest.param("bf16", marks=pytest.mark.slow),
        "accumulate",
        "checkpoints",
        "progressive",
        "no shuffle, v1",
    ],
)
def test_a_run_stopped_at_several_steps_is_the_run_without_stops(tmp_path, monkeypatch, config, name):
    config = changed(config, name)
    whole = Run.create(tmp_path / "whole", config)
    train(config, whole)
    steps = sorted(random.Random(name).sample(range(1, STEPS), 3))
    stop_after(monkeypatch, *steps)
    run = Run.create(tmp_path / "stopped", config)
    for step in steps:
        with pytest.raises(Stopped) as stopped:
            train(config, run, resume=step != steps[0])
        assert (stopped.value.step, stopped.value.signal_number) == (step, signal.SIGTERM)
    train(config, run, resume=True)
    assert_same_run(whole.path, run.path)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [3, 6, 9, 11]
    assert [line["step"] for line in lines if "knn" in line] == [0, 6, 11]


def test_a_damaged_newest_checkpoint_costs_steps_but_no_numbers(tmp_path, monkeypatch, config):
    config = changed(config, "checkpoints")
    whole, run = (Run.create(tmp_path / name, config) for name in ("whole", "damaged"))
    train(config, whole)
    stop_after(monkeypatch, 7)
    with pytest.raises(Stopped):
        train(config, run)
    newest = newest_checkpoint(run)
    newest.write_bytes(newest.read_bytes()[:-1000])
    train(config, run, resume=True)
    assert_same_run(whole.path, run.path)


def test_a_finished_run_is_left_as_it_is(tmp_path, config):
    run = Run.create(tmp_path / "run", config)
    train(config, run)
    read = [newest_checkpoint(run), run.metrics, run.timing, run.path / "config.yaml"]
    before = [path.read_bytes() for path in read]
    train(config, run, resume=True)
    assert [path.read_bytes() for path in read] == before
    assert run.saved() == [read[0], run.checkpoints / "step-000000000.pt"]


def options(images: Path) -> list[str]:
    return shlex.split(
        f"--data npz:{images} --encoder tinyw0.25 --image-size 16 --dim 16 --queue-size 48 --batch-size 16 "
        "--bn-group 8 --warmup 0 --knn-k 5 --knn-every 1 --log-every 3 --device cpu --precision fp32 "
        "--epochs 10 --checkpoint-minutes 0.0"
    )


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "moco", "pretrain", "shapes-cpu", *map(str, words)]


def wait_for_a_checkpoint(process: subprocess.Popen, run: Path) -> None:
    end = time.monotonic() + 120
    while not list((run / "checkpoints").glob("step-*.pt")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_a_process_killed_and_told_to_stop_at_any_moment_is_continued(tmp_path, images):
    """SIGKILL after the first checkpoint, then SIGINT in the run that continues it, then on to the end."""
    main(["pretrain", "shapes-cpu", *options(images), "--out", str(tmp_path / "whole")])
    run, resume = tmp_path / "killed", ("--out", tmp_path / "killed", "--resume")
    with subprocess.Popen(command(*options(images), "--out", run), stderr=subprocess.DEVNULL) as process:
        wait_for_a_checkpoint(process, run)
        time.sleep(random.random() * 0.5)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    before = newest_checkpoint(Run(run))
    with subprocess.Popen(command(*resume), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 120
        while Run(run).saved()[0] <= before:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert process.returncode == 130
    step = read_checkpoint(newest_checkpoint(Run(run)))["step"]
    assert said.startswith(f"stopped after step {step}; continue it by:")
    assert "".join(said.split()).endswith("".join(f"moco pretrain shapes-cpu --out {run} --resume".split()))
    main(["pretrain", "shapes-cpu", "--out", str(run), "--resume"])
    assert_same_run(tmp_path / "whole", run)


def test_told_to_stop_by_sigterm_the_command_ends_with_143(tmp_path, monkeypatch, capsys, images):
    monkeypatch.chdir(tmp_path)
    stop_after(monkeypatch, 3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        main(["pretrain", "shapes-cpu", *options(images)])
    assert left.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert capsys.readouterr().out == ("stopped after step 3; continue it by:\n  moco pretrain shapes-cpu --resume\n")
    assert os.listdir("runs") == ["shapes-cpu"]  # noqa: PTH208
    for words, said in (
        (["shapes-cpu", "--resume", "--lr", "0.5"], "other options: lr "),
        (["shapes-cpu", "--resume", "--queue-size", "49", "--no-symmetric"], "queue_size 48 -> 49"),
        (["cifar10-cpu", "--resume", "--out", "runs/shapes-cpu"], "recipe shapes-cpu -> cifar10-cpu"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["pretrain", *words])
        assert left.value.code == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


def test_a_loss_that_is_not_finite_stops_at_its_step_and_spares_the_last_good_checkpoint(tmp_path, config):
    config = replace(changed(config, "checkpoints"), training=replace(config.training, lr=1e30, warmup=0))
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"the loss of step 2 is not finite: .* last good checkpoint is .*000001\.pt"):
        train(config, run)
    state = read_checkpoint(newest_checkpoint(run))
    assert all(value.isfinite().all() for value in state["mechanism"].values())
    lines = run.metrics.read_text().splitlines()
    assert json.loads(lines[-1]) == {"step": 2, "diverged": 2}
    assert not any("NaN" in line for line in lines)


@pytest.mark.parametrize("name", ["a loss", "a weight"])
def test_what_is_not_finite_never_enters_a_checkpoint(tmp_path, monkeypatch, config, name):
    config = changed(config, "checkpoints")
    update = Pretraining.update

    def spoilt(self, *views):
        update(self, *views)
        if self.step == 5 and name == "a loss":
            self.pending[-1][0] = float("inf")
        elif self.step == 5:
            self.parameters[-1].data[0] = float("nan")

    monkeypatch.setattr(Pretraining, "update", spoilt)
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"(loss of|weights after) step 5 (is|are) not finite: .*step-000000004\.pt"):
        train(config, run)
    monkeypatch.undo()
    train(config, run, resume=True)
    assert read_checkpoint(newest_checkpoint(run))["step"] == STEPS


def test_accumulation_gives_the_same_weights(tmp_path, config):
    """BN groups of 8 divide parts of 16 and of 8 images alike. Running statistics move once a part, and so differ."""
    states = []
    for accumulate in (1, 2):
        # A few steps: what rounding makes of the weights grows from step to step.
        training = replace(config.training, epochs=1, lr=0.01, accumulation_steps=accumulate)
        log = replace(config.log, knn_every=0)
        own = replace(config, training=training, log=log)
        run = Run.create(tmp_path / str(accumulate), own)
        train(own, run)
        states.append(read_checkpoint(newest_checkpoint(run)))
    one, two = (state["mechanism"] for state in states)
    assert states[0]["step"] == 6
    for key in [key for key in one if "running" not in key and "batches_tracked" not in key]:
        torch.testing.assert_close(one[key], two[key], atol=1e-5, rtol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_dropout_continues_with_the_generator_where_it_was(tmp_path, monkeypatch, config):
    """Also where images are encoded, as each DataLoader that is made draws a number."""
    monkeypatch.setattr(build, "build_encoder", build.build_encoder)  # put back after the test
    dropout(0)
    with np.load(config.data.source.removeprefix("npz:")) as arrays:
        pixels = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).contiguous()
    pack(Source(InMemory(pixels), None, None), tmp_path / "shards", images_per_shard=50, workers=0)
    config = replace(config, data=Data(f"shards:{tmp_path / 'shards'}"), compute=replace(config.compute, cache_mb=0))
    whole, stopped = (Run.create(tmp_path / name, config) for name in ("whole", "stopped"))
    source = open_source(config.data.source, cache_mb=0)
    pretrain(config, source, whole, device_of(config.compute))
    stop_after(monkeypatch, 2, 7)
    for resume in (False, True):
        with pytest.raises(Stopped):
            pretrain(config, source, stopped, device_of(config.compute), resume)
    pretrain(config, source, stopped, device_of(config.compute), resume=True)
    assert_same_run(whole.path, stopped.path)


@pytest.mark.slow
def test_efficientnet_b0_which_drops_out_at_random_continues_to_the_same_loss(tmp_path, monkeypatch, config):
    config = replace(config, encoder=Encoder("efficientnet_b0"), training=replace(config.training, epochs=1))
    whole, stopped = (Run.create(tmp_path / name, config) for name in ("whole", "stopped"))
    train(config, whole)
    stop_after(monkeypatch, 3)
    with pytest.raises(Stopped):
        train(config, stopped)
    train(config, stopped, resume=True)
    assert whole.metrics.read_bytes() == stopped.metrics.read_bytes()


def test_a_run_killed_after_its_first_checkpoint_starts_as_it_was_started(tmp_path, monkeypatch, config):
    """The checkpoint of step 0: what was measured before it is not written twice."""
    whole, killed = (Run.create(tmp_path / name, config) for name in ("whole", "killed"))
    train(config, whole)

    def killed_at_once(self, *views):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Pretraining, "update", killed_at_once)
        with pytest.raises(KeyboardInterrupt):
            train(config, killed)
    assert [path.name for path in killed.saved()] == ["step-000000000.pt"]
    (killed.checkpoints / ".step-000000003.pt.123").write_bytes(b"half-written")
    train(config, killed, resume=True)
    assert_same_run(whole.path, killed.path)
    assert len(list(killed.checkpoints.iterdir())) == 2


def test_auto_is_decided_at_the_start_and_stored(tmp_path, monkeypatch, images):
    """So that the run is continued as it was started, whatever the machine, and whatever the command says of it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("moco.runtime.device._fast_bf16", lambda device: True)
    words = [word for word in options(images) if word not in ("--precision", "fp32")] + ["--epochs", "1"]
    main(["pretrain", "shapes-cpu", *words, "--out", "run", "--resume", "auto"])
    compute = Run(Path("run")).config().compute
    assert (compute.precision, compute.decoder) == ("bf16", "cpu")
    monkeypatch.setattr("moco.runtime.device._fast_bf16", lambda device: False)
    used = []
    monkeypatch.setattr("moco.training.pretrain", lambda config, *_: used.append(config))
    main(["pretrain", "shapes-cpu", *words, "--precision", "auto", "--out", "run", "--resume", "auto"])
    assert used[0].compute.precision == "bf16"


def test_a_run_of_0_1_0_opens_and_continues(tmp_path, monkeypatch, images):
    monkeypatch.chdir(tmp_path)
    stop_after(monkeypatch, 3)
    with pytest.raises(SystemExit):
        main(["pretrain", "shapes-cpu", *options(images), "--epochs", "1"])
    run = Run(Path("runs/shapes-cpu"))
    as_it_was_written_by_0_1_0(run)
    assert run.config().contrast.key_momentum == 0.99
    assert run.config().compute.cache_mb == 4096
    main(["pretrain", "shapes-cpu", "--resume"])
    assert read_checkpoint(newest_checkpoint(run))["step"] == 6
    lines = read_lines(run.metrics)
    assert [line["step"] for line in lines if "loss" in line] == [3, 6]
    assert "feature_std" in lines[1]


def as_it_was_written_by_0_1_0(run: Run) -> None:
    file = run.path / "config.yaml"
    values = yaml.safe_load(file.read_text())
    for group, before, now in (
        ("contrast", "momentum", "key_momentum"),
        ("data", "lanes", "shard_streams"),
        ("training", "accumulate", "accumulation_steps"),
        ("compute", "resident_mb", "cache_mb"),
    ):
        values[group][before] = values[group].pop(now)
    file.write_text(yaml.safe_dump(values))
    path = newest_checkpoint(run)
    state = read_checkpoint(path)
    del state["ranks"]
    state["pending"] = state["pending"][:, :2]
    line = json.dumps({"step": 0, "spread": 0.5}) + "\n"
    rest = run.metrics.read_text()[: state["metrics_size"]]
    first, _, others = rest.partition("\n")
    run.metrics.write_text(f"{first}\n{line}{others}")
    state["metrics_size"] += len(line)
    torch.save(state, path)
