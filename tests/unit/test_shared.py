"""Parameters in shared memory: two slots, room made at once, a fallback beside the run."""

import subprocess
import sys

import numpy as np
import pytest

from es_service import shared
from es_service.shared import SharedParameters, read_shared


def test_the_two_newest_generations_can_be_read(tmp_path):
    parameters = SharedParameters(tmp_path, 100)
    versions = [np.full(100, g, np.int8) for g in range(4)]
    for generation, version in enumerate(versions):
        parameters.publish(generation, version)
    assert np.array_equal(read_shared(parameters.path, 3, 100), versions[3])
    assert np.array_equal(read_shared(parameters.path, 2, 100), versions[2])
    parameters.close()
    with pytest.raises(OSError, match=r"parameters"):
        read_shared(parameters.path, 3, 100)


def test_without_room_in_memory_the_file_is_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_MEMORY", tmp_path / "nowhere")
    parameters = SharedParameters(tmp_path, 10)
    assert parameters.path.parent == tmp_path
    assert parameters.path.stat().st_size == 20
    parameters.close()
    assert not list(tmp_path.iterdir())


def test_what_a_killed_head_left_is_removed_and_what_a_living_one_uses_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "_MEMORY", tmp_path)
    code = (
        "import os, sys; from pathlib import Path; from es_service import shared\n"
        "shared._MEMORY = Path(sys.argv[1]); shared.SharedParameters(Path('killed'), 10); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    (left,) = tmp_path.glob("*.parameters")
    living = SharedParameters(tmp_path / "living", 10)
    assert not left.exists()
    other = SharedParameters(tmp_path / "other", 10)
    assert sorted(tmp_path.iterdir()) == sorted([living.path, other.path])
    living.close()
    other.close()
    assert not list(tmp_path.iterdir())
