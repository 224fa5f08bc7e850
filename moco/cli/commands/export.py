"""moco export: an encoder in the form of another library."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from moco.cli.commands.common import print_on_main
from moco.cli.options import Export
from moco.encoders import Description
from moco.encoders.export import (
    HUB_FILES,
    Exported,
    as_torchvision,
    push_to_hub,
    to_detectron2,
    to_hub,
    to_mmdet,
    to_onnx,
    to_safetensors,
    to_timm,
    to_torchvision,
)
from moco.encoders.included import FOLDER, INCLUDED
from moco.evaluation import Trained, open_trained
from moco.report import model_card
from moco.runs.folder import Run
from moco.runtime.errors import UserError, require_all
from moco.runtime.files import write_whole
from moco.runtime.ranks import is_main
from moco.training import start_logging


@dataclass(frozen=True)
class Form:
    """How a library wants an encoder."""

    export: Callable[[nn.Module, Description, Path], Exported]
    suffix: str
    beside: str | None = None
    """Suffix of a config file beside it."""
    of_torchvision: bool = False
    """Whether a ResNet of timm is first made one of torchvision's."""

    def files(self, out: Path) -> list[Path]:
        """What is written; for the hub, in the folder `out`."""
        if not self.suffix:
            return [out / name for name in HUB_FILES]
        return [out, *([out.with_suffix(self.beside)] if self.beside else [])]


FORMS = {
    "torchvision": Form(to_torchvision, ".safetensors", of_torchvision=True),
    "timm": Form(to_timm, ".safetensors"),
    "detectron2": Form(to_detectron2, ".pth", ".yaml", of_torchvision=True),
    "mmdet": Form(to_mmdet, ".pth", ".py", of_torchvision=True),
    "safetensors": Form(to_safetensors, ".safetensors"),
    "onnx": Form(to_onnx, ".onnx"),
    "hub": Form(to_hub, ""),
}


def run(options: Export) -> None:
    """Writes the export, compared with the encoder where its library is at hand, and prints how to load it."""
    start_logging(None, is_main())
    form = FORMS[options.to]
    out = options.out or _folder(options.run) / _name(options.run, options.to, form.suffix)
    _check(options, form, out)
    trained = open_trained(options.run, options.encoder, options.image_size)
    encoder, description = trained.encoder.eval(), trained.description
    if form.of_torchvision:
        encoder, description = as_torchvision(encoder, description)
    exported = form.export(encoder, description, out)
    files = dict(exported.files)
    if options.to == "hub":
        files[out / "README.md"] = _card(options, trained, "import timm" in exported.usage).encode()
        _make_folder(out)
    for path, content in files.items():
        write_whole(path, lambda file, content=content: file.write(content))  # type: ignore[misc]
    print_on_main(f"written to {', '.join(map(str, files))}")
    if exported.difference is not None:
        print_on_main(
            f"its features there are those here (largest difference: {exported.difference:.0e} of the largest)"
        )
    print_on_main(f"load it by:\n\n{exported.usage}")
    if options.push:
        print_on_main(f"\nuploaded to {push_to_hub(out, options.push, options.private, options.overwrite)}")


def _check(options: Export, form: Form, out: Path) -> None:
    """Raises UserError for what cannot be written, or would overwrite, before anything is computed."""
    there = [path for path in form.files(out) if path.exists()]
    hub = options.to == "hub"
    require_all(
        [
            (hub or not options.push, "--push: goes with --to hub"),
            (options.push is None or options.push.count("/") == 1, f"--push {options.push}: give OWNER/NAME"),
            (hub or out.suffix == form.suffix, f"--out {out}: what {options.to} reads is a {form.suffix or 'folder'}"),
            (hub or out.absolute().parent.is_dir(), f"--out {out}: no such folder: {out.parent}"),
            (not hub or out.is_dir() or not out.exists(), f"--out {out}: is a file: the hub's form is a folder"),
            (
                options.overwrite or not there,
                f"{there[0] if there else out} exists already: --overwrite replaces it, --out writes another",
            ),
        ]
    )


def _folder(run: Path) -> Path:
    """Where an export lies if --out is not given: in the run, beside a file, else here."""
    if Run(run).exists:
        return run
    return run.parent if run.exists() else Path()


def _name(run: Path, to: str, suffix: str) -> str:
    """What an export is called if --out is not given: mine.onnx, mine-timm.safetensors, mine-hub."""
    return _stem(run) + ("" if suffix == f".{to}" else f"-{to}") + suffix


def _stem(run: Path) -> str:
    """The name of the run, of the file, or of what a library names."""
    if not run.exists():
        library, _, name = str(run).partition(":")
        return re.sub(r"\W+", "-", name or library).strip("-") or "encoder"
    return run.resolve().name if run.is_dir() else run.name.partition(".")[0]


def _card(options: Export, trained: Trained, in_timm: bool) -> str:
    run = Run(options.run) if Run(options.run).exists else None
    repository = options.push or f"OWNER/{_stem(options.run)}"
    license, weights = options.license, trained.weights.name
    if run is None and str(options.run) in INCLUDED:
        about = json.loads((FOLDER / f"{options.run}.json").read_text())
        license = about["licence"].lower() if license == "unknown" else license
        reached = f"kNN {about['knn']:.1%}, with random weights {about['knn_random']:.1%}"
        weights = f"{weights}, trained by `{about['command']}`: {reached}"
    return model_card(trained.description, run, repository, license, in_timm, weights)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be created: {error.strerror}") from error
