"""moco's own form: safetensors, with the encoder's description in the header."""

from pathlib import Path

from torch import nn

from moco.encoders.description import Description
from moco.encoders.export.exported import Exported
from moco.encoders.files import as_safetensors


def to_safetensors(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """The state dict under our names; `moco.load_encoder` needs nothing beside the file."""
    usage = f"import moco\n\nencoder, preprocess = moco.load_encoder({str(path)!r})"
    return Exported({path: as_safetensors(encoder.state_dict(), description)}, usage)
