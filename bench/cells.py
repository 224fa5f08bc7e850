"""Crops of single objects, as class folders for `moco finetune`: cut from the boxes of annotated images.

python -m bench.cells voc:PATH OUT     writes OUT/train/CLASS/*.png and OUT/test/CLASS/*.png

Training and test crops come from different images, by the annotations' own lists.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from moco.runtime.errors import UserError
from moco.transfer.detection.dataset import DetectionSet, open_detection


def crop(image: Tensor, box: Tensor, margin: float, size: int) -> Image.Image:
    """The square around a box, (x1, y1, x2, y2) in pixels, wider by `margin` of it, resized; grey beyond the image."""
    centre, side = (box[:2] + box[2:]) / 2, float((box[2:] - box[:2]).max()) * (1 + margin)
    left, top = (centre - side / 2).round().long().tolist()
    whole = Image.fromarray(image.permute(1, 2, 0).numpy())
    square = Image.new("RGB", (max(1, round(side)),) * 2, (128, 128, 128))
    square.paste(whole, (-left, -top))
    return square.resize((size, size), Image.Resampling.BICUBIC)


def write_crops(images: DetectionSet, out: Path, margin: float, size: int) -> dict[str, int]:
    """Writes the crops of a set into class folders; how many there are of each class."""
    counts = dict.fromkeys(images.classes, 0)
    for index in range(len(images)):
        image, target = images.image(index), images.target(index)
        for number, (box, label) in enumerate(zip(target.boxes, target.classes.tolist(), strict=True)):
            folder = out / images.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{Path(images.name(index)).stem}-{number:03d}.png"
            crop(image, box, margin, size).save(folder / name)
            counts[images.classes[label]] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="annotated images, as moco detect --data: voc:PATH, coco:PATH, yolo:PATH")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--margin", type=float, default=0.2, help="how much wider than the box, as a share")
    parser.add_argument("--size", type=int, default=32, help="height and width of a crop in pixels")
    options = parser.parse_args()
    try:
        if options.out.exists():
            raise UserError(f"{options.out}: is there already: name another folder")
        train, test = open_detection(options.source, masks=False)
        if test is None:
            raise UserError(f"{options.source}: there are no images to test on")
        for name, images in (("train", train), ("test", test)):
            counts = write_crops(images, options.out / name, options.margin, options.size)
            print(f"{name}: " + ", ".join(f"{count:,} {label}" for label, count in counts.items()))
    except UserError as error:
        raise SystemExit(f"bench.cells: {error}") from None


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
