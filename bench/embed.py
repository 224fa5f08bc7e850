"""moco embed beside a loop in plain PyTorch: images/s, and peak memory over the number of images, on one core.

    python -m bench.embed [--few 10000] [--many 100000] [--out results.json]

Both read the same PNG files of 32 pixels, drawn by the program, encode them by `tiny` with random weights, and write
the features; each is a process of its own. The rate is that of the images by which the two numbers differ, so that
starting a process does not count.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from moco.data.sources.shapes import draw
from moco.encoders import build_encoder

SIZE, BATCH = 32, 256


def make_folder(folder: Path, count: int) -> None:
    """So many drawn images as PNG files."""
    for start in range(0, count, 10_000):
        images = draw(torch.arange(start, min(start + 10_000, count)), size=SIZE).images
        for number, image in enumerate(images.permute(0, 2, 3, 1).numpy(), start):
            Image.fromarray(image).save(folder / f"{number:07d}.png", compress_level=1)


class Files(torch.utils.data.Dataset):
    """What everyone writes: Pillow, ToTensor, Normalize."""

    def __init__(self, folder: Path) -> None:
        from torchvision import transforms

        self.paths = sorted(folder.iterdir())
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        self.transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(mean, std)])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        with Image.open(self.paths[index]) as image:
            return self.transform(image.convert("RGB"))


@torch.no_grad()
def plain(folder: Path, weights: Path, out: Path) -> None:
    """The loop in plain PyTorch."""
    encoder = build_encoder("tiny").eval()
    encoder.load_state_dict(torch.load(weights, weights_only=True))
    loader = torch.utils.data.DataLoader(Files(folder), BATCH, num_workers=0)
    np.save(out, torch.cat([encoder(images) for images in loader]).numpy())


def measured(words: list[str]) -> tuple[float, float]:
    """Seconds and peak memory, in MB, of a process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(error.decode())
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def rows(counts: tuple[int, int], temporary: Path) -> Iterator[dict[str, object]]:
    """A row for each side."""
    weights = temporary / "tiny.pt"
    torch.save(build_encoder("tiny").state_dict(), weights)
    folders = [temporary / str(count) for count in counts]
    for folder, count in zip(folders, counts, strict=True):
        folder.mkdir()
        make_folder(folder, count)
    options = f"--encoder tiny --image-size {SIZE} --workers 0 --device cpu --precision fp32".split()
    sides = {
        "moco embed": lambda folder, out: [
            *("-m", "moco", "embed", str(weights), *options, "--data", f"folder:{folder}"),
            *("--out", f"{out}.npz"),
        ],
        "plain PyTorch": lambda folder, out: ["-m", "bench.embed", "--plain", str(folder), str(weights), f"{out}.npy"],
    }
    for name, words in sides.items():
        found = [measured(words(folder, temporary / f"{name[:4]}{folder.name}")) for folder in folders]
        (few_s, few_mb), (many_s, many_mb) = found
        rate = (counts[1] - counts[0]) / (many_s - few_s)
        yield {"side": name, "seconds": [few_s, many_s], "mb": [few_mb, many_mb], "images/s": rate}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.embed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--few", type=int, default=10_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plain", nargs=3, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.plain:
        plain(*options.plain)
        return
    with tempfile.TemporaryDirectory(prefix="moco-bench-") as folder:
        found = list(rows((options.few, options.many), Path(folder)))
    heads = [f"{count:,} images" for count in (options.few, options.many)]
    table = Table("", *(f"peak MB, {head}" for head in heads), *(f"seconds, {head}" for head in heads), "images/s")
    for row in found:
        numbers = [f"{value:,.0f}" for value in (*row["mb"], *row["seconds"])]  # type: ignore[misc]
        table.add_row(str(row["side"]), *numbers, f"{row['images/s']:,.0f}")
    Console(width=160).print(table)
    print(f"moco embed / plain PyTorch: {found[0]['images/s'] / found[1]['images/s']:.2f}")  # type: ignore[operator]
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
