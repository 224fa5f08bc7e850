"""moco embed: the features of a data set, in a file."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from moco.cli.commands.common import computing, print_on_main, progress
from moco.cli.commands.evaluated import data_of, open_encoder, open_images
from moco.cli.options import Embed
from moco.data import ImageSet
from moco.evaluation import Embedding, Trained, embed, fingerprint, write_features
from moco.evaluation.approximate import neighbours_by, uses_faiss
from moco.evaluation.embedding import About
from moco.evaluation.feature_writer import Written, check_output, written_files
from moco.report.map import NEIGHBOURS, draw_map
from moco.runtime.device import Device
from moco.runtime.errors import UserError
from moco.runtime.files import write_whole
from moco.runtime.ranks import is_main, on_main
from moco.training import start_logging
from moco.views import CentreCrop

_NAMED = 10
"""Unreadable images that are printed."""


def run(options: Embed) -> None:
    """Writes the features of a data set's images."""
    check_output(options.out, options.overwrite)
    evaluated = options.evaluated
    with computing(evaluated.compute) as device:
        start_logging(None, is_main())
        trained = open_encoder(evaluated)
        spec = data_of(evaluated, evaluated.data)
        source = open_images(spec, trained, evaluated.download, options.max_bad)
        sets = _chosen(source.whole_splits, options.split, spec)
        if options.map:
            count = sum(map(len, sets.values()))
            uses_faiss("auto", count, count, "--map", "no --map")
        encoder, centre = trained.on(device)
        about = describe(trained, centre, spec, device)
        folder = options.out.with_name(f".{options.out.name}.partial")
        if options.overwrite:  # a finished one's; else it would be a stopped run's, which goes on
            on_main(lambda: Embedding({}, folder, 0, []).discard() if options.out.exists() else None)
        workers, bar = trained.config.compute.workers, progress("embedding")
        embedding = embed(encoder, sets, centre, device, folder, about, options.batch_size, workers, bar)
        if is_main():
            _write(embedding, about, source.classes, options, device)


def describe(trained: Trained, centre: CentreCrop, spec: str, device: Device) -> About:
    """Of which encoder and data features are, and how exactly they are computed."""
    return {
        "weights": str(trained.weights),
        "encoder": trained.config.encoder.encoder,
        "image_size": centre.size,
        "precision": "bf16" if device.bf16 else "fp32",
        "fingerprint": fingerprint(trained.encoder, centre),
        "data": spec,
    }


def _chosen(splits: dict[str, ImageSet], split: str, spec: str) -> Mapping[str, ImageSet]:
    if split != "all" and split not in splits:
        raise UserError(f"--split {split}: {spec} has {', '.join(splits)} alone")
    return splits if split == "all" else {split: splits[split]}


def _write(embedding: Embedding, about: About, classes: list[str] | None, options: Embed, device: Device) -> None:
    if len(embedding) == 0:
        raise UserError(f"{about['data']}: none of its images can be read")
    places = _map(embedding, device) if options.map else None
    write_features(options.out, Written(embedding, about, classes, options.normalise, places))
    broken = embedding.unreadable_names()
    if broken:
        _name_unreadable(broken, len(embedding), options.out)
    embedding.discard()
    size = sum(file.stat().st_size for file in written_files(options.out))
    names = " and ".join(map(str, written_files(options.out)))
    print_on_main(
        f"written to {names}: {len(embedding):,} images x {embedding.num_features} features ({size / 1e6:.1f} MB)"
    )


def _name_unreadable(names: list[str], read: int, out: Path) -> None:
    path = out.with_name(f"{out.name}.unreadable.txt")
    text = "".join(f"{name}\n" for name in names).encode(errors="surrogateescape")
    write_whole(path, lambda file: file.write(text))
    more = [f"... and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
    of = f"{len(names):,} of {len(names) + read:,} images cannot be read: they have no row, and are named in {path}:"
    print_on_main("\n".join([of, *names[:_NAMED], *more]))


def _map(embedding: Embedding, device: Device) -> Tensor:
    """Places on the map, float32 (n, 2). All features are in memory for it."""
    shape = (len(embedding), embedding.num_features)
    values = torch.from_numpy(np.fromfile(embedding.folder / "features", np.float32)).view(*shape)
    own = torch.arange(len(values))
    search = neighbours_by("auto", values.to(device.device), NEIGHBOURS, len(values), own)
    for part in progress("neighbours")(own.split(4096)):
        search.add(values[part], part)
    _, neighbours = search.result()
    if bool((neighbours < 0).any()):  # faiss found fewer: the image itself pulls it nowhere
        neighbours = neighbours.where(neighbours >= 0, own[:, None])
    return draw_map(values, neighbours, progress=progress("map"))
