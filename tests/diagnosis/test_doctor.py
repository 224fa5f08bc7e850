"""The doctor's rules, on recorded runs and on lines made by hand: no test depends on how a processor rounds.

The runs in recorded/ were made by `python -m bench.doctor --seeds 1 --record tests/diagnosis/recorded`, which also says
how often each illness is named in new ones.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.doctor import CASES, HEALTHY, Case
from moco.cli.main import main
from moco.data import InMemory, Source
from moco.diagnosis.doctor import RULES, SEVERITIES, Finding, diagnose
from moco.diagnosis.records import Records
from moco.runs.folder import Run, read_lines
from moco.runs.options import with_options
from moco.training import pretrain
from moco.training.build import device_of

RECORDED = Path(__file__).parent / "recorded"
BESIDES = {
    "large K": {"collapsed", "K too large for this data set", "momentum too high for this many steps"},
    "tiny lr": {"momentum too high for this many steps"},
    "weight decay 1": {"learning rate too high", "momentum too high for this many steps"},
    "K of the images": {"momentum too high for this many steps"},
    "m 0": {"collapsed"},
    "m 0.9": {"collapsed"},
    "lr 3": {"collapsed", "momentum too high for this many steps"},
    "lr 1e6": {"momentum too high for this many steps"},
    "slow images": {"at chance", "momentum too high for this many steps"},
    "kNN gains": {"healthy"},
    "lr falls at once": {"healthy"},
}
"""What else is true of a recorded run."""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_a_recorded_run_shows_is_found(case: Case) -> None:
    findings = diagnose(Run(RECORDED / case.folder))
    assert {found.name for found in findings} == {case.illness or "healthy"} | BESIDES.get(case.name, set())
    for found in findings:
        assert all((found.text, found.evidence, found.advice, found.source))
        assert "nan" not in found.evidence
        assert "inf" not in found.evidence
    gravity = [list(SEVERITIES).index(found.severity) for found in findings]
    assert gravity == sorted(gravity)


@pytest.mark.parametrize("case", [case for case in CASES if case.illness is None], ids=lambda case: case.name)
def test_a_healthy_run_is_called_healthy_on_its_way_too(case: Case, tmp_path: Path) -> None:
    run = Run(shutil.copytree(RECORDED / case.folder, tmp_path / "run"))
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text(lines[0])
    assert diagnose(run) == []  # nothing is known before a step
    for line in lines[1:]:
        with run.metrics.open("a") as file:
            file.write(line)
        findings = diagnose(run)
        assert findings
        assert not [found for found in findings if found.severity in ("problem", "warning")]


def run_of(*lines: dict[str, Any], timing: list[dict[str, Any]] | None = None, **options: Any) -> Records:
    """Records of the healthy settings on 512 images, 16 steps an epoch, which fill the queue in 4 steps; from lines."""
    facts = {"step": 0, "epoch": 0.0, "chance_loss": 5.0, "keys_per_step": options.get("batch_size", 32), "images": 512}
    return Records(with_options(HEALTHY, **options), [facts, *lines], timing or [])


def findings(*lines: dict[str, Any], timing: list[dict[str, Any]] | None = None, **options: Any) -> dict[str, Finding]:
    made = run_of(*lines, timing=timing, **options)
    return {found.name: found for rule in RULES if (found := rule(made))}


def line(step: int = 192, **values: Any) -> dict[str, Any]:
    """A line after a step, of a run of 192 steps."""
    return {"step": step, "epoch": step / 16, **values}


@pytest.mark.parametrize(("real", "found"), [(0.0, True), (0.99, True), (1.0, False)])
def test_the_queue_is_filling_until_all_keys_are_real(real: float, found: bool) -> None:
    assert set(findings(line(3, queue_real=real))) == ({"queue still filling"} if found else set())


def test_a_loss_that_is_not_finite_has_diverged() -> None:
    assert not findings(line(10, loss=9.0, accuracy=0.1))
    (found,) = findings(line(10, diverged=10), lr=4.0, iterations=200).values()
    assert (found.name, found.severity, found.advice) == ("diverged", "problem", "--lr 1, or a --warmup")
    assert "--precision fp32" in findings(line(10, diverged=10), precision="bf16")["diverged"].advice


@pytest.mark.parametrize(("loss", "found"), [(4.89, False), (4.91, True), (5.5, True)])
@pytest.mark.parametrize("mechanism", ["moco", "end-to-end", "memory-bank", "moco-v3"])
def test_a_loss_within_2_percent_of_chance_is_at_chance(mechanism: str, loss: float, found: bool) -> None:
    assert set(findings(line(loss=loss, accuracy=0.01), mechanism=mechanism)) == ({"at chance"} if found else set())


def test_at_chance_advises_what_may_be_wrong() -> None:
    advice = findings(line(loss=5.0, accuracy=0.0), temperature=0.5, key_momentum=0.9995, iterations=192)["at chance"]
    assert "--temperature 0.1" in advice.advice
    assert "--key-momentum" in advice.advice
    for temperature in (0.1, 0.2):  # what it would advise
        given = {"temperature": temperature, "key_momentum": 0.999, "iterations": 192}
        advice = findings(line(loss=5.0, accuracy=0.0), **given)["at chance"].advice
        assert "--" not in advice.replace("--lr", "")


def test_the_loss_says_nothing_before_the_run_is_warm() -> None:
    at_chance = {"loss": 5.0, "accuracy": 0.0}
    assert not findings(line(53, **at_chance))  # the queue is full after step 4: 50 more
    assert set(findings(line(54, **at_chance))) == {"at chance"}
    assert not findings(line(81, **at_chance), warmup=2.0)  # 32 steps
    assert set(findings(line(82, **at_chance), warmup=2.0)) == {"at chance"}
    assert not findings(line(69, **at_chance), warmup=20.0, iterations=192)
    assert set(findings(line(70, **at_chance), warmup=20.0, iterations=192)) == {"at chance"}
    assert not findings(line(103, **at_chance), iterations=10_000)  # a hundredth of all
    assert set(findings(line(104, **at_chance), iterations=10_000)) == {"at chance"}
    assert "at chance" in findings(line(20, **at_chance), iterations=20)  # its end is late enough


@pytest.mark.parametrize(("std", "found"), [(0.19, True), (0.2, False)])
def test_features_without_deviation_are_collapsed(std: float, found: bool) -> None:
    values = {"feature_std": std, "uniformity": -0.1, "loss": 5.0, "accuracy": 0.0, "rank": 1.0, "rank_of": 100.0}
    # A collapse is why the loss is at chance and the rank low: it is named alone.
    expected = {"collapsed"} if found else {"at chance", "collapsed dimensions"}
    assert set(findings(line(**values))) == expected
    assert not findings(line(20, **values))


@pytest.mark.parametrize(("rank", "found"), [(4.0, True), (4.1, False)])
def test_a_rank_below_4_percent_is_of_collapsed_dimensions(rank: float, found: bool) -> None:
    assert set(findings(line(rank=rank, rank_of=100.0))) == ({"collapsed dimensions"} if found else set())


@pytest.mark.parametrize(
    ("leaks", "found"),
    [([0.1], True), ([0.09], False), ([0.0, 0.2, 0.1, 0.01], True), ([0.9, 0.1, 0.1, 0.09], False)],
)
def test_a_leak_of_bn_is_the_mean_of_the_last_three(leaks: list[float], found: bool) -> None:
    lines = [line(60 + i, accuracy=0.5, bn_leak=leak, bn_groups=8) for i, leak in enumerate(leaks)]
    assert set(findings(*lines, shuffle=False)) == ({"cheating through BN"} if found else set())


@pytest.mark.parametrize(
    ("groups", "shuffle", "batch", "advice"),
    [
        (4, True, 32, None),
        (4, False, 32, "--shuffle"),
        (1, True, 32, "--bn-group 8 --shuffle"),
        (1, False, 256, "--bn-group 32 --shuffle"),
        (1, True, 31, "another --batch-size"),
    ],
)
def test_shuffling_helps_where_there_are_groups_to_shuffle(groups, shuffle, batch, advice) -> None:
    leak = line(accuracy=0.9, bn_leak=0.5, bn_groups=groups)
    found = findings(leak, shuffle=shuffle, batch_size=batch, iterations=192)
    assert set(found) == ({"cheating through BN"} if advice else set())
    assert not advice or found["cheating through BN"].advice.startswith(advice)


@pytest.mark.parametrize(("size", "symmetric", "found"), [(255, 0, 0), (256, 0, 1), (511, 1, 0), (512, 1, 1)])
def test_k_is_too_large_from_half_the_keys_of_an_epoch(size: int, symmetric: int, found: int) -> None:
    facts = {"step": 1, "epoch": 1 / 16, "keys_per_step": 32 * (1 + symmetric), "images": 512}
    config = with_options(HEALTHY, queue_size=size, symmetric=bool(symmetric))
    names = {one.name for rule in RULES if (one := rule(Records(config, [facts], [])))}
    assert names == ({"K too large for this data set"} if found else set())


@pytest.mark.parametrize("mechanism", ["end-to-end", "memory-bank", "moco-v3"])
def test_a_mechanism_without_a_queue_has_no_k(mechanism: str) -> None:
    assert not findings(line(), mechanism=mechanism, queue_size=512)


@pytest.mark.parametrize("queue_size", [512, 8192])
def test_the_advice_on_k_is_an_eighth_of_the_images_however_full_the_queue_is(queue_size: int) -> None:
    found = findings(line(8, queue_real=0.1, same_image=0.5), queue_size=queue_size)["K too large for this data set"]
    assert "--queue-size 64 " in found.advice
    assert f"{queue_size / 512:.0%} of the keys" in found.evidence
    assert "0.50 negatives" in found.evidence


def test_k_is_not_too_large_if_an_eighth_of_the_images_is_no_less() -> None:
    tiny = {"step": 1, "epoch": 0.5, "keys_per_step": 4, "images": 2}
    config = with_options(HEALTHY, batch_size=4, queue_size=1, iterations=1000)
    assert not [one for rule in RULES if (one := rule(Records(config, [tiny], [])))]


@pytest.mark.parametrize(
    ("m", "steps", "advice"),
    [
        (0.99, 121, None),
        (0.99, 119, "--key-momentum 0.9"),
        (0.999, 1150, "--key-momentum 0.99"),
        (0.9999, 11_000, "--key-momentum 0.999"),
        (0.9999, 12_500, None),
        (0.99, 90, "more --epochs"),
        (1.0, 1000, "--key-momentum 0.99"),
    ],
)
def test_keys_that_follow_in_more_steps_than_there_are_are_too_slow(m: float, steps: int, advice: str | None) -> None:
    found = findings(line(1), key_momentum=m, iterations=steps)
    assert set(found) == ({"momentum too high for this many steps"} if advice else set())
    assert not advice or found["momentum too high for this many steps"].advice.startswith(advice)
    assert not findings(line(1), key_momentum=m, iterations=steps, mechanism="end-to-end")


@pytest.mark.parametrize(
    ("m", "drifts", "severity"),
    [
        (0.95, [0.8], "warning"),
        (0.95, [0.81], None),
        (0.96, [0.1], None),
        (0.5, [0.1], "warning"),
        (0.49, [0.1], "problem"),
        (0.9, [0.1, 0.9, 0.9], None),
        (0.9, [0.9, 0.7, 0.7], "warning"),
        (0.9, [], None),
    ],
)
def test_keys_that_drift_from_what_they_were_are_too_fast(m, drifts, severity) -> None:
    lines = [line(190 + i, key_drift=drift, feature_std=0.9, uniformity=-3.0) for i, drift in enumerate(drifts)]
    lines.insert(0, line(3, key_drift=0.0))  # the queue is not full yet
    found = findings(*lines, line(192), key_momentum=m)
    assert set(found) == ({"momentum too low"} if severity else set())
    assert not severity or found["momentum too low"].severity == severity


def test_in_so_few_steps_that_keys_are_too_slow_they_are_not_too_fast() -> None:
    drifted = line(20, key_drift=0.1, feature_std=0.9, uniformity=-3.0)
    assert set(findings(drifted, key_momentum=0.95, iterations=20)) == {"momentum too high for this many steps"}


def test_a_collapse_with_a_low_momentum_is_of_the_momentum() -> None:
    collapsed = line(key_drift=0.99, feature_std=0.1, uniformity=-0.1)
    assert set(findings(collapsed, key_momentum=0.9)) == {"momentum too low", "collapsed"}
    assert set(findings(collapsed, key_momentum=0.99)) == {"collapsed"}
    assert not findings(line(20, key_drift=0.1, feature_std=0.1), key_momentum=0.5)


def losses(*values: float, accuracy: float = 0.1) -> list[dict[str, Any]]:
    """Ten lines after step 96, the last of which has these losses, and 10 before."""
    before = [line(9 * i, loss=2.0, accuracy=accuracy) for i in range(1, 11)]
    after = [2.0] * (10 - len(values)) + list(values)
    return [*before, *(line(92 + 10 * (i + 1), loss=loss, accuracy=accuracy) for i, loss in enumerate(after))]


@pytest.mark.parametrize(
    ("values", "found"),
    [((2.44, 2.44), False), ((2.46, 2.46), True), ((2.9, 2.0), False), ((2.0, 2.9), False), ((3.0, 2.0, 2.0), False)],
)
def test_a_loss_that_rises_with_the_queue_full_is_of_a_high_learning_rate(values, found) -> None:
    # Above its best by 15 % of what it had gained on chance: 0.45; the mean of the last two.
    assert set(findings(*losses(*values))) == ({"learning rate too high"} if found else set())


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({60: 2.0, 120: 2.0, 150: 3.0, 192: 3.0}, False),  # three lines after two fifths of the steps are too few
        ({90: 2.0, 120: 2.0, 150: 3.0, 192: 3.0}, True),
        ({60: 2.0, 90: 3.0, 120: 3.0, 150: 3.0, 192: 3.0}, False),  # it was lower only before them
        ({90: 4.5, 120: 4.5, 150: 4.6, 192: 4.6}, False),  # near chance, 5.0, less than 0.2 is noise
        ({90: 4.5, 120: 4.5, 150: 4.75, 192: 4.75}, True),
    ],
)
def test_what_counts_as_a_loss_that_rises(values: dict[int, float], found: bool) -> None:
    lines = [line(step, loss=loss, accuracy=0.1) for step, loss in values.items()]
    assert set(findings(*lines)) == ({"learning rate too high"} if found else set())


@pytest.mark.parametrize(("lr", "advice"), [(0.02, "--lr 0.005,"), (1.0, "--lr 0.037,")])
def test_a_lower_rate_is_advised_a_quarter_and_no_more_than_the_highest_published(lr: float, advice: str) -> None:
    assert findings(*losses(3.0, 3.0), lr=lr)["learning rate too high"].advice.startswith(advice)  # 0.3 / 256 * 32


def test_a_loss_that_rises_while_the_queue_fills_is_no_illness() -> None:
    lines = [line(step, loss=3 + step / 64, accuracy=0.1, queue_real=step / 128) for step in range(4, 64, 4)]
    assert set(findings(*lines, queue_size=4096)) == {"queue still filling", "K too large for this data set"}


def test_a_loss_that_rises_until_three_queues_are_passed_is_no_illness() -> None:
    facts = {"step": 0, "epoch": 0.0, "chance_loss": 8.0, "keys_per_step": 32, "images": 100_000}  # full at step 128
    lines = [line(step, loss=1.0 if step <= 360 else 3.0, accuracy=0.1) for step in range(10, 610, 10)]
    records = Records(with_options(HEALTHY, queue_size=4096), [facts, *lines], [])
    assert not [found for rule in RULES if (found := rule(records))]


@pytest.mark.parametrize(
    ("optimizer", "lr", "severity"),  # the highest are 0.3, 0.6, 1.5e-4 for a batch of 256; here it is 32; of Muon 0.2
    [
        ("sgd", 0.149, None),
        ("sgd", 0.151, "problem"),
        ("lars", 0.299, None),
        ("lars", 0.301, "problem"),
        ("adamw", 7.4e-5, None),
        ("adamw", 7.6e-5, "problem"),
        ("muon", 0.79, None),
        ("muon", 0.81, "problem"),
    ],
)
def test_a_collapse_at_four_times_the_highest_published_rate_is_of_the_rate(optimizer, lr, severity) -> None:
    found = findings(*losses(2.0), line(feature_std=0.1, uniformity=-0.1), lr=lr, optimizer=optimizer)
    assert set(found) == {"collapsed"} | ({"learning rate too high"} if severity else set())
    assert not severity or found["learning rate too high"].severity == severity


@pytest.mark.parametrize(
    ("waits", "found"),
    [
        ([0.9, 0.3], True),
        ([0.9, 0.29], False),
        ([0.9], False),
        ([0.0, 0.2, 0.5, 0.5], True),
        ([0.0, 0.1, 0.1, 0.9], False),
    ],
)
def test_a_device_that_waits_three_tenths_of_the_time_is_starving(waits: list[float], found: bool) -> None:
    timing = [{"step": 8 * i, "waiting": wait, "images_per_second": 100.0} for i, wait in enumerate(waits, 1)]
    assert set(findings(line(40), timing=timing)) == ({"starving for data"} if found else set())


def knn(*values: float, **options: Any) -> dict[str, Finding]:
    return findings(*(line(10 * i, knn=value, lr=0.01 / (i + 1)) for i, value in enumerate(values)), **options)


@pytest.mark.parametrize("number", range(9, 22))
@pytest.mark.parametrize("gain", [0.004, 0.01, 0.04])
def test_a_gain_is_never_called_converged_however_steady(number: int, gain: float) -> None:
    assert set(knn(*(0.1 + gain * i for i in range(number)))) == {"still improving"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.3 + min(0.01 * i, 0.03) for i in range(12)], "converged"),
        ([0.3] * 9, "converged"),
        ([0.3] * 8, None),
        ([0.3] * 6 + [0.302] * 3, "converged"),
        ([0.3] * 6 + [0.302, 0.304, 0.308], "still improving"),
        ([0.30, 0.34] * 6, "converged"),  # noise
        ([0.3, 0.302, 0.304], None),  # gained 0.2 points: no more than noise
        ([0.3, 0.302, 0.306], "still improving"),
        ([0.3, 0.306], None),
        ([0.3, 0.32, 0.31], None),
    ],
)
def test_knn_accuracy_has_converged_or_still_improves(values: list[float], expected: str | None) -> None:
    assert set(knn(*values)) == ({expected} if expected else set())


def test_the_advice_on_knn_follows_the_schedule() -> None:
    flat = [line(10 * i, knn=0.3, lr=0.01 * (1 if i < 9 else 0.04)) for i in range(12)]
    assert findings(*flat)["converged"].advice == "stop here"
    assert "lower learning rate" in findings(*flat[:9])["converged"].advice
    assert "more --epochs" in knn(0.1, 0.2, 0.3, iterations=20, key_momentum=0.9)["still improving"].advice
    assert knn(0.1, 0.2, 0.3)["still improving"].advice == "go on"


def test_a_finding_is_logged_once_while_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = with_options(HEALTHY, key_momentum=0.9999, epochs=2, batch_size=16, queue_size=16, monitor_every=2)
    images = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    run = Run.create(tmp_path / "run", config)
    with caplog.at_level("WARNING", logger="moco"):
        pretrain(config, Source(InMemory(images), None, None), run, device_of(config.compute))
    assert sum("momentum too high" in message for message in caplog.messages) == 1
    first = read_lines(run.metrics)[0]
    assert (first["step"], first["keys_per_step"], first["images"]) == (0, 16, 64)
    assert first["chance_loss"] == pytest.approx(2.8332, abs=1e-4)  # log 17


def test_the_command_prints_and_keeps_what_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(RECORDED / "moco", tmp_path / "run")
    main(["doctor", str(run)])
    assert "healthy" in capsys.readouterr().out
    (kept,) = json.loads((run / "findings.json").read_text())
    assert kept["severity"] == "good"
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(tmp_path)])
    assert left.value.code == 2


def test_the_command_ends_with_1_if_there_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["doctor", str(shutil.copytree(RECORDED / "lr-1e6", tmp_path / "run"))])
    assert left.value.code == 1
    assert "diverged" in capsys.readouterr().out


def test_damaged_records_of_a_run_that_cannot_be_written_are_read(tmp_path, capsys) -> None:
    run = shutil.copytree(RECORDED / "moco", tmp_path / "run")
    for name, values in (("metrics", {"step": 192, "loss": "x"}), ("timing", {"step": 192, "waiting": "y"})):
        with (run / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(values) + '\n{"step": 2')
    (run / "findings.json").mkdir()
    main(["doctor", str(run)])
    printed = capsys.readouterr().out
    assert "healthy" in printed
    assert "not written" in printed


def test_the_command_needs_no_torch(tmp_path: Path) -> None:
    run = shutil.copytree(RECORDED / "moco", tmp_path / "run")
    code = (
        f"import sys; from moco.cli.main import main; main(['doctor', {str(run)!r}]); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=120)
