"""The wheel holds all that the program needs."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_runs_without_the_repository(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w"]
    subprocess.run([*command, str(tmp_path), str(ROOT)], check=True, timeout=120, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith("momentum_contrast-")
    site, run = tmp_path / "site", tmp_path / "run"
    zipfile.ZipFile(wheel).extractall(site)
    packed = {str(path.relative_to(site)) for path in (site / "moco").rglob("*") if path.is_file()}
    tracked = subprocess.run(["git", "ls-files", "moco"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert packed == {path for path in tracked.split() if not path.startswith("moco/weights/cifar10-cpu.")}

    def moco(words: str, code: int = 0) -> str:
        environment = {**os.environ, "PYTHONPATH": str(site)}
        command = [sys.executable, "-m", "moco", *words.split()]
        done = subprocess.run(command, timeout=200, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        assert done.returncode == code, done.stderr
        return done.stderr

    data = "--per-class 30 --batch-size 64 --bn-group 16 --image-size 16 --epochs 1 --knn-every 0 --monitor-every 0"
    moco(f"pretrain shapes-cpu {data} --out {run}")
    moco(f"report {run} --points 100")  # its templates and scripts come from the wheel
    assert "<html" in (run / "report.html").read_text()
    moco("export shapes-cpu --to safetensors")  # one of the encoders comes along
    assert (tmp_path / "shapes-cpu.safetensors").exists()
    assert "cifar10-cpu: does not come with this installation" in moco("export cifar10-cpu --to safetensors", code=2)
