"""Pre-train on a folder of one's own, then search it: which images are most like this one?

    python examples/search.py FOLDER --query FOLDER/some.jpg --recipe imagenet-r50-v2
    python examples/search.py                # 40 s on a CPU core: draws a folder to try it on

It leaves the run in runs/search, and in found.png the query with its nearest images.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from moco.cli import main as cli
from moco.data import Encoded, Files
from moco.data.sources.folder import find_images
from moco.evaluation import encode, nearest, open_trained
from moco.runs.folder import Run
from moco.runtime.errors import UserError
from moco.training.build import device_of
from moco.views import CentreCrop

SIDE = 128


def drawn(folder: Path, count: int = 600) -> Path:
    """A folder of drawn objects."""
    from moco.data.sources.shapes import draw

    for number, image in enumerate(draw(torch.arange(count)).images):
        to_pil_image(image).save(folder / f"{number:04d}.png")
    return folder


def features(run: Path, files: list[Path]) -> tuple[Tensor, list[Path]]:
    """Features (n, num_features) by the run's encoder, of the images that can be read, and which these are."""
    trained = open_trained(run)
    device, views = device_of(trained.config.compute), trained.config.views
    encoder = trained.encoder.to(device.device)
    centre = CentreCrop(views.views, views.image_size)
    values, places = encode(encoder, Encoded(Files(files), max_bad=1), centre, device)
    return values, [files[place] for place in places.tolist()]


def search(run: Path, files: list[Path], query: Path, count: int = 8) -> list[tuple[Path, float]]:
    """The files nearest to the query, itself left out, and their cosines with it. UserError if it cannot be read."""
    values, readable = features(run, [query, *(path for path in files if path.resolve() != query.resolve())])
    if not readable or readable[0] != query:
        raise UserError(f"{query}: cannot be read as an image")
    cosines, places = nearest(values, values[:1], count, own=torch.zeros(1, dtype=torch.int64))
    return [(readable[i], cosine) for i, cosine in zip(places[0].tolist(), cosines[0].tolist(), strict=True)]


def sheet(query: Path, found: list[tuple[Path, float]], out: Path) -> None:
    """The query, and what was found for it, as one picture."""
    picture = Image.new("RGB", ((SIDE + 4) * (len(found) + 1), SIDE + 16), "white")
    draw = ImageDraw.Draw(picture)
    for place, (path, cosine) in enumerate([(query, None), *found]):
        with Image.open(path) as image:
            picture.paste(image.convert("RGB").resize((SIDE, SIDE)), (place * (SIDE + 4), 16))
        draw.text((place * (SIDE + 4), 2), "query" if cosine is None else f"{cosine:.3f}", fill="black")
    picture.save(out)


def main(arguments: list[str] | None = None) -> list[tuple[Path, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--query", type=Path, help="an image; the folder's first if not given")
    parser.add_argument("--recipe", default="shapes-cpu")
    parser.add_argument("--run", type=Path, default=Path("runs/search"), help="if it is there, it is searched by")
    parser.add_argument("--out", type=Path, default=Path("found.png"))
    parser.add_argument("--epochs", type=int, default=10)
    options, more = parser.parse_known_args(arguments)  # what is not known here is an option of moco pretrain
    if options.folder and not options.folder.is_dir():
        parser.error(f"{options.folder}: no such folder")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or drawn(Path(temporary))
        if options.run.exists():
            if more:
                parser.error(f"{options.run} is trained already: --run another, or leave {' '.join(more)}")
            print(f"by the run in {options.run}, trained on {Run.open(options.run).config().data.source}")
        else:
            words = ["--data", f"folder:{folder}", "--out", str(options.run), "--epochs", str(options.epochs)]
            small = [] if options.folder else ["--batch-size", "64", "--queue-size", "64"]  # 600 drawn images
            cli.main(["pretrain", options.recipe, *words, *small, *more])
        files = sorted(map(Path, find_images(folder)))
        if not files:
            parser.error(f"{folder}: holds no image")
        query = options.query or files[0]
        found = search(options.run, files, query)
        sheet(query, found, options.out)
    for path, cosine in found:
        print(f"{cosine:.3f}  {path.name}")
    print(f"written to {options.out}")
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"search.py: {error}") from None
