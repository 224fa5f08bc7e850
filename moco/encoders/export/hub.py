"""A folder as the Hugging Face hub has it: what timm and moco load by its name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moco.encoders.description import Description
from moco.encoders.export.exported import Exported, takes_other_sizes
from moco.encoders.export.timm import Translated, timm_name, translate
from moco.encoders.files import HEADER, as_safetensors
from moco.runtime.errors import UserError, one_line

FILES = ("config.json", "model.safetensors", "README.md")


def to_hub(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """config.json, in timm's format, and model.safetensors, for the folder `path`; the model card is the caller's.

    `timm.create_model("hf-hub:OWNER/NAME", pretrained=True)` and `moco.load_encoder("hf:OWNER/NAME")` load it. An
    encoder that timm has no name for (`tiny`, the small stem) is for the latter alone, and its architecture in the
    config is one that timm does not know.

    Raises:
        UserError: the encoder is timm's, or has its name there, and timm is not installed.
    """
    usage = [f"encoder, preprocess = moco.load_encoder({str(path)!r})"]
    config: dict[str, Any] = {"architecture": description.label.replace(" ", "_")}
    tensors: dict[str, Tensor] = encoder.state_dict()
    difference, loaders = None, ["import moco"]
    if timm_name(description) is None or description.small_stem:
        config |= {"num_classes": 0, "num_features": encoder.num_features}
    else:
        timm = translate(encoder, description, "hub")
        config, tensors, difference = _timm_config(timm, encoder, description), timm.tensors, timm.difference
        loaders.append("import timm")
        usage.append(f"model = timm.create_model({f'local-dir:{path}'!r}, pretrained=True)")
    config[HEADER] = description.as_values()
    text = json.dumps(config, indent=2) + "\n"
    files = {path / FILES[0]: text.encode(), path / FILES[1]: as_safetensors(tensors, description)}
    return Exported(files, "\n".join([*loaders, "", *usage]), difference)


def _timm_config(timm: Translated, encoder: nn.Module, description: Description) -> dict[str, Any]:
    """As timm writes config.json."""
    known: Mapping[str, Any] = getattr(timm.model, "pretrained_cfg", {})
    size, fixed = description.image_size, not takes_other_sizes(encoder, description.image_size)
    return {
        "architecture": timm.architecture,
        "num_classes": 0,
        "num_features": timm.model.num_features,
        **({"model_args": timm.arguments} if timm.arguments else {}),
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, size, size],
            "fixed_input_size": fixed,
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": description.mean,
            "std": description.std,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
    }


def push_to_hub(folder: Path, repository: str, private: bool, overwrite: bool) -> str:
    """Uploads the files of `to_hub` and the model card to `OWNER/NAME`, and returns its address.

    Raises:
        UserError: huggingface_hub is not installed; the repository exists, and is not to be overwritten; no access.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise UserError("--push needs huggingface_hub: pip install 'momentum-contrast[hf]'") from error
    hub = huggingface_hub.HfApi()
    try:
        if not overwrite and hub.repo_exists(repository):
            raise UserError(f"--push {repository}: exists already: --overwrite adds a commit to it")
        hub.create_repo(repository, private=private, exist_ok=overwrite)
        hub.upload_folder(repo_id=repository, folder_path=str(folder), allow_patterns=list(FILES))
    except UserError:
        raise
    except Exception as error:  # of the network, the name, access
        raise UserError(f"--push {repository}: {one_line(error)} (hf auth login)") from error
    return f"https://huggingface.co/{repository}"
