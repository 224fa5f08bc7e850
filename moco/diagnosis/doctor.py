"""The doctor: what a run's metrics show, in plain words, and what to change."""

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from moco.diagnosis.records import Records
from moco.runs.folder import Run, read_lines

Severity = Literal["good", "note", "warning", "problem"]
SEVERITIES: dict[Severity, str] = {"problem": "✖", "warning": "▲", "note": "●", "good": "✔"}
"""The gravest first, each with a sign that is understood without colour."""


@dataclass(frozen=True)
class Finding:
    """One thing that the records show."""

    name: str
    severity: Severity
    text: str
    """What is going on."""
    evidence: str
    """The numbers that show it."""
    advice: str
    """What to change, or not to."""
    source: str
    """Where the rule comes from."""


def diagnose(run: Run) -> list[Finding]:
    """What a run's records show, the worst first; without a flaw, that it is healthy; before a step, nothing."""
    records = Records(run.config(), read_lines(run.metrics), read_lines(run.timing))
    if not records.step:
        return []
    findings = [finding for rule in RULES if (finding := rule(records)) is not None]
    if not any(finding.severity in ("warning", "problem") for finding in findings):
        findings.append(_healthy(records))
    order = ("problem", "warning", "note", "good")
    return sorted(findings, key=lambda finding: order.index(finding.severity))


def write_findings(run: Run, findings: list[Finding]) -> Path:
    """findings.json in the run's folder, which its report shows."""
    return run.write_json("findings", [asdict(finding) for finding in findings])


def _filling(records: Records) -> Finding | None:
    real = records.last("queue_real")
    if real is None or real >= 1:
        return None
    return Finding(
        "queue still filling",
        "note",
        "The queue begins with random vectors, which are easy negatives: while real keys replace them the task gets "
        "harder, and the loss rises.",
        f"{real:.0%} of the queue are real keys after step {records.step:,}",
        f"wait until step {records.filled_at:,} before you read anything into the loss",
        "the queue of the released code, which begins at random too",
    )


def _diverged(records: Records) -> Finding | None:
    step = records.last("diverged")
    if step is None:
        return None
    training = records.config.training
    return Finding(
        "diverged",
        "problem",
        "The loss or the weights are infinite: the steps were too long.",
        f"at step {step:,.0f}, with --lr {training.lr:g} for a batch of {training.batch_size}",
        f"--lr {training.lr / 4:.2g}, or a --warmup"
        + ("" if records.config.compute.precision == "fp32" else ", or --precision fp32"),
        "arithmetic",
    )


def _at_chance(records: Records) -> Finding | None:
    loss, accuracy = records.smooth("loss"), records.smooth("accuracy")
    if not records.warm or not (loss and accuracy) or loss[-1][1] < 0.98 * records.chance or _is_collapsed(records):
        return None
    return Finding(
        "at chance",
        "problem",
        "The contrastive loss is at chance: queries do not find their positive keys.",
        f"loss {loss[-1][1]:.2f}, chance {records.chance:.2f}; contrastive accuracy {accuracy[-1][1]:.1%}, step "
        f"{records.step:,}",
        "open views.png: are the two views of one image? If they are, try another --lr (both ways)"
        + (", --temperature 0.1 or 0.2" if records.config.contrast.temperature not in (0.1, 0.2) else "")
        + (
            ", a --key-momentum not above 0.999"
            if records.moco and records.config.contrast.key_momentum > 0.999
            else ""
        ),
        "Eq. 1: log(K+1) is the loss at chance" if records.moco else "Eq. 1: the loss at chance among the keys",
    )


def _is_collapsed(records: Records) -> bool:
    std = records.last("feature_std")
    return records.warm and std is not None and std < 0.2


def _collapsed(records: Records) -> Finding | None:
    std, uniformity = records.last("feature_std"), records.last("uniformity")
    if not _is_collapsed(records) or std is None or uniformity is None:
        return None
    return Finding(
        "collapsed",
        "problem",
        "All images have nearly the same features.",
        f"feature std {std:.2f} (1 is uniform, 0 collapsed), uniformity {uniformity:.2f} (0 is collapsed)",
        "lower --lr and --weight-decay; check that the loss was never infinite",
        "Wang and Isola 2020 (uniformity); Chen and He 2021 (standard deviation of each dimension)",
    )


def _low_rank(records: Records) -> Finding | None:
    rank, of = records.last("rank"), records.last("rank_of")
    if rank is None or of is None or not records.warm or rank > 0.04 * of or _is_collapsed(records):
        return None
    return Finding(
        "collapsed dimensions",
        "warning",
        "The features use few of their dimensions.",
        f"effective rank {rank:.1f} of at most {of:.0f}",
        "a lower --temperature makes them more uniform; --head mlp keeps the loss of rank in the head",
        "RankMe (Garrido et al. 2023)",
    )


