"""ONNX: the encoder as a graph, for any number of images."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from moco.encoders.description import Description
from moco.encoders.export.exported import Exported, compare, probe, takes_other_sizes
from moco.encoders.files import HEADER
from moco.runtime.errors import UserError, one_line

_LARGEST = 2**31 - 2**24
"""Bytes of weights: protobuf ends at 2 GiB, and the graph takes a little of it."""


def to_onnx(encoder: nn.Module, description: Description, path: Path) -> Exported:
    """A graph from `images`, float32 (n, 3, h, w) and normalised, to `features`, float32 (n, num_features).

    n is dynamic, and so are h and w where the encoder takes images of other sizes. The description is in the graph's
    metadata. It is run by onnxruntime and compared.

    Raises:
        UserError: the extra is not installed; ONNX has no operator for something in the encoder, and which; the encoder
            is too large for a file.
    """
    runtime = _require()
    size = sum(value.numel() * value.element_size() for value in encoder.state_dict().values())
    if size > _LARGEST:
        large = f"weights of {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB"
        raise UserError(f"--to onnx: {description.label}: {large}: --to safetensors holds any number")
    shape = probe(description)
    dynamic: dict[int, Any] = {0: Dim("images", min=1)}
    if takes_other_sizes(encoder, description.image_size):
        # Traced on an oblong image, as sides of equal length would be taken for one and the same.
        shape = (*shape[:3], shape[3] + 32)
        dynamic |= {2: Dim("height", min=32, max=8192), 3: Dim("width", min=32, max=8192)}
    program = _traced(encoder, shape, dynamic, description)
    program.model.metadata_props[HEADER] = json.dumps(description.as_values())
    graph = program.model_proto.SerializeToString()
    session = runtime.InferenceSession(graph, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])

    difference = compare(encoder, run, (3, *shape[1:]), "onnx")
    usage = [
        "import onnxruntime",
        "",
        f"session = onnxruntime.InferenceSession({str(path)!r})",
        '(features,) = session.run(None, {"images": images})  # float32 (n, 3, h, w), normalised',
    ]
    return Exported({path: graph}, "\n".join(usage), difference)


def _require() -> Any:
    """onnxruntime. Raises UserError if it or what torch.onnx needs is not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--to onnx needs {error.name}: pip install 'momentum-contrast[onnx]'") from error
    return onnxruntime


def _traced(encoder: nn.Module, shape: tuple[int, ...], dynamic: dict[int, Any], description: Description) -> Any:
    try:
        with _quiet():
            return torch.onnx.export(
                encoder,
                (torch.zeros(shape),),
                input_names=["images"],
                output_names=["features"],
                dynamic_shapes=(dynamic,),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.onnx wraps whatever it was
        reasons = [error]
        while cause := reasons[-1].__cause__:
            reasons.append(cause)  # type: ignore[arg-type]
        missing = re.search(r"No ONNX function found for .*?op='([\w.]+)'", str(reasons[-1]))
        reason = f"has no operator for {missing[1]}" if missing else f"cannot express it: {one_line(reasons[-1])}"
        raise UserError(
            f"--to onnx: {description.label}: ONNX {reason}: --to safetensors keeps it in PyTorch"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch.onnx's warnings to those who develop it."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
