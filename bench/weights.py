"""Puts the encoder of a run into moco/weights: NAME.safetensors, NAME.json, and its row in README.md there.

    moco pretrain shapes-cpu --epochs 10
    python -m bench.weights runs/shapes-cpu [--out moco/weights]

NAME is the run's recipe. The file is that of `moco export --to safetensors`, with convolutions in half precision. Run
it on the machine that trained the run, where its data set is: it evaluates the file, and takes the run's first steps
again, in float32, for a test to take them a third time.
"""

import argparse
import hashlib
import json
import re
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

from torch import Tensor

from bench.side_by_side import Row, context, machine_in_words
from moco.data import Source, source_of
from moco.encoders.files import as_safetensors
from moco.encoders.included import FOLDER, INCLUDED
from moco.evaluation import Trained, evaluate_knn, extract, open_trained
from moco.report.card import public
from moco.report.rerun import rerun
from moco.runs.config import Config
from moco.runs.folder import Run, read_lines
from moco.runtime.files import write_whole
from moco.training.build import device_of
from moco.training.step import Pretraining

STEPS = 3
LARGEST = 3_000_000
"""Bytes of a file: it is in every clone."""
BETWEEN = re.compile(r"(?<=<!-- table -->\n).*?(?=<!-- end -->)", re.S)


def in_float32(config: Config) -> Config:
    """Computed as a processor without bf16 does."""
    return replace(config, compute=replace(config.compute, device="cpu", precision="fp32"))


def first_losses(config: Config) -> list[float]:
    """The losses of a run's first steps, in float32."""
    config = in_float32(config)
    run = Pretraining(config, source_of(config), Run(Path()), device_of(config.compute))  # a run that is not written
    for batch in run.batches(0, STEPS):
        run.update(*run.inputs(batch))
    return [round(loss, 5) for loss in run.pending_values()[:, 0].tolist()]


def halved(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convolutions in half precision, which are nearly all of an encoder's bytes; BN as it is."""
    return {name: value.half() if value.ndim == 4 else value for name, value in tensors.items()}


def features(trained: Trained, source: Source) -> Tensor:
    """Of the test images, (n, num_features)."""
    device = device_of(trained.config.compute)
    encoder, centre = trained.on(device)
    return extract(encoder, source.labelled_test, centre, device).values


def measured(path: Path, run: Run) -> Row:
    """What a file of weights reaches on the run's own data, beside the run."""
    config = in_float32(run.config())
    source, device, log = source_of(config), device_of(config.compute), config.log
    file, whole = (replace(open_trained(each), config=config) for each in (path, run.path))
    encoder, centre = file.on(device)
    theirs, ours = features(file, source), features(whole, source)
    random = next(line["knn"] for line in read_lines(run.metrics) if "knn" in line)
    return {
        "parameters": sum(value.numel() for value in encoder.parameters()),
        "largest_difference": float(f"{float((theirs - ours).abs().max() / ours.abs().max()):.1e}"),
        "knn": evaluate_knn(encoder, source, centre, device, log.knn_k, log.knn_temperature),
        "knn_random": random,
    }


def elsewhere(config: Config) -> Config:
    """With PATH for a place on this machine."""
    kind, colon, _ = config.data.source.partition(":")
    return replace(config, data=replace(config.data, source=f"{kind}:PATH" if colon else kind))


def data_in_words(config: Config) -> str:
    """The source, and how many images of each class."""
    some = f", the first {config.data.per_class:,} of each class" if config.data.per_class else ""
    return elsewhere(config).data.source + some


def row_of(path: Path, run: Run) -> Row:
    """All that NAME.json holds."""
    config, content, where = run.config(), path.read_bytes(), context("")
    return {
        "encoder": config.encoder.encoder,
        "image_size": config.views.image_size,
        "data": data_in_words(config),
        "command": rerun(public(elsewhere(config)), f"runs/{path.stem}"),
        "seed": config.training.seed,
        "machine": machine_in_words(where),
        "torch": where["torch"],
        "date": str(date.fromtimestamp(run.saved()[0].stat().st_mtime)),
        **measured(path, run),
        "losses": first_losses(config),
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "MIT",
    }


def table(rows: dict[str, Row]) -> str:
    """README.md's, a row for each file, and their commands below it."""
    head = ["name", "encoder", "data", "seed", "kNN (random weights)", "machine", "date", "bytes", "sha256"]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        encoder = f"`{row['encoder']}`, {row['parameters']:,} parameters, {row['image_size']} pixels"
        accuracy = f"{row['knn']:.1%} ({row['knn_random']:.1%})".replace("%", " %")
        machine = f"{row['machine']}, torch {row['torch']}"
        trained = [row["data"], str(row["seed"]), accuracy, machine, row["date"]]
        lines.append([f"`{name}`", encoder, *trained, f"{row['bytes']:,}", f"`{row['sha256']}`"])
    commands = ["", "```bash", *(row["command"] for row in rows.values()), "```", ""]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), *commands])


def write_table(folder: Path) -> None:
    """Puts the rows of all JSON files there between the markers of README.md."""
    files = {name: folder / f"{name}.json" for name in INCLUDED}
    rows = {name: json.loads(path.read_text()) for name, path in files.items() if path.exists()}
    page = folder / "README.md"
    text, found = BETWEEN.subn(lambda _: table(rows), page.read_text())
    if found != 1:
        sys.exit(f"{page}: has not one <!-- table --> and one <!-- end -->")
    write_whole(page, lambda file: file.write(text.encode()))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.weights", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    run, trained = Run.open(options.run), open_trained(options.run)
    content = as_safetensors(halved(trained.encoder.state_dict()), trained.description)
    if len(content) > LARGEST:
        sys.exit(f"{len(content):,} bytes are more than the {LARGEST:,} that a file in the repository may have")
    if (name := run.config().recipe) not in INCLUDED:
        sys.exit(f"{options.run}: is of the recipe {name}: there are names for {', '.join(INCLUDED)} alone")
    path = options.out / f"{name}.safetensors"
    write_whole(path, lambda file: file.write(content))
    row = row_of(path, run)
    text = json.dumps(row, indent=2) + "\n"
    write_whole(path.with_suffix(".json"), lambda file: file.write(text.encode()))
    write_table(options.out)
    print(text, end="")


if __name__ == "__main__":
    main()
