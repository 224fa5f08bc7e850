"""What the tests read of a folder of reference numbers (reference/README.md), whole or thinned out.

`python -m tests.transfer.detection.select_reference FOLDER [OUT]` writes the repository's selection: every 8th region,
every 64th number of a large feature map, 12 pasted masks of an image, weights by their seed.
"""

import gzip
import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tests.transfer.detection.seeded_weights import encode

REFERENCE = Path(__file__).parent / "reference"
MODELS = ("c4_box", "c4_mask", "dc5", "fpn_mask")
EVALUATIONS = ("voc_eval", "coco_eval")


@dataclass(frozen=True)
class Thinning:
    """Every how manieth number of a large tensor and row of the regions is kept, and how many pasted masks."""

    numbers: int
    rows: int
    masks: int

    def thin(self, values: Tensor) -> Tensor:
        return values.flatten()[:: self.numbers] if self.numbers > 1 and values.numel() > 4000 else values


WHOLE, REPOSITORY = Thinning(1, 1, 10**6), Thinning(64, 8, 12)


def load(folder: Path, name: str) -> dict:
    return torch.load(folder / f"{name}.pt", weights_only=True)


def flat(tree: object, path: str = "") -> dict[str, np.ndarray]:
    """Nested dicts and lists as one dict, the keys joined by "/"."""
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list | tuple):
        items = enumerate(tree)
    else:
        return {path: np.asarray(tree)}
    return {
        key: value
        for name, child in items
        for key, value in flat(child, f"{path}/{name}" if path else str(name)).items()
    }


