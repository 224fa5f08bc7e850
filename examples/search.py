"""Pre-train on a folder of one's own, then search it: which images are most like this one?

    python examples/search.py FOLDER --query FOLDER/some.jpg --recipe imagenet-r50-v2
    python examples/search.py                # 40 s on a CPU core: draws a folder to try it on

It leaves the run in runs/search, and in found.png the query with its nearest images.
"""

import argparse
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from moco import cli
from moco.data import Encoded, Files, Loader, evaluation_plan
from moco.data.folder import find_images
from moco.evaluation import open_trained
from moco.views import CentreCrop

SIDE = 128


def drawn(folder: Path, count: int = 600) -> Path:
    """A folder of drawn objects."""
    from moco.data.shapes import draw

    for number, image in enumerate(draw(torch.arange(count)).images):
        to_pil_image(image).save(folder / f"{number:04d}.png")
    return folder


@torch.no_grad()
def features(run: Path, files: list[Path]) -> Tensor:
    """Unit vectors (n, num_features) of images, by the run's encoder."""
    trained = open_trained(run)
    encoder, views = trained.encoder.eval(), trained.config.views
    loader = Loader(Encoded(Files(files)), CentreCrop(views.views, views.image_size), torch.device("cpu"))
    found = [encoder(view) for _, (view,) in loader.batches(evaluation_plan(len(files), 64))]
    return F.normalize(torch.cat(found)[: len(files)], dim=1)


def search(run: Path, files: list[Path], query: Path, count: int = 8) -> list[tuple[Path, float]]:
    """The files nearest to the query, itself left out, and their cosines with it."""
    others = [path for path in files if path != query]
    vectors = features(run, [query, *others])
    cosines, order = (vectors[1:] @ vectors[0]).topk(min(count, len(others)))
    return [(others[i], cosine) for i, cosine in zip(order.tolist(), cosines.tolist(), strict=True)]


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
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or drawn(Path(temporary))
        if not options.run.exists():
            words = f"--data folder:{folder} --out {options.run} --epochs {options.epochs} --batch-size 64 --lr 0.03"
            cli.main(["pretrain", options.recipe, *words.split(), "--queue-size", "64"])
        files = sorted(map(Path, find_images(folder)))
        query = options.query or files[0]
        found = search(options.run, files, query)
        sheet(query, found, options.out)
    for path, cosine in found:
        print(f"{cosine:.3f}  {path.name}")
    print(f"written to {options.out}")
    return found


if __name__ == "__main__":
    main()
