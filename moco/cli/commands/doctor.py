"""moco doctor: what a run's records show."""

from rich.console import Console
from rich.markup import escape

from moco.cli.options import Doctor
from moco.diagnosis.doctor import SEVERITIES, diagnose, write_findings
from moco.runs.folder import Run
from moco.runtime.errors import UserError, one_line

COLOURS = {"problem": "red", "warning": "yellow", "note": "cyan", "good": "green"}


def run(options: Doctor) -> None:
    """Prints what a run's records show; leaves with exit code 1 if there is a problem."""
    folder = options.run
    console = Console(highlight=False)
    run = Run.open(folder)
    findings = diagnose(run)
    if not findings:
        raise UserError(f"{folder}: nothing is recorded yet: wait for the first steps in metrics.jsonl")
    for finding in findings:
        sign, colour = SEVERITIES[finding.severity], COLOURS[finding.severity]
        console.print(f"[{colour}]{sign} {finding.name}[/]: {escape(finding.text)}")
        console.print(f"    evidence  {finding.evidence}\n    advice    {finding.advice}", markup=False)
        console.print(f"    source    {finding.source}\n", markup=False, style="dim")
    try:
        write_findings(run, findings)
    except UserError as error:  # somebody else's run
        console.print(f"not written: {one_line(error)}", markup=False, style="dim")
    if any(finding.severity == "problem" for finding in findings):
        raise SystemExit(1)