class Selection:
    """Trees of tensors as the tests read them."""

    def __init__(self, folder: Path, thinning: Thinning = WHOLE) -> None:
        self.folder, self.thinning, self.thin = folder, thinning, thinning.thin

    def model(self, name: str) -> dict:
        """One of the structures."""
        model = load(self.folder, name)
        seeded, steps = model["train_seeded"], model["steps3"]
        chosen = {
            "cfg": json.dumps(model["cfg"]),
            "state_dict": model["state_dict"],
            "param_names": json.dumps(model["param_names"]),
            "train": self.training(model["train"]),
            "eval": self.evaluation(model["eval"]),
            "limits": {
                "before": model["eval_limits"]["pre_nms_topk"],
                "after": model["eval_limits"]["post_nms_topk"],
                "proposals": proposals(model["eval_limits"]),
            },
            "seeded": {
                "losses": seeded["losses"],
                "loss_sum": seeded["loss_sum"],
                "seed": seeded["seed"],
                "sampled_labels": seeded["rpn"]["sampled_labels"],
                "sampled_idxs": [rows.to(torch.int16) for rows in seeded["roi"]["sampled_idxs"]],
                "sampled_gt_classes": [c.to(torch.int8) for c in seeded["roi"]["sampled_gt_classes"]],
                "grad_norm": seeded["grad_norm"],
            },
            "without_objects": model["train_image1_without_objects"]["losses"],
            "steps3": steps,
        }
        if "train_bitmask_format" in model:
            bitmask = model["train_bitmask_format"]
            chosen["bitmask"] = {"losses": bitmask["losses"], "targets": np.packbits(bitmask["mask_targets"].numpy())}
        return chosen

    def pooled(self, saved: dict) -> dict:
        """The shape, the first two regions, and the means of rows."""
        return {
            "shape": saved["shape"],
            "first": self.thin(saved["first"]),
            "mean": saved["mean_over_space_every_8th_row"][:: self.thinning.rows],
        }

    def rpn(self, stage: dict) -> dict:
        """What the RPN gives: raw outputs, and all proposals."""
        return {
            "logits": [self.thin(a) for a in stage["rpn"]["objectness_logits"]],
            "deltas": [self.thin(a) for a in stage["rpn"]["anchor_deltas"]],
            "proposals": proposals(stage),
        }

    def heads(self, roi: dict) -> dict:
        rows = self.thinning.rows
        return {
            "pooled": self.pooled(roi["pooled"]),
            "class_logits": roi["class_logits"][::rows],
            "box_deltas": roi["box_deltas"][::rows],
        }

    def training(self, train: dict) -> dict:
        roi = train["roi"]
        small = ("matched_idxs", "matched_labels", "sampled_gt_classes")
        chosen = {
            "losses": train["losses"],
            "loss_sum": train["loss_sum"],
            "features": {k: self.thin(v) for k, v in train["features"].items()},
            "anchors": [self.thin(a) for a in train["anchors"]],
            "rpn": {k: train["rpn"][k].to(torch.int8) for k in ("matched_idxs", "matched_labels", "sampled_labels")},
            "roi": {k: [v.to(torch.int8) for v in roi[k]] for k in small},
            "sampled_idxs": [rows.to(torch.int16) for rows in roi["sampled_idxs"]],
            "sampled_boxes": roi["sampled_boxes"],
            "sampled_gt_boxes": roi["sampled_gt_boxes"],
            "grad_norm": train["grad_norm"],
            "grad_sum": train["grad_sum"],
            "grad_none": json.dumps(train["grad_none"]),
            "grad_full": {k: self.thin(v) for k, v in train["grad_full_small"].items()},
            "bn_after": train["bn_after"],
            **self.heads(roi),
            **self.rpn(train),
        }
        if "res5" in roi:
            chosen["head"] = self.pooled(roi["res5"])
        else:
            chosen["head"] = {"vectors": roi["box_head_out_every_8th_row"][:: max(1, self.thinning.rows // 4)]}
        if "mask" in roi:
            chosen["mask"] = {k: roi["mask"][k] for k in ("gt_class", "logits_mean", "shape")}
            chosen["mask"]["logits"] = self.thin(roi["mask"]["logits_of_gt_class"])
            chosen["mask"]["targets"] = np.packbits(roi["mask"]["targets"].numpy())
            if "pooled" in roi["mask"]:
                chosen["mask"]["pooled"] = self.pooled(roi["mask"]["pooled"])
        return chosen

    def evaluation(self, evaluated: dict) -> dict:
        chosen = {
            "features": {k: self.thin(v) for k, v in evaluated["features"].items()},
            "features_mean": {k[-2:]: v for k, v in evaluated.items() if k.startswith("features_mean")},
            "raw": evaluated["raw"],
            "post": evaluated["post"],
            **self.heads(evaluated["roi"]),
            **self.rpn(evaluated),
        }
        if "mask" in evaluated:
            chosen["mask"] = {k: evaluated["mask"][k] for k in ("shape", "logits_mean")}
            chosen["mask"]["logits"] = self.thin(evaluated["mask"]["logits_of_pred_class"])
        return chosen

    def stages(self) -> dict:
        """Inputs, and what single operations gave."""
        inputs, transforms = load(self.folder, "inputs"), load(self.folder, "transforms")
        rows = 16 if self.thinning.numbers > 1 else 1
        inputs["batch_divisor32"] = inputs["batch_divisor32"][:, :, ::rows]
        inputs["gt_bitmaps"] = [np.packbits(b.numpy(), axis=-1) for b in inputs["gt_bitmaps"]]
        operations = ("box_transform", "matcher", "fpn_pool", "fpn_levels", "cell_anchors", "anchor_strides")
        return {
            "inputs": inputs,
            "solver": load(self.folder, "solver"),
            "precise_bn": load(self.folder, "precise_bn")["stats_after"],
            **{k: transforms[k] for k in operations},
        }

    def data(self) -> dict:
        """What concerns images, annotations and masks."""
        transforms, inputs = load(self.folder, "transforms"), load(self.folder, "inputs")
        kept = {key: transforms[key] for key in ("resize_shapes", "resize_pixels", "annotations", "mask_targets")}
        objects = {key: inputs[key] for key in ("sizes_hw", "gt_boxes", "gt_polygons")}
        bitmaps = [torch.from_numpy(np.packbits(bitmaps.numpy())) for bitmaps in inputs["gt_bitmaps"]]
        return {**kept, **objects, "gt_bitmaps": bitmaps}

    def pasted(self) -> dict[str, np.ndarray]:
        """The masks of detections, before and after pasting: of each image the first ones."""
        pasted = {}
        for path in sorted(self.folder.glob("*_pasted.npz")):
            name = path.stem.removesuffix("_pasted")
            evaluated, masks, start = load(self.folder, name)["eval"], np.load(path, allow_pickle=False), 0
            logits = evaluated["mask"]["logits_of_pred_class"]
            for i, post in enumerate(evaluated["post"]):
                count = min(len(post["boxes"]), self.thinning.masks)
                pasted[f"{name}_{i}_logits"] = logits[start : start + count].numpy()
                pasted[f"{name}_{i}_boxes"] = post["boxes"][:count].numpy()
                pasted[f"{name}_{i}_masks"] = masks[f"masks{i}"][:count]
                start += len(post["boxes"])
        return pasted

    def names(self) -> dict[str, dict]:
        """The statistics of fresh weights, and the names in a converted checkpoint."""
        stats = json.loads((self.folder / "init_stats.json").read_text())
        kinds = ("mean", "std", "min", "max", "shape")
        init = {m: {k: [v[kind] for kind in kinds] for k, v in each.items()} for m, each in stats.items()}
        found = load(self.folder, "checkpoint_names")
        return {"init": init, "checkpoint": {m: v["model_key_to_checkpoint_key"] for m, v in found.items()}}


def proposals(stage: dict) -> list[dict]:
    return [{"boxes": p["boxes"], "logits": p["objectness_logits"]} for p in stage["proposals"]]


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """All arrays as one, with an index: a file of many small arrays would be mostly file names.

    The first bytes of all numbers of an array come first, then the second ones: exponents compress, digits do not.
    """
    index = [[key, value.dtype.str, value.shape] for key, value in arrays.items()]
    data = b"".join(
        np.frombuffer(value.tobytes(), np.uint8).reshape(-1, value.dtype.itemsize).T.tobytes()
        for value in arrays.values()
    )
    np.savez_compressed(path, index=json.dumps(index), data=np.frombuffer(data, np.uint8))


def read(path: Path) -> dict[str, np.ndarray]:
    """What `save` wrote."""
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        data, start = file["data"].tobytes(), 0
        for key, kind, shape in json.loads(str(file["index"])):
            count, dtype = math.prod(shape), np.dtype(kind)
            stored = np.frombuffer(data, np.uint8, count * dtype.itemsize, start)
            arrays[key] = stored.reshape(dtype.itemsize, -1).T.copy().view(dtype).reshape(shape)
            start += count * dtype.itemsize
    return arrays


def main(folder: Path, out: Path = REFERENCE) -> None:
    selection = Selection(folder, REPOSITORY)
    for name in MODELS:
        chosen = selection.model(name)
        state = {k: v.numpy() for k, v in chosen.pop("state_dict").items()}
        weights = encode(json.loads(chosen["param_names"]), state)
        save(out / f"{name}.npz", {f"weights/{k}": v for k, v in weights.items()} | flat(chosen))
    save(out / "stages.npz", flat(selection.stages()))
    content = io.BytesIO()
    torch.save(selection.data(), content)
    (out / "data.pt.gz").write_bytes(gzip.compress(content.getvalue(), mtime=0))
    np.savez_compressed(out / "pasted.npz", **selection.pasted())
    np.savez_compressed(out / "names.npz", **{k: json.dumps(v) for k, v in selection.names().items()})
    for name in EVALUATIONS:
        np.savez_compressed(out / f"{name}.npz", **np.load(folder / f"{name}.npz", allow_pickle=False))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
