"""The Makefile: what a first run installs, and that a wheel is for the Python that was asked for."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path):
    """Runs `make` in a folder that holds the targets' prerequisites and nothing else."""
    for name in ("pyproject.toml", "constraints.txt", "CMakeLists.txt"):
        (tmp_path / name).touch()
    (tmp_path / "workers/ops/native").mkdir(parents=True)

    def run(*words):
        command = ["make", "-f", ROOT / "Makefile", *words]
        environment = {"PATH": os.environ["PATH"]}
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize(("target", "extras"), [("train", "plot"), ("local-cluster", "plot"), ("test", "dev")])
def test_only_the_tests_need_what_the_tests_need(make, target, extras):
    installs = [line for line in make("--dry-run", target).stdout.splitlines() if "pip install" in line]
    assert len(installs) == 1
    assert installs[0].endswith(f"--constraint constraints.txt --editable '.[{extras}]'")


def test_a_wheel_for_another_python_than_was_asked_for_is_refused(make, tmp_path):
    venv = tmp_path / "venv" / "bin"
    venv.mkdir(parents=True)
    (venv / "python").write_text("#!/bin/sh\necho Python 3.99.0\n")
    (venv / "pip").write_text("#!/bin/sh\necho built\n")
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "setup.sh").touch()
    for name in ("python", "pip"):
        (venv / name).chmod(0o755)
    later = time.time() + 60
    (venv.parent / "trains").touch()
    os.utime(venv.parent / "trains", (later, later))
    refused = make("wheel", f"PYTHON={sys.executable}", "VENV=venv")
    assert refused.returncode == 2
    assert "venv has Python 3.99.0" in refused.stdout
    assert not (tmp_path / "dist").exists()
    assert "built" in make("wheel", "VENV=venv").stdout
