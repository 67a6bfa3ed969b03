"""The identity that a joining worker is held to."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from es_service import __version__
from es_service.build import identity
from es_service.errors import BackendError

ROOT = Path(__file__).parents[2]


def identity_of(folder):
    code = "from es_service.build import identity; print(identity())"
    command = [sys.executable, "-S", "-c", code]  # without site-packages: an editable install would be found first
    return subprocess.run(command, cwd=folder, env={}, capture_output=True, text=True, check=True)


def test_the_same_files_elsewhere_are_the_same_build_and_any_change_is_another(tmp_path):
    for package in ("es_service", "workers"):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=ignored)
    assert identity_of(tmp_path).stdout.strip() == identity()
    assert identity().startswith(f"{__version__} (build ")
    for changed in ("workers/votes.py", "es_service/runs/extra.toml", "workers/ops/cuda/extra.cu"):
        before = identity_of(tmp_path).stdout
        (tmp_path / changed).write_text("# another\n")
        assert identity_of(tmp_path).stdout != before, changed


def test_a_worker_with_other_code_refuses_and_names_the_remedy():
    from workers.actor import WorkerActor

    worker = WorkerActor("{}", f"{__version__} (build 000000000000)", None, "run", "worker-1")
    with pytest.raises(BackendError, match=r"build 000000000000.*make wheel") as refused:
        worker.start()
    assert identity() in str(refused.value)
