"""Decoding of photographs, side by side: TorchCodec (what is used here), torchvision's deprecated decoder, Pillow.

python -m bench.decode [--images FOLDER]
"""

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from PIL import Image
from torchcodec.decoders import decode_jpeg
from torchvision.io import ImageReadMode
from torchvision.io import decode_jpeg as torchvision_jpeg


@dataclass
class Options:
    images: Path | None = None
    """JPEGs of one's own; drawn ones of 500x375 pixels if not given."""
    count: int = 64
    """How many are decoded in a repetition."""
    repeats: int = 7


def drawn(count: int) -> list[bytes]:
    """Smooth noise of 500x375 pixels as JPEGs of quality 90."""
    files = []
    for seed in range(count):
        coarse = np.random.default_rng(seed).integers(0, 256, (38, 50, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


DECODERS: dict[str, Callable[[bytes], object]] = {
    "TorchCodec": decode_jpeg,
    "torchvision": lambda data: torchvision_jpeg(
        torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB
    ),
    "Pillow": lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB")),
}


def measure(files: list[bytes], repeats: int) -> dict[str, float]:
    """Images/s of each on one thread, the median of repetitions in turns."""
    torch.set_num_threads(1)
    rates: dict[str, list[float]] = {name: [] for name in DECODERS}
    for _ in range(repeats + 1):  # the first warms up
        for name, decode in DECODERS.items():
            start = time.perf_counter()
            for data in files:
                decode(data)
            rates[name].append(len(files) / (time.perf_counter() - start))
    return {name: statistics.median(found[1:]) for name, found in rates.items()}


def main(options: Options) -> None:
    paths = sorted(options.images.rglob("*.jp*g"))[: options.count] if options.images else []
    files = [path.read_bytes() for path in paths] or drawn(options.count)
    rates = measure(files, options.repeats)
    print("| decoder | images/s, 1 core | ratio |\n| --- | --- | --- |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates['Pillow']:.2f} |")


if __name__ == "__main__":
    main(tyro.cli(Options))
