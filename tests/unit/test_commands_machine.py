"""verify, presets, doctor, and help."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from es_service import cli, wiring
from es_service.commands import doctor, presets
from es_service.config import PRESETS, load, preset_names
from es_service.errors import BackendError

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.npz"))
SMALL = ROOT / "tests" / "golden" / "pub_d64_l2.npz"
REFERENCE = ("--backend", "reference")
RUNS = ["train", "resume", "scale", "stop", "status", "journal", "replay", "plot"]
COMMANDS = [
    *RUNS, "dashboard", "fetch", "export", "steps", "from-steps", "sample", "eval", "verify", "presets", "doctor",
]  # fmt: skip


# verify


def _altered(tmp_path, **changes):
    with np.load(SMALL) as file:
        arrays = dict(file)
    for name, change in changes.items():
        name = name.replace("__", "/")
        arrays[name] = change(arrays[name].copy())
    path = tmp_path / "altered.npz"
    np.savez(path, **arrays)
    return path


def test_the_shipped_vectors_are_those_of_the_tests():
    with wiring.shipped_vectors() as shipped:
        assert [path.name for path in shipped] == [path.name for path in GOLDEN]
        assert [path.read_bytes() for path in shipped] == [path.read_bytes() for path in GOLDEN]


def test_verify_of_a_file_is_exact_and_names_the_kernels(es):
    outcome = es("verify", *REFERENCE, SMALL)
    assert outcome.code == 0
    assert outcome.out.splitlines() == ["kernels: reference: as the config says", f"{SMALL}: exact"]


def test_verify_takes_the_shipped_vectors_by_default(es, monkeypatch):
    seen = []
    fake = namedtuple("Golden", "read compare")(lambda path: seen.append(path.name), lambda golden, ops: None)
    monkeypatch.setattr("es_service.commands.verify.golden", lambda: fake)
    assert es("verify", *REFERENCE).out.count(": exact") == len(GOLDEN)
    assert seen == [path.name for path in GOLDEN]


def test_verify_names_the_first_difference(es, tmp_path):
    def other(array):
        array[3] += 1
        return array

    path = _altered(tmp_path, scores=other)
    outcome = es("verify", *REFERENCE, path, SMALL)
    assert outcome.code == 1
    assert outcome.out.splitlines()[1].startswith(f"{path}: scores[3]: recorded ")
    assert outcome.out.splitlines()[2] == f"{SMALL}: exact"


def _npy(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


DAMAGE = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "text": lambda path: path.write_text("hello"),
    "cut": lambda path: path.write_bytes(SMALL.read_bytes()[:5000]),
    "flipped": lambda path: path.write_bytes(SMALL.read_bytes()[:9000] + bytes(500) + SMALL.read_bytes()[9500:]),
    "folder": lambda path: path.mkdir(),
    "npy": _npy,
    "other arrays": lambda path: np.savez(path, a=np.zeros(3)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_of_an_unreadable_file_goes_on_and_fails(es, tmp_path, damage):
    path = tmp_path / "odd.npz"
    DAMAGE[damage](path)
    outcome = es("verify", *REFERENCE, path, SMALL)
    assert outcome.code == 2
    assert f"error: {path}" in outcome.err
    assert f"{SMALL}: exact" in outcome.out


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": lambda array: array[:3]},
        {"tokens": lambda array: array[:, :1]},
        {"tokens": lambda array: array[:2]},
        {"state_in": lambda array: array[:, :1]},
        {"fitness": lambda array: array[:1]},
        {"config": lambda array: array[:4]},
        {"param__emb": lambda array: array[:7]},
    ],
)
def test_verify_of_arrays_that_do_not_go_together(es, tmp_path, changes):
    path = _altered(tmp_path, **changes)
    outcome = es("verify", *REFERENCE, path)
    assert outcome.code in (1, 2)
    assert str(path) in (outcome.err if outcome.code == 2 else outcome.out)


def test_verify_with_a_backend_that_is_none(es):
    outcome = es("verify", "--backend", "abacus")
    assert outcome.code == 2
    assert "abacus" in outcome.err


# presets


def test_presets_are_these_and_are_sound(es):
    egg = ["egg-laptop", "egg-minipile", "egg-minipile-v2", "egg-smoke"]
    assert preset_names() == [*egg, "noise-step-digits", "noise-step-mnist", "noise-step-text"]
    out = es("presets").out
    for name in preset_names():
        assert (PRESETS / f"{name}.toml").read_text().startswith("# ")
        assert presets.about(name) in out
        config = load(name)
        assert f"{config.population:,}" in out
    smoke = load("egg-smoke")
    assert smoke.population >= 640
    assert smoke.population // 2 % 5 == 0
    assert load("egg-minipile").population == 262_144
    assert (load("egg-minipile-v2").population, load("egg-minipile-v2").feeding.sequences) == (1_048_576, 16)


# doctor


def test_doctor_says_what_is_here_and_never_fails(es):
    outcome = es("doctor")
    assert outcome.code == 0
    for name in ("cpu", "memory", "gpu", "backend", "ray", "runs", "cache", "corpora", "versions"):
        assert f" {name} " in outcome.out
    assert "auto takes" in outcome.out


def test_doctor_as_json(es):
    found = es("doctor", "--json").json
    assert {finding["state"] for finding in found} <= {"ok", "warn"}
    assert all(finding["remedy"] for finding in found if finding["state"] == "warn")
    corpora = next(finding for finding in found if finding["name"] == "corpora")
    assert corpora["text"].startswith("files ")


def test_doctor_without_a_backend_warns_with_a_remedy(es, monkeypatch):
    def none(backend):
        raise BackendError("no backend can run here")

    monkeypatch.setattr(doctor, "kernels", none)
    outcome = es("doctor")
    assert outcome.code == 0
    assert "warn  backend" in outcome.out


@pytest.mark.parametrize(("cupy", "state"), [(None, "warn"), (object(), "ok")])
def test_doctor_sees_a_gpu_and_whether_it_can_be_used(monkeypatch, tmp_path, cupy, state):
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB'\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(doctor.util, "find_spec", lambda name: cupy)
    found = doctor._gpu()
    assert (found.state, "H100" in found.text) == (state, True)


def test_doctor_warns_of_a_damaged_corpus_and_of_open_ray(monkeypatch, tmp_path):
    folder = tmp_path / "corpora" / "x"
    folder.mkdir(parents=True)
    (folder / "corpus.json").write_text("{")
    assert doctor._corpora(tmp_path).state == "warn"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert doctor._ray().state == "warn"


def test_doctor_of_a_full_or_closed_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(5))
    assert doctor._disk("runs", tmp_path / "not" / "yet", "--runs-dir").state == "warn"
    monkeypatch.setattr(doctor.os, "access", lambda path, mode: False)
    assert "cannot be written" in doctor._disk("runs", tmp_path, "--runs-dir").text


# help


def test_help_imports_nothing_heavy():
    """Every help page, in one fresh interpreter."""
    script = f"""
import sys
from es_service.cli import main
for words in [["--help"], ["--version"], *([command, "--help"] for command in {COMMANDS})]:
    try:
        main(words)
    except SystemExit as end:
        assert end.code == 0, words
heavy = {{"ray", "numpy", "torch", "pydantic", "rich", "safetensors", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("examples:") == len(COMMANDS)
    assert "exit codes:" in done.stdout


def test_every_command_has_its_module_and_its_page():
    parser = cli.build_parser()
    names = list(parser._subparsers._group_actions[0].choices)
    assert sorted(names) == sorted(COMMANDS)
    page = (ROOT / "docs" / "cli.md").read_text()
    for name in names:
        assert f"## {name}" in page
        module = __import__(f"es_service.commands.{name.replace('-', '_')}", fromlist=["run"])
        assert callable(module.run)


def test_every_option_is_on_the_page_of_commands():
    page = (ROOT / "docs" / "cli.md").read_text()
    subparsers = cli.build_parser()._subparsers._group_actions[0].choices
    actions = [action for parser in subparsers.values() for action in parser._actions]
    options = {option for action in actions for option in action.option_strings}
    missing = [option for option in sorted(options - {"-h", "--help"}) if f"`{option}" not in page]
    assert not missing
