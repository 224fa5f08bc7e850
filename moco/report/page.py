"""The page that a person reads after a run: one file, which needs nothing else and no network."""

import base64
import hashlib
import json
from pathlib import Path
from string import Template
from typing import Any

from moco.report.exhibits import images
from moco.report.gallery import Gallery
from moco.report.html import Html, joined, tag
from moco.report.metrics import HISTOGRAMS, KNOWN, chance, read_curves
from moco.report.sections import findings, numbers, results, what_was_run
from moco.runs.folder import Run
from moco.runtime.files import write_whole

_WEB = Path(__file__).parent / "web"
_SCRIPTS = ("page", "histogram", "curves", "canvas", "map")


def write_page(runs: list[Run], galleries: list[Gallery | str], path: Path) -> None:
    """Writes the page of some runs whole or not at all.

    Args:
        galleries: of each run, or why there is none.
    """
    page = build_page(runs, galleries).encode()
    write_whole(path, lambda file: file.write(page))


def build_page(runs: list[Run], galleries: list[Gallery | str]) -> str:
    """The page of some runs, as HTML."""
    names = run_names(runs)
    curves = [read_curves(run) for run in runs]
    parts = [
        ("runs", "What was run", what_was_run(runs, names, curves)),
        ("findings", "The doctor's findings", findings(runs, names)),
        ("results", "How good the features are", results(runs, names, curves)),
        ("curves", "Curves", joined(Html('<div id="panels"></div>'), numbers(names, curves))),
        *images(names, galleries),
    ]
    shown = [part for part in parts if part[2]]
    sections = [
        tag("section", tag("h2", title, id=f"{key}-title"), body, id=key, aria_labelledby=f"{key}-title")
        for key, title, body in shown
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
    script = "\n".join((_WEB / f"{name}.js").read_text() for name in _SCRIPTS)
    return Template((_WEB / "page.html").read_text()).substitute(
        title=tag("title", f"{', '.join(names)} - moco report"),
        # Nothing else may run or be fetched, whatever a run's folder holds.
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=(_WEB / "page.css").read_text(),
        heading=tag("h1", ", ".join(names)),
        links=joined(*(tag("a", key.capitalize(), href=f"#{key}") for key, *_ in shown)),
        body=joined(*sections),
        data=as_json(data),
        script=script,
    )


def as_json(data: Any) -> str:
    """JSON that may stand in a script element: nothing in it ends the element."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def run_names(runs: list[Run]) -> list[str]:
    """The folders' names; where two are the same, their paths."""
    names = [run.path.resolve().name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]
