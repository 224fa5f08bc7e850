"""The model card of an encoder: a README.md as the Hugging Face hub has it."""

from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from moco.encoders import Description
from moco.report.metrics import read_curves
from moco.report.rerun import rerun
from moco.report.sections import facts, results
from moco.runs.config import Config
from moco.runs.folder import Run

_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,  # Markdown
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def model_card(
    description: Description, run: Run | None, repository: str, license: str, in_timm: bool, weights: str
) -> str:
    """The card, in Markdown, with the hub's fields in front.

    Args:
        description: of the encoder.
        run: that trained it; None: given weights.
        repository: `OWNER/NAME` on the hub.
        license: of the weights, as the hub spells licences.
        in_timm: whether timm loads the folder too.
        weights: where they come from, for a reader of given weights.
    """
    shown = None if run is None else public(run.config())
    curves = {} if run is None else read_curves(run)
    table = {"head": [], "rows": []} if run is None else results([run], [run.path.name], [curves])
    return _TEMPLATES.get_template(
        "card.md"
    ).render(
        described=description,
        license=license,
        repository=repository,
        name=repository.partition("/")[2],
        in_timm=in_timm,
        weights=weights,
        facts=facts(shown, curves) if shown else [],
        command=rerun(shown, f"runs/{run.path.resolve().name}") if run and shown else "",
        head=table["head"][1:],  # all rows are of this run
        rows=[row[1:] for row in table["rows"]],
    )


def public(config: Config) -> Config:
    """The configuration without the folders of this machine, which are no one else's business: `folder:photos`."""
    kind, colon, place = config.data.source.partition(":")
    source = kind + colon + (Path(place).name if kind != "hf" else place)
    init = config.encoder.init
    init = Path(init).name if Path(init).exists() or Path(init).is_absolute() else init
    recipe = Path(config.recipe).name if config.recipe.endswith(".yaml") else config.recipe
    encoder = replace(config.encoder, init=init)
    return replace(config, recipe=recipe, data=replace(config.data, source=source), encoder=encoder)
