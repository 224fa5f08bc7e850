"""The page about one run or several: one HTML file, which needs nothing else and no network."""

import base64
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from moco.diagnosis.doctor import SEVERITIES
from moco.report.gallery import Gallery
from moco.report.metrics import HISTOGRAMS, KNOWN, chance, read_curves
from moco.report.sections import findings, numbers, results, what_was_run
from moco.runs.folder import Run
from moco.runtime.files import write_whole

_HERE = Path(__file__).parent
_SCRIPTS = ("page", "histogram", "curves", "canvas", "map")
# Whatever a run's folder holds is text: only what is marked as HTML here is.
_TEMPLATES = Environment(
    loader=FileSystemLoader(_HERE / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_page(runs: list[Run], galleries: list[Gallery | str], path: Path) -> None:
    """Writes the page of some runs whole or not at all.

    Args:
        galleries: of each run, or why there is none.
    """
    page = build_page(runs, galleries).encode()
    write_whole(path, lambda file: file.write(page))


def build_page(runs: list[Run], galleries: list[Gallery | str]) -> str:
    """The page of some runs, as HTML. Each section is the template of its name."""
    names = run_names(runs)
    curves = [read_curves(run) for run in runs]
    missing = [of for of in zip(names, galleries, strict=True) if isinstance(of[1], str)]
    shown = [(i, names[i], gallery) for i, gallery in enumerate(galleries) if isinstance(gallery, Gallery)]
    sections: list[tuple[str, str, Any]] = [
        ("runs", "What was run", what_was_run(runs, names, curves)),
        ("findings", "The doctor's findings", findings(runs, names)),
        ("results", "How good the features are", results(runs, names, curves)),
        ("curves", "Curves", numbers(names, curves)),
        ("pictures", "Pictures", missing),
        ("map", "Map of the features", shown),
        ("neighbours", "Nearest neighbours", shown),
        ("pairs", "Most and least similar pairs", shown),
        ("views", "Pairs of views, as the encoder saw them", shown),
    ]
    data = {
        "runs": [
            {"name": name, "chance": chance(run), "curves": curve}
            for name, run, curve in zip(names, runs, curves, strict=True)
        ],
        "known": KNOWN,
        "histograms": HISTOGRAMS,
        "maps": [gallery.map if isinstance(gallery, Gallery) else None for gallery in galleries],
    }
    shown_sections = [section for section in sections if section[2] or section[0] == "curves"]
    return render(names, shown_sections, data, _SCRIPTS)


def render(names: list[str], sections: list[tuple[str, str, Any]], data: dict[str, Any], scripts: Iterable[str]) -> str:
    """A page as HTML.

    Args:
        names: of the runs.
        sections: of each its key, which is the name of its template, its title and its content.
        data: what the scripts read.
        scripts: of `web/`, in the order in which they run.
    """
    script = "\n".join((_HERE / "web" / f"{name}.js").read_text() for name in scripts)
    return _TEMPLATES.get_template("page.html").render(
        names=names,
        sections=sections,
        signs=SEVERITIES,
        style=Markup((_HERE / "web" / "page.css").read_text()),
        data=Markup(as_json(data)),
        script=Markup(script),
        # Nothing else may run or be fetched.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def as_json(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def run_names(runs: list[Run]) -> list[str]:
    """The folders' names; where two are the same, their paths."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
