"""The experiments of the paper as grids of runs: what is missing is run, and a page says what shows."""

from moco.reproduce.experiments import EXPERIMENTS, Experiment, Scale
from moco.reproduce.findings import by_cell
from moco.reproduce.grid import Estimate, Job, estimate, plan, run_missing, sources
from moco.reproduce.page import write_page

__all__ = [
    "EXPERIMENTS",
    "Estimate",
    "Experiment",
    "Job",
    "Scale",
    "by_cell",
    "estimate",
    "plan",
    "run_missing",
    "sources",
    "write_page",
]
