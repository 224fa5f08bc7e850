"""The experiments of the paper as grids of runs: runs what is missing, and writes a page of the results."""

from moco.reproduce.experiment import Experiment, Scale
from moco.reproduce.experiments import EXPERIMENTS
from moco.reproduce.grid import Job, plan, results_of, run_missing, sources
from moco.reproduce.page import write_page, write_varied

__all__ = [
    "EXPERIMENTS",
    "Experiment",
    "Job",
    "Scale",
    "plan",
    "results_of",
    "run_missing",
    "sources",
    "write_page",
    "write_varied",
]
