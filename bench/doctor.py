"""How often the doctor names an illness, and how often it calls a healthy run ill: real runs, seconds each, on a CPU.

    python -m bench.doctor [--seeds 3] [--out bench/results/doctor-cpu.json] [--only NAME] [--record FOLDER]

Every run is of the healthy settings but for the options in its row, with a seed of its own. A healthy run is called
ill if a problem or a warning is found. --record keeps the first seed's records, without their histograms: the tests of
the doctor's rules read those in tests/diagnosis/recorded, so that they depend on no processor's rounding or speed.
"""

import argparse
import io
import json
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torchvision.transforms.functional import to_pil_image

from moco.data import Encoded, InMemory, Source
from moco.data.sources.shapes import draw
from moco.diagnosis.doctor import Finding, diagnose
from moco.runs.config import Compute, Config, Contrast, Encoder, Log, Training, Views
from moco.runs.folder import Run, read_lines
from moco.runs.options import with_options
from moco.training import Diverged, pretrain
from moco.training.build import device_of

HEALTHY = Config(
    recipe="shapes-cpu",
    views=Views("shapes", 16),
    encoder=Encoder("tiny"),
    contrast=Contrast(32, 128, 0.99, 0.1, head="mlp", bn_group=8),
    training=Training(epochs=12, batch_size=32, lr=0.01, schedule="cosine", weight_decay=5e-4),
    compute=Compute(device="cpu", precision="fp32", workers=0),
    log=Log(knn_every=0, knn_k=20, log_every=8, monitor_every=24),
)


@dataclass(frozen=True)
class Case:
    """A setting, and what the doctor should find in it."""

    name: str
    illness: str | None
    """None: it is healthy."""
    options: dict[str, Any] = field(default_factory=dict)
    slow_images: bool = False

    @property
    def folder(self) -> str:
        """Under which name its records are kept."""
        return self.name.replace(",", "").replace(" ", "-")


_BN = {"bn_group": 4, "epochs": 16, "lr": 0.03, "head": "linear"}
CASES = [
    Case("moco", None),
    Case("moco, symmetric", None, {"symmetric": True, "epochs": 8}),
    Case("moco, iterations", None, {"iterations": 144, "warmup": 8.0}),
    Case("moco, groups of 4 shuffled", None, _BN),
    Case("end-to-end", None, {"mechanism": "end-to-end", "epochs": 8}),
    Case("memory-bank", None, {"mechanism": "memory-bank", "lr": 0.001, "epochs": 20}),
    Case("moco-v3", None, {"mechanism": "moco-v3", "hidden": 64, "temperature": 0.2, "epochs": 8}),
    Case("large K", "queue still filling", {"queue_size": 8192, "epochs": 2}),
    Case("tiny lr", "at chance", {"lr": 1e-7, "epochs": 6}),
    Case("weight decay 1", "collapsed", {"lr": 0.3, "weight_decay": 1.0, "epochs": 6}),
    Case("K of the images", "K too large for this data set", {"queue_size": 512, "epochs": 4}),
    Case("m 0.9999", "momentum too high for this many steps", {"key_momentum": 0.9999, "epochs": 2}),
    Case("m 1", "momentum too high for this many steps", {"key_momentum": 1.0, "epochs": 2}),
    Case("m 0", "momentum too low", {"key_momentum": 0.0, "epochs": 6}),
    Case("m 0.9", "momentum too low", {"key_momentum": 0.9, "epochs": 24}),
    Case("lr 3", "learning rate too high", {"lr": 3.0, "epochs": 6}),
    Case("lr 1e6", "diverged", {"lr": 1e6, "epochs": 2}),
    Case("moco, no shuffling", "cheating through BN", {**_BN, "shuffle": False}),
    Case("end-to-end, no shuffling", "cheating through BN", {**_BN, "mechanism": "end-to-end", "shuffle": False}),
    Case("slow images", "starving for data", {"queue_size": 16, "epochs": 4}, slow_images=True),
    Case("kNN gains", "still improving", {"knn_every": 6}),
    Case("lr falls at once", "converged", {"schedule": "step", "milestones": (2.0,), "gamma": 1e-9, "knn_every": 1}),
]


class Slow:
    """Encoded images, each of which takes 5 ms to read."""

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


def sources() -> dict[bool, Source]:
    """The data set `shapes`, by whether its images are slow to read."""
    train, test = (draw(torch.arange(start, start + count), size=16) for start, count in ((0, 512), (512, 256)))
    fast = Source(InMemory(train.images, train.labels), InMemory(test.images, test.labels), None)
    return {False: fast, True: Source(Encoded(Slow(train.images[:96])), None, None)}


def diagnosed(folder: Path, case: Case, seed: int, source: Source) -> list[Finding]:
    """Trains a run in a new folder; what the doctor finds in it."""
    config = with_options(HEALTHY, **case.options, seed=seed)
    run = Run.create(folder, config)
    with suppress(Diverged):
        pretrain(config, source, run, device_of(config.compute))
    return diagnose(run)


def record(folder: Path, kept: Path) -> None:
    """Keeps a run's config and records, with four digits and without histograms."""
    kept.mkdir(parents=True, exist_ok=True)
    (kept / "config.yaml").write_text((folder / "config.yaml").read_text())
    for name in ("metrics.jsonl", "timing.jsonl"):
        lines = [
            {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in line.items()}
            for line in read_lines(folder / name)
        ]
        lines = [{key: value for key, value in line.items() if not isinstance(value, list)} for line in lines]
        (kept / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def row_of(case: Case, findings: list[list[Finding]]) -> dict[str, Any]:
    """What is shown of a case: how often its illness was found, and what else was, by name."""
    named = [{one.name for one in found} for found in findings]
    ill = [{one.name for one in found if one.severity in ("problem", "warning")} for found in findings]
    right = [not names for names in ill] if case.illness is None else [case.illness in names for names in named]
    return {
        "case": case.name,
        "options": case.options,
        "illness": case.illness,
        "seeds": len(findings),
        "right": sum(right),
        "also": dict(Counter(name for names in ill for name in names - {case.illness})),
    }


def table(rows: list[dict[str, Any]]) -> Table:
    made = Table("setting", "should find", "found", "problems and warnings besides")
    for row in rows:
        also = ", ".join(f"{name} {count}" for name, count in row["also"].items())
        made.add_row(row["case"], row["illness"] or "healthy", f"{row['right']}/{row['seeds']}", also)
    return made


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file; bench/results/doctor-cpu.json")
    parser.add_argument("--only", choices=[case.name for case in CASES], metavar="NAME")
    parser.add_argument("--record", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    by_speed, rows, console = sources(), [], Console(highlight=False)
    for case in CASES:
        if options.only not in (None, case.name):
            continue
        findings = []
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary) / "run"
                findings.append(diagnosed(folder, case, seed, by_speed[case.slow_images]))
                if options.record and seed == 0:
                    record(folder, options.record / case.folder)
        rows.append(row_of(case, findings))
    console.print(table(rows))
    if options.out:
        options.out.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
