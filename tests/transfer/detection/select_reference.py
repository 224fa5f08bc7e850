"""Selects from a folder of reference numbers what the tests need: `python select_reference.py FOLDER [OUT]`.

The numbers were produced by Detectron2 itself (reference/README.md). What is large is thinned out: every 8th region,
every 64th number of a large feature map.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

OUT = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "reference"
MODELS = ("c4_mask", "dc5", "fpn_mask")
"""c4_mask has all of c4_box, which is selected only into a folder of one's own."""
THINNED = 64


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


def save(name: str, tree: object) -> None:
    """All arrays as one, with an index: a file of many small arrays would be mostly file names.

    The first bytes of all numbers of an array come first, then the second ones: exponents compress, digits do not.
    """
    arrays = flat(tree)
    index = [[key, value.dtype.str, value.shape] for key, value in arrays.items()]
    data = b"".join(
        np.frombuffer(value.tobytes(), np.uint8).reshape(-1, value.dtype.itemsize).T.tobytes()
        for value in arrays.values()
    )
    np.savez_compressed(OUT / f"{name}.npz", index=json.dumps(index), data=np.frombuffer(data, np.uint8))


def thin(values: torch.Tensor) -> torch.Tensor:
    return values.flatten()[::THINNED] if values.numel() > 4000 else values


def pooled(saved: dict) -> dict:
    """The first two regions thinned out, and the means of every 64th region."""
    return {"first": thin(saved["first"]), "mean": saved["mean_over_space_every_8th_row"][::8]}


def rpn(stage: dict) -> dict:
    """What the RPN gives: raw outputs thinned out, and all proposals."""
    return {
        "logits": [thin(a) for a in stage["rpn"]["objectness_logits"]],
        "deltas": [thin(a) for a in stage["rpn"]["anchor_deltas"]],
        "proposals": [{"boxes": p["boxes"], "logits": p["objectness_logits"]} for p in stage["proposals"]],
    }


def select_training(train: dict) -> dict:
    roi = train["roi"]
    chosen = {
        "losses": train["losses"],
        "features": {k: thin(v) for k, v in train["features"].items()},
        "anchors": [thin(a) for a in train["anchors"]],
        "rpn": {k: train["rpn"][k].to(torch.int8) for k in ("matched_idxs", "matched_labels", "sampled_labels")},
        "roi": {
            k: [v.to(torch.int8) for v in roi[k]] for k in ("matched_idxs", "matched_labels", "sampled_gt_classes")
        },
        "sampled_idxs": [rows.to(torch.int16) for rows in roi["sampled_idxs"]],
        "pooled": pooled(roi["pooled"]),
        "class_logits": roi["class_logits"][::8],
        "box_deltas": roi["box_deltas"][::8],
        "grad_norm": train["grad_norm"],
        "grad_sum": train["grad_sum"],
        "grad_full": {k: thin(v) for k, v in train["grad_full_small"].items()},
        "bn_after": {k: v for k, v in train["bn_after"].items() if k.endswith(("running_mean", "running_var"))},
        **rpn(train),
    }
    if "res5" in roi:
        chosen["head"] = pooled(roi["res5"])
    else:
        chosen["head"] = {"vectors": roi["box_head_out_every_8th_row"][::2]}
    if "mask" in roi:
        chosen["mask"] = {k: roi["mask"][k] for k in ("gt_class", "logits_mean")}
        chosen["mask"]["logits"] = thin(roi["mask"]["logits_of_gt_class"])
        chosen["mask"]["targets"] = np.packbits(roi["mask"]["targets"].numpy())
        if "pooled" in roi["mask"]:
            chosen["mask"]["pooled"] = pooled(roi["mask"]["pooled"])
    return chosen


def select_evaluation(evaluated: dict) -> dict:
    roi = evaluated["roi"]
    chosen = {
        "features": {k: thin(v) for k, v in evaluated["features"].items()},
        "features_mean": {k[-2:]: v for k, v in evaluated.items() if k.startswith("features_mean")},
        "pooled": pooled(roi["pooled"]),
        "class_logits": roi["class_logits"][::8],
        "box_deltas": roi["box_deltas"][::8],
        "raw": [{k: v for k, v in raw.items() if k != "classes"} for raw in evaluated["raw"]],
        "post": evaluated["post"],
        **rpn(evaluated),
    }
    if "mask" in evaluated:
        chosen["mask"] = {"logits": thin(evaluated["mask"]["logits_of_pred_class"])}
        chosen["mask"]["logits_mean"] = evaluated["mask"]["logits_mean"]
    return chosen


def select(model: dict) -> dict:
    seeded, steps = model["train_seeded"], model["steps3"]
    chosen = {
        "state_dict": {k: v for k, v in model["state_dict"].items() if not k.endswith("num_batches_tracked")},
        "param_names": json.dumps(model["param_names"]),
        "train": select_training(model["train"]),
        "eval": select_evaluation(model["eval"]),
        "limits": [{"boxes": p["boxes"], "logits": p["objectness_logits"]} for p in model["eval_limits"]["proposals"]],
        "seeded": {
            "losses": seeded["losses"],
            "sampled_labels": seeded["rpn"]["sampled_labels"],
            "sampled_idxs": [rows.to(torch.int16) for rows in seeded["roi"]["sampled_idxs"]],
            "sampled_gt_classes": [c.to(torch.int8) for c in seeded["roi"]["sampled_gt_classes"]],
            "grad_norm": seeded["grad_norm"],
        },
        "without_objects": model["train_image1_without_objects"]["losses"],
        "steps3": {k: steps[k] for k in ("lr", "losses", "delta_norm", "delta_sum")},
    }
    if "train_bitmask_format" in model:
        bitmask = model["train_bitmask_format"]
        chosen["bitmask"] = {"losses": bitmask["losses"], "targets": np.packbits(bitmask["mask_targets"].numpy())}
    return chosen


def main(folder: Path) -> None:
    def read(name: str) -> dict:
        return torch.load(folder / name, weights_only=True)

    for name in (*MODELS, *(["c4_box"] if len(sys.argv) > 2 else [])):
        save(name, select(read(f"{name}.pt")))
    inputs = read("inputs.pt")
    inputs["batch_divisor32"] = thin(inputs["batch_divisor32"])
    bitmaps = inputs.pop("gt_bitmaps")
    inputs["gt_bitmaps"] = [np.packbits(b.numpy(), axis=-1) for b in bitmaps]
    transforms = read("transforms.pt")
    others = {
        "inputs": inputs,
        "solver": read("solver.pt"),
        "precise_bn": read("precise_bn.pt")["stats_after"],
        **{k: transforms[k] for k in ("box_transform", "matcher", "fpn_levels", "cell_anchors")},
        "fpn_pool": {k: transforms["fpn_pool"][k] for k in ("boxes", "out_7", "out_14_mean")},
    }
    if len(sys.argv) > 2:
        others["fpn_features"] = transforms["fpn_pool"]["features"]
    save("stages", others)
    stats = json.loads((folder / "init_stats.json").read_text())
    small = {
        m: {k: [v["mean"], v["std"], v["min"], v["max"]] for k, v in s.items() if not k.endswith("num_batches_tracked")}
        for m, s in stats.items()
    }
    names = {m: v["model_key_to_checkpoint_key"] for m, v in read("checkpoint_names.pt").items()}
    np.savez_compressed(OUT / "names.npz", init=json.dumps(small), checkpoint=json.dumps(names))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
