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
    """All arrays as one, with an index: a file of many small arrays would be mostly file names."""
    arrays = flat(tree)
    index = [[key, value.dtype.str, value.shape] for key, value in arrays.items()]
    data = np.frombuffer(b"".join(value.tobytes() for value in arrays.values()), dtype=np.uint8)
    np.savez_compressed(OUT / f"{name}.npz", index=json.dumps(index), data=data)


def thin(values: torch.Tensor) -> torch.Tensor:
    return values.flatten()[::THINNED] if values.numel() > 4000 else values


def select(model: dict) -> dict:
    train, seeded, evaluated = model["train"], model["train_seeded"], model["eval"]
    roi = train["roi"]
    chosen = {
        "state_dict": {k: v for k, v in model["state_dict"].items() if not k.endswith("num_batches_tracked")},
        "param_names": json.dumps(model["param_names"]),
        "losses": train["losses"],
        "features": {k: thin(v) for k, v in train["features"].items()},
        "anchors": [thin(a) for a in train["anchors"]],
        "logits": [thin(a) for a in train["rpn"]["objectness_logits"]],
        "deltas": [thin(a) for a in train["rpn"]["anchor_deltas"]],
        "rpn": {k: train["rpn"][k].to(torch.int8) for k in ("matched_idxs", "matched_labels", "sampled_labels")},
        "proposals": [{"logits": p["objectness_logits"]} for p in train["proposals"]],
        "roi": {k: roi[k] for k in ("matched_labels", "sampled_idxs")},
        "class_logits": roi["class_logits"][::8],
        "grad_norm": train["grad_norm"],
        "bn_after": {k: v for k, v in train["bn_after"].items() if k.endswith(("running_mean", "running_var"))},
        "seeded": {
            "losses": seeded["losses"],
            "sampled_labels": seeded["rpn"]["sampled_labels"],
            "grad_norm": seeded["grad_norm"],
        },
        "without_objects": model["train_image1_without_objects"]["losses"],
        "steps3": {k: model["steps3"][k] for k in ("lr", "losses", "delta_norm")},
        "post": evaluated["post"],
        "limits": [p["boxes"] for p in model["eval_limits"]["proposals"]],
    }
    if "mask" in roi:
        chosen["mask"] = {k: roi["mask"][k] for k in ("gt_class", "logits_mean")}
        chosen["mask"]["targets"] = np.packbits(roi["mask"]["targets"].numpy())
        chosen["bitmask"] = {
            "losses": model["train_bitmask_format"]["losses"],
            "targets": np.packbits(model["train_bitmask_format"]["mask_targets"].numpy()),
        }
    if model["name"] == "dc5" and len(sys.argv) == 2:
        del chosen["bn_after"]
    return chosen


def main(folder: Path) -> None:
    def read(name: str) -> dict:
        return torch.load(folder / name, weights_only=True)

    for name in (*MODELS, *(["c4_box"] if len(sys.argv) > 2 else [])):
        save(name, select(read(f"{name}.pt")))
    inputs = read("inputs.pt")
    del inputs["batch_divisor32"]
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
