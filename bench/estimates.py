"""What `moco suggest` and the progress bar foretell, and what then happens: several sets, also beside other work.

    python -m bench.estimates --cifar npz:PATH --images FOLDER [--seconds 75] [--only NAME ...] [--out FILE.json]

Of each set: `moco suggest --hours` a little more than a minute, then `moco pretrain` of what it wrote, timed from the
process's start to its end. The bar's time left is that of its first line (half a minute after the start of training),
beside the time that it then took. Beside other work: a process that computes on every second core, all the while.
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.gpu import context_of
from bench.material import prepare
from bench.side_by_side import Row
from moco.data import open_source
from moco.data.formats.pack import pack
from moco.runtime.errors import UserError

UNITS = {"hours": 3600, "minutes": 60, "seconds": 1}
JPEGS, CIFAR_IMAGES = 96, 5000


def sources(folder: Path, cifar: str, photographs: Path) -> dict[str, str]:
    """By name; those that are made lie in the folder."""
    train = open_source(cifar).train
    some = train.images[:CIFAR_IMAGES].permute(0, 2, 3, 1).numpy()  # type: ignore[attr-defined]
    np.savez(folder / "cifar.npz", images=some)
    prepare(folder / "material", photographs, None, JPEGS, 4, 16)
    sized = folder / "sized"
    sized.mkdir()
    for path in (folder / "material/many/all").iterdir():
        shutil.copyfile(path, sized / path.name)
    first = min(sized.iterdir())  # one of another size, so that none are kept in memory
    Image.open(first).crop((0, 0, 300, 300)).save(first, quality=90)
    pack(open_source(f"folder:{sized}", cache_mb=0), folder / "shards", workers=0)
    return {
        "drawn images": "shapes",
        "CIFAR-10, 5,000 images": f"npz:{folder / 'cifar.npz'}",
        "photographs, all 640x480": f"folder:{photographs}",
        "JPEGs of two sizes": f"folder:{sized}",
        "the same in shards": f"shards:{folder / 'shards'}",
    }


def _compute_for_ever() -> None:
    torch.set_num_threads(1)
    a = torch.randn(512, 512)
    while True:
        a @ a


@contextmanager
def other_work(wanted: bool) -> Iterator[None]:
    """A process that computes on every second core."""
    cores = len(os.sched_getaffinity(0)) // 2 if wanted else 0
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_compute_for_ever, daemon=True) for _ in range(max(cores, int(wanted)))]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.terminate()


def _run(words: list[str]) -> tuple[str, list[tuple[float, str]], float]:
    """What `moco WORDS` prints, each line with the seconds since its start, and its seconds in all."""
    start = time.monotonic()
    command = [sys.executable, "-m", "moco", *words]
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - start, line))
    text = "".join(line for _, line in lines)
    if process.returncode:
        raise UserError(f"moco {' '.join(words)}: {text.strip().rpartition(chr(10))[2]}")
    return text, lines, time.monotonic() - start


def compared(source: str, seconds: float, folder: Path) -> Row:
    """What was foretold of a set, and what it took, in seconds."""
    recipe, run = folder / "suggested.yaml", folder / "run"
    hours = str(seconds / 3600)
    text, _, suggesting = _run(["suggest", source, "--hours", hours, "--out", str(recipe), "--overwrite"])
    found = re.search(r"about ([\d.]+) (\w+) here for ([\d,]+) steps", text)
    assert found, text
    shutil.rmtree(run, ignore_errors=True)
    _, lines, taken = _run(["pretrain", str(recipe), "--out", str(run)])
    bar = [(at, float(left[1])) for at, line in lines if (left := re.search(r"([\d.]+) s left", line))]
    return {
        "steps": int(found[3].replace(",", "")),
        "foretold": float(found[1]) * UNITS[found[2]],
        "took": taken,
        "suggesting": suggesting,
        "bar": [{"left": left, "took": taken - at} for at, left in bar],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.estimates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=75)
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    command = shlex.join(["python", "-m", "bench.estimates", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        report(options, command)
    except UserError as error:
        sys.exit(f"bench.estimates: {error}")


def report(options: argparse.Namespace, command: str) -> None:
    """Prints the table, row by row, and writes the JSON."""
    rows = []
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="moco-bench-")))
        sets = sources(folder, options.cifar, options.images)
        print(
            "| set | beside other work | foretold, s | took, s | ratio |\n| --- | --- | --- | --- | --- |", flush=True
        )
        for name, source in sets.items():
            if options.only and name not in options.only:
                continue
            for busy in (False, True):
                with other_work(busy):
                    row = {"set": name, "busy": busy, **compared(source, options.seconds, folder)}
                rows.append(row)
                ratio = row["took"] / row["foretold"]
                cells = [name, "yes" if busy else "no", f"{row['foretold']:.0f}", f"{row['took']:.0f}", f"{ratio:.2f}"]
                first = row["bar"][0] if row["bar"] else None
                cells += [f"{first['left']:.0f}", f"{first['took']:.0f}"] if first else ["", ""]
                print(f"| {' | '.join(cells)} |", flush=True)
    if options.out:
        text = json.dumps({**context_of(torch.device("cpu"), command), "rows": rows}, indent=1) + "\n"
        options.out.write_text(text)


if __name__ == "__main__":
    main()
