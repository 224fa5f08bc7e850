"""Waiting threads give way, unless the user has decided otherwise."""

import os
import subprocess
import sys

import pytest

from moco.runtime.cores import wait_briefly


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "10000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None)]
)
def test_what_the_user_has_set_stays(monkeypatch, given, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_the_command_line_decides_before_pytorch_is_imported():
    code = """
import os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
from moco.cli import main
def dispatch(words):
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules)
main._dispatch = dispatch
main.main(["recipes"])
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.stdout == "10000 False\n", ended.stderr
