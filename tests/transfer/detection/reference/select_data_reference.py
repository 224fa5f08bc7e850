"""Makes the reference files of these tests from the folder of Detectron2's numbers: python THIS FOLDER."""

import gzip
import sys
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent
MASKED = ("c4_mask", "fpn_mask")


def load(folder: Path, name: str) -> dict:
    return torch.load(folder / name, weights_only=True)


def select(folder: Path) -> None:
    transforms, inputs = load(folder, "transforms.pt"), load(folder, "inputs.pt")
    kept = {key: transforms[key] for key in ("resize_shapes", "resize_pixels", "annotations", "mask_targets")}
    for entry in kept["annotations"]:
        entry.pop("image_out_hwc", None)
    objects = {key: inputs[key] for key in ("sizes_hw", "gt_boxes", "gt_polygons")}
    objects["gt_bitmaps"] = [np.packbits(bitmaps.numpy()) for bitmaps in inputs["gt_bitmaps"]]
    objects["gt_bitmaps"] = [torch.from_numpy(bits) for bits in objects["gt_bitmaps"]]
    with gzip.GzipFile(HERE / "data.pt.gz", "wb", mtime=0) as file:
        torch.save({**kept, **objects}, file)
    pasted = {}
    for name in MASKED:
        evaluated = load(folder, f"{name}.pt")["eval"]
        masks = np.load(folder / f"{name}_pasted.npz", allow_pickle=False)
        for i, post in enumerate(evaluated["post"]):
            start = sum(len(earlier["boxes"]) for earlier in evaluated["post"][:i])
            rows = slice(start, start + 12)  # the first 12 of each image will do
            pasted[f"{name}_{i}_logits"] = evaluated["mask"]["logits_of_pred_class"][rows].numpy()
            pasted[f"{name}_{i}_boxes"] = post["boxes"][:12].numpy()
            pasted[f"{name}_{i}_masks"] = masks[f"masks{i}"][:12]
    np.savez_compressed(HERE / "pasted.npz", **pasted)
    for name in ("voc_eval", "coco_eval"):
        np.savez_compressed(HERE / f"{name}.npz", **np.load(folder / f"{name}.npz", allow_pickle=False))


if __name__ == "__main__":
    select(Path(sys.argv[1]))
