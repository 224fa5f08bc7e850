"""Photographs of 4000x3000 pixels, and the same resized once by `moco pack`: time, and how far crops differ.

    python -m bench.packed --images FOLDER [--count 12]

The photographs of FOLDER, enlarged; CPU milliseconds of decoding and of a crop, and the mean absolute difference of
crops, of 255. Then decoding alone, whole and at a fraction of the size by Pillow's DCT scaling.
"""

import argparse
import io
import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from moco.data import open_source
from moco.data.formats.decode import decode
from moco.data.formats.pack import pack
from moco.runs.config import Views
from moco.runs.suggest import packed_side
from moco.views.operations import crop_and_resize

SIDES = (4000, 3000)
SIZES = (64, 96, 224)


def timed(work: Callable[[], object]) -> float:
    """CPU milliseconds, the mean of three after one that is not counted."""
    work()
    start = time.process_time()
    for _ in range(3):
        work()
    return (time.process_time() - start) / 3 * 1000


def decoded_and_cropped(content: bytes, share: list[float], size: int) -> Tensor:
    """A crop of 0.2 to 1 of the area: side, top and left as shares of what they may be."""
    image = decode(content, "a photograph")
    height, width = image.shape[1:]
    side = math.sqrt(0.2 + 0.8 * share[0])
    rows, columns = round(side * height), round(side * width)
    box = torch.tensor([[round(share[1] * (height - rows)), round(share[2] * (width - columns)), rows, columns]])
    return crop_and_resize([image], box, torch.zeros(1, dtype=torch.bool), size)


def compare(photographs: Path, size: int, folder: Path) -> str:
    """A line of the table."""
    side = packed_side(Views("v2", size))
    pack(open_source(f"folder:{photographs}", cache_mb=0), folder, size=side, workers=0)
    sets = [open_source(spec, cache_mb=0).train for spec in (f"folder:{photographs}", f"shards:{folder}")]
    generator, milliseconds, differences = torch.Generator().manual_seed(0), [0.0, 0.0], []
    for number in range(len(sets[0])):
        share, crops = torch.rand(3, generator=generator).tolist(), []
        for which, images in enumerate(sets):
            content = images.read(number) or b""
            work = partial(decoded_and_cropped, content, share, size)
            milliseconds[which] += timed(work)
            crops.append(work().float())
        differences.append((crops[0] - crops[1]).abs().mean().item())
    whole, small = (each / len(sets[0]) for each in milliseconds)
    return f"| {size} | {side} | {whole:.1f} | {small:.2f} | {sum(differences) / len(differences):.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.packed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="moco-bench-") as temporary:
        photographs = Path(temporary) / "photographs"
        photographs.mkdir()
        for path in sorted(options.images.glob("*.jpg"))[: options.count]:
            Image.open(path).convert("RGB").resize(SIDES, Image.Resampling.BICUBIC).save(
                photographs / path.name, quality=92
            )
        print("| views | packed to | ms, whole | ms, packed | difference |\n| --- | --- | --- | --- | --- |")
        for size in SIZES:
            print(compare(photographs, size, Path(temporary) / str(size)), flush=True)
        content = min(photographs.iterdir()).read_bytes()

    def draft(divisor: int) -> None:
        image = Image.open(io.BytesIO(content))
        image.draft("RGB", (SIDES[0] // divisor, SIDES[1] // divisor))
        image.load()

    fractions = ", ".join(f"1/{divisor} {timed(partial(draft, divisor)):.1f}" for divisor in (1, 2, 4, 8))
    print(f"decoding alone, ms: {timed(lambda: decode(content, 'it')):.1f}; by Pillow {fractions}")


if __name__ == "__main__":
    main()