def _cheating(records: Records) -> Finding | None:
    leak, accuracy = records.series("bn_leak"), records.smooth("accuracy")
    if not leak or not accuracy:
        return None
    recent = statistics.fmean(value for _, value in leak[-3:])
    shuffled, groups = records.config.contrast.shuffle, records.last("bn_groups")
    if recent < 0.1 or (shuffled and groups != 1):
        return None
    batch = records.config.training.batch_size
    group = next((size for size in range(min(32, batch // 4), 1, -1) if batch % size == 0), None)
    divided = f"--bn-group {group}" if group else "another --batch-size, and --bn-group a quarter of it or less"
    return Finding(
        "cheating through BN",
        "problem",
        "BN statistics reveal which sub-batch a key came from, and the model finds the positive by them: the "
        "contrastive accuracy rises and the features get worse.",
        f"contrastive accuracy {accuracy[-1][1]:.1%} in training; on the probe {recent:+.1%} without shuffling",
        f"{divided} --shuffle: in one group there is nothing to shuffle" if groups == 1 else "--shuffle",
        "shuffling BN, section 3.3 and Fig. A.1",
    )


def _large_queue(records: Records) -> Finding | None:
    size, images = records.config.contrast.queue_size, records.images
    views = records.keys_per_step / records.config.training.batch_size
    share, same = size / (views * images), records.last("same_image")
    fewer = max(1, round(images / 8)) if images < math.inf else 1
    if not records.moco or share < 0.5 or fewer >= size:
        return None
    same_image = "" if same is None else f"; {same:.2f} negatives of a query are views of its own image now, on average"
    return Finding(
        "K too large for this data set",
        "warning",
        "A full queue holds so much of the data set that a query's negatives are often views of its own image.",
        f"K {size:,} is {share:.0%} of the keys of an epoch of {images:,.0f} images{same_image}",
        f"--queue-size {fewer} or fewer: an eighth of the images",
        "false negatives; the paper's K is 5 % of ImageNet, lightly's 8 % of CIFAR-10",
    )


def _slow_keys(records: Records) -> Finding | None:
    m, steps = records.config.contrast.key_momentum, records.steps
    if not records.moco or steps == math.inf or steps * (1 - m) >= 1.2:
        return None
    fitting = next((value for value in (0.999, 0.99, 0.9) if steps * (1 - value) >= 10), None)
    follows = f"follows in {1 / (1 - m):,.0f} steps" if m < 1 else "never follows"
    return Finding(
        "momentum too high for this many steps",
        "warning",
        "The key encoder moves so slowly that it is still much as it began when the run ends.",
        f"m = {m:g} {follows}, the run has {steps:,.0f}",
        f"--key-momentum {fitting}"
        if fitting
        else "more --epochs, or a smaller --batch-size: too few steps for any momentum",
        "Eq. 2; the paper's m = 0.999 follows in 1,000 of its 1,000,000 steps",
    )


def _fast_keys(records: Records) -> Finding | None:
    m, std = records.config.contrast.key_momentum, records.last("feature_std")
    # Of the whole run: at the end of a cosine schedule nothing moves.
    drifts = [drift for step, drift in records.series("key_drift") if step >= records.filled_at]
    if not records.moco or m > 0.95 or not drifts or not records.warm or _slow_keys(records):
        return None
    drift, collapsed = statistics.median(drifts), _is_collapsed(records)
    if drift > 0.8 and not collapsed:
        return None
    seen = f"feature std {std:.2f} (0 is collapsed)" if collapsed else f"a cosine of {drift:.2f} in the median"
    return Finding(
        "momentum too low",
        "problem" if m < 0.5 else "warning",
        "The key encoder moves so fast that the dictionary is not consistent: its keys are of many encoders, and it is "
        "easier to move away from them than to discriminate between images."
        if collapsed
        else "The key encoder moves so fast that the dictionary is not consistent: its keys are of many encoders.",
        f"m = {m:g}; {seen}" + ("" if collapsed else " between the oldest keys and what the same views give now"),
        "--key-momentum 0.99 or 0.999",
        "section 4.1: m = 0 fails, 0.9 loses 4 points against 0.999",
    )


_HIGHEST_LR = {"sgd": 0.3 / 256, "lars": 0.6 / 256, "adamw": 1.5e-4 / 256}
"""Per image of the batch: the highest of the settings that work (solo-learn's on CIFAR; MoCo v3's)."""
_HIGHEST_LR_OF_MUON = 0.2
"""Of any batch, as its steps have one length (bench/notes.md)."""


def _high_rate(records: Records) -> Finding | None:
    training = records.config.training
    muon = training.optimizer == "muon"
    highest = _HIGHEST_LR_OF_MUON if muon else _HIGHEST_LR[training.optimizer] * training.batch_size
    loss, norm = records.smooth("loss"), records.last("gradient_norm")
    # Once the queue is full its keys are still of an encoder that changes fast: the loss rises before it falls.
    after = [value for step, value in loss if step > max(3 * records.filled_at, 0.4 * records.step)]
    if len(after) < 4 or not records.warm or _filling(records) or _large_queue(records) or _diverged(records):
        return None
    best, now = min(after), statistics.fmean(after[-2:])
    rising = now > best + max(0.2, 0.15 * (records.chance - best))
    high = training.lr > 4 * highest and (_is_collapsed(records) or now > records.chance)
    if not (rising or high):
        return None
    return Finding(
        "learning rate too high",
        "problem" if high else "warning",
        "The loss is above what it was, with the queue full." if rising else "The steps are too long to learn by.",
        f"loss {now:.2f}, at its best {best:.2f}, chance {records.chance:.2f}; --lr {training.lr:g} for a batch of "
        f"{training.batch_size}; gradient norm {norm if norm is not None else math.nan:.2g}",
        f"--lr {min(training.lr / 4, highest):.2g}, or a --warmup",
        f"settings that work: up to {highest:g} for such a batch",
    )


def _starving(records: Records) -> Finding | None:
    timing = replace(records, lines=records.timing)
    waits = [value for _, value in timing.series("waiting")]
    if len(waits) < 2:
        return None
    waiting = statistics.median(waits[1:])  # the workers start in the first
    if waiting < 0.3:
        return None
    rate = timing.last("images_per_second") or 0.0
    return Finding(
        "starving for data",
        "warning",
        "The device waits for images.",
        f"{waiting:.0%} of the time is spent waiting, at {rate:,.0f} images/s",
        "moco pack SOURCE shards --size 256, which are read and decoded faster; beside a GPU also more --workers, or "
        "--decoder gpu",
        "the share of time in which the loop had no batch",
    )


def _converged(records: Records) -> Finding | None:
    values = [value for _, value in records.series("knn")]
    if len(values) < 9:
        return None
    third = len(values) // 3
    before, recent = values[-2 * third : -third], values[-third:]
    # The noise of an evaluation, by how far it is from the line between its neighbours: a trend is no noise.
    triples = zip(values[-2 * third :], values[-2 * third + 1 :], values[-2 * third + 2 :], strict=False)
    noise = math.sqrt(statistics.fmean((a - 2 * b + c) ** 2 for a, b, c in triples) / 6)
    chance = 2 * noise * math.sqrt(2 / third)
    if statistics.fmean(recent) > statistics.fmean(before) + 0.003 + chance:
        return None
    lr = [value for _, value in records.series("lr")]
    high = bool(lr) and lr[-1] > 0.05 * max(lr)
    return Finding(
        "converged",
        "note",
        "kNN accuracy no longer gains.",
        f"kNN {statistics.fmean(recent):.1%} in the last {third} evaluations, {statistics.fmean(before):.1%} in the "
        f"{third} before",
        "a lower learning rate, which the schedule has yet to come to, gains more" if high else "stop here",
        "the kNN monitor (Wu et al. 2018)",
    )


def _improving(records: Records) -> Finding | None:
    values = [value for _, value in records.series("knn")]
    if len(values) < 3 or values[-1] <= max(values[:-1]) + 0.003 or _converged(records):
        return None
    return Finding(
        "still improving",
        "good",
        "kNN accuracy gained to the last.",
        f"kNN {values[-1]:.1%}, {max(values[:-1]):.1%} before, {values[0]:.1%} at the start",
        "more --epochs would gain more" if records.step >= records.steps else "go on",
        "the kNN monitor (Wu et al. 2018)",
    )


def _healthy(records: Records) -> Finding:
    evidence = []
    if (loss := records.last("loss")) is not None:
        evidence.append(f"loss {loss:.2f}" + (f" (chance {records.chance:.2f})" if records.chance < math.inf else ""))
    if (accuracy := records.last("accuracy")) is not None:
        evidence.append(f"contrastive accuracy {accuracy:.1%}")
    if (rank := records.last("rank")) is not None:
        evidence.append(f"effective rank {rank:.0f} of {records.last('rank_of'):.0f}")
    return Finding(
        "healthy",
        "good",
        "No problem shows in the records.",
        ", ".join(evidence),
        "go on",
        "the doctor's rules",
    )


RULES: list[Callable[[Records], Finding | None]] = [
    _diverged,
    _filling,
    # Causes come before what they lead to.
    _cheating,
    _large_queue,
    _slow_keys,
    _fast_keys,
    _high_rate,
    _at_chance,
    _collapsed,
    _low_rank,
    _starving,
    _converged,
    _improving,
]
