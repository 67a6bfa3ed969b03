"""export, sample, eval, plot, on a run and on an exported file."""

from __future__ import annotations

import builtins
import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from es_service import noise
from es_service.commands import plot
from es_service.data import Baselines
from es_service.errors import ConfigError
from es_service.journal import MAGIC, encode, scan
from es_service.keyframes import save_model
from es_service.models import egg
from es_service.models.sampling import generate, visible
from es_service.problem import layout_of
from es_service.types import EggShape
from workers.ops.reference import ReferenceOps

REFERENCE = ("--backend", "reference")
SHAPE = EggShape(16, 1, 4)
OPS = ReferenceOps()


@pytest.fixture(scope="module")
def parameters():
    return egg.initial_parameters(egg.layout(16, 1), 5)


@pytest.fixture
def exported(es, tmp_path):
    path = tmp_path / "model.safetensors"
    assert es("export", "done", "--out", path, *REFERENCE).code == 0
    return path


# export


def test_export_holds_the_model_and_where_it_comes_from(es, exported, finished_run):
    config = finished_run.directory.read_config()
    with safe_open(exported, "np") as file:
        metadata = file.metadata()
        assert set(file.keys()) == {tensor.name for tensor in layout_of(config).tensors}
        with safe_open(finished_run.directory.keyframes_path / "6.safetensors", "np") as keyframe:
            for name in keyframe.keys():  # noqa: SIM118
                assert np.array_equal(file.get_tensor(name), keyframe.get_tensor(name))
    assert metadata["spec_hash"] == config.spec_hash
    assert metadata["digest"] == es("journal", "done", "--json").json["last_digest"]["digest"]
    assert (metadata["generation"], metadata["format_version"]) == ("6", "1")
    assert json.loads(metadata["config"])["model"]["width"] == 16
    assert str(finished_run.runs_dir) not in metadata["config"]


def test_export_of_a_generation_and_what_it_prints(es, tmp_path):
    outcome = es("export", "done", "--out", tmp_path / "m.safetensors", "--generation", 3, *REFERENCE)
    assert outcome.code == 0
    assert "generation 3 of done, digest" in outcome.out


def test_equal_exports_are_equal_files(es, exported, tmp_path):
    es("export", "done", "--out", tmp_path / "again.safetensors", *REFERENCE)
    assert (tmp_path / "again.safetensors").read_bytes() == exported.read_bytes()


@pytest.mark.parametrize("generation", [-1, 7])
def test_export_of_a_generation_that_is_not_there(es, tmp_path, generation):
    outcome = es("export", "done", "--out", tmp_path / "m.safetensors", "--generation", generation)
    assert outcome.code == 2
    assert "--generation: the run has no generation" in outcome.err
    assert not list(tmp_path.iterdir())


def test_export_into_a_missing_directory(es, tmp_path):
    outcome = es("export", "done", "--out", tmp_path / "no" / "m.safetensors")
    assert outcome.code == 2
    assert "--out: there is no directory" in outcome.err
    assert es("export", "done", "--out", tmp_path).code == 2


# FILE


def test_a_file_that_is_no_model_is_refused(es, tmp_path):
    path = tmp_path / "text.safetensors"
    path.write_text("hello")
    for command in ("sample", "eval"):
        outcome = es(command, path, *REFERENCE)
        assert outcome.code == 3
        assert f"{path}: not a whole safetensors file" in outcome.err
    outcome = es("sample", tmp_path / "missing.safetensors")
    assert outcome.code == 3
    assert "cannot be read" in outcome.err


def test_a_keyframe_is_no_export(es, finished_run):
    outcome = es("sample", finished_run.directory.keyframes_path / "6.safetensors", *REFERENCE)
    assert outcome.code == 3
    assert "es-service export" in outcome.err


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("digest", "0" * 16, "damaged"),
        ("digest", "xyz", "metadata cannot be used"),
        ("spec_hash", "0" * 64, "spec_hash is"),
        ("format_version", "9", "format_version is '9'"),
        ("config", "{}", "metadata cannot be used"),
        ("config", "not json", "metadata cannot be used"),
        ("generation", "many", "metadata cannot be used"),
    ],
)
def test_an_export_with_other_metadata_is_refused(es, exported, finished_run, key, value, message):
    with safe_open(exported, "np") as file:
        metadata = file.metadata()
        layout = layout_of(finished_run.directory.read_config())
        flat_P = np.concatenate([file.get_tensor(tensor.name).reshape(-1) for tensor in layout.tensors])
    save_model(exported, layout, flat_P, metadata | {key: value})
    outcome = es("sample", exported, *REFERENCE)
    assert outcome.code == 3
    assert message in outcome.err


# sample


def test_sample_is_the_same_from_the_run_and_from_the_export(es, exported):
    options = ("--prompt", "def ", "--bytes", 40, "--seed", 3, *REFERENCE)
    first = es("sample", "done", *options)
    assert first.code == 0
    assert first.out.startswith("def ")
    assert es("sample", exported, *options).out == first.out
    assert es("sample", "done", *options[:-4], "--seed", 4, *REFERENCE).out != first.out


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--bytes", -1),
        ("--temperature", -0.5),
        ("--temperature", "nan"),
        ("--temperature", "inf"),
        ("--seed", -1),
        ("--seed", 1 << 64),
    ],
)
def test_sample_refuses_values_that_make_no_sense(es, option, value):
    outcome = es("sample", "done", f"{option}={value}", *REFERENCE)
    assert outcome.code == 2
    assert f"error: {option}: " in outcome.err


def test_the_state_is_carried_and_the_prompt_follows_a_byte_0(parameters):
    """Temperature 0 against the plain forward pass over everything so far."""
    text = generate(OPS, SHAPE, parameters, b"ab", 6, 0, 1)
    model, state = OPS.prepare(SHAPE, parameters), np.zeros((1, 1, 16), np.int8)
    best = [int(OPS.logits(model, np.array([byte], np.uint8), state)[0].argmax()) for byte in b"\0ab" + text]
    assert list(text) == best[2:-1]


def test_a_byte_is_drawn_as_documented(parameters):
    """Floating-point inverse of the distribution, with the uniform number of noise stream 7."""
    text = generate(OPS, SHAPE, parameters, b"", 50, 0.8, 9)
    model, state = OPS.prepare(SHAPE, parameters), np.zeros((1, 1, 16), np.int8)
    for position, byte in enumerate(text):
        before = b"\0" if position == 0 else text[position - 1 : position]
        logits_V = OPS.logits(model, np.frombuffer(before, np.uint8), state)[0].astype(float)
        weights_V = 2 ** (logits_V / (16 * 0.8))
        uniform = int.from_bytes(noise.uniform_bytes(9, 0, noise.Stream.SAMPLING, 0, position, 8).tobytes(), "little")
        expected = np.searchsorted(np.cumsum(weights_V) / weights_V.sum(), uniform / 2**64, side="right")
        assert byte == expected


class _Fixed:
    """Kernels whose logits never change."""

    def __init__(self, logits_V):
        self.logits_SV = logits_V[None]

    def prepare(self, shape, parameters_P):
        return None

    def logits(self, model, tokens_S, state_SLD):
        return self.logits_SV


def test_frequencies_are_two_to_the_logit():
    logits_V = np.full(256, -127, np.int8)
    logits_V[[3, 7, 9]] = 100, 116, 84
    text = generate(_Fixed(logits_V), SHAPE, None, b"", 7000, 1.0, 1)
    counts = np.bincount(np.frombuffer(text, np.uint8), minlength=256)
    assert counts[[7, 3, 9]] / 7000 == pytest.approx([4 / 7, 2 / 7, 1 / 7], abs=4 * math.sqrt(0.25 / 7000))


def test_temperature_0_takes_the_lowest_of_equals():
    logits_V = np.zeros(256, np.int8)
    logits_V[[200, 40]] = 5
    assert generate(_Fixed(logits_V), SHAPE, None, b"", 3, 0, 1) == bytes([40] * 3)


@given(st.floats(0, exclude_min=True, allow_infinity=False), st.integers(0, (1 << 64) - 1))
@settings(max_examples=50, deadline=None)
def test_any_temperature_and_seed_gives_bytes(temperature, seed):
    logits_V = np.arange(-128, 128).clip(-127).astype(np.int8)
    assert len(generate(_Fixed(logits_V), SHAPE, None, b"x", 3, temperature, seed)) == 3


def test_a_longer_sample_begins_with_the_shorter_one(parameters):
    short = generate(OPS, SHAPE, parameters, b"q", 5, 1.0, 2)
    assert generate(OPS, SHAPE, parameters, b"q", 9, 1.0, 2)[:5] == short
    assert generate(OPS, SHAPE, parameters, b"q", 0, 1.0, 2) == b""
    with pytest.raises(ConfigError, match="--bytes"):
        generate(OPS, SHAPE, parameters, b"q", -1, 1.0, 2)


def test_nothing_that_is_printed_disturbs_a_terminal():
    assert visible(b"a\tb\n") == "a\tb\n"
    assert visible(b"\x1b[2J\r\x00\x7f") == "␛[2J␍␀␡"
    assert visible("\u202e\u2028\x9b\u00e9".encode() + b"\xff") == "���é�"


# eval


def test_eval_gives_the_figure_that_the_run_reported(es, finished_run, exported):
    rows = {r["generation"]: r["bits_per_byte"] for r in finished_run.directory.metrics() if r["kind"] == "evaluation"}
    for generation, reported in rows.items():
        values = es("eval", "done", "--generation", generation, "--json", *REFERENCE).json
        assert values["bits_per_byte"] == values["reported"] == reported
    assert sorted(rows) == [0, 3, 6]
    values = es("eval", exported, "--json", *REFERENCE).json
    assert (values["bits_per_byte"], values["reported"], values["generation"]) == (rows[6], None, 6)
    assert 0 < values["bigram"] < values["unigram"] < 8
    assert values["gzip"] > 0


def test_eval_as_text_names_baselines_and_the_bias(es):
    out = es("eval", "done", *REFERENCE).out
    for word in ("unigram", "bigram", "gzip", "the run reported", "0.03 bits/byte low"):
        assert word in out


def test_eval_of_files_scores_every_byte_once(es, exported, tmp_path, finished_run):
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("import os\nprint(os.name)\n")
    second.write_text("class A: pass\n")
    values = es("eval", exported, "--data", first, second, "--json", *REFERENCE).json
    text = b"\0" + first.read_bytes() + b"\0" + second.read_bytes()
    assert values["scored_bytes"] == len(text) - 1
    config = finished_run.directory.read_config()
    with safe_open(exported, "np") as file:
        flat_P = np.concatenate([file.get_tensor(t.name).reshape(-1) for t in layout_of(config).tensors])
    model = OPS.prepare(EggShape(16, 2, 4), flat_P)
    rows = [np.frombuffer(text[i : i + 9], np.uint8)[None] for i in range(0, len(text) - 1, 8)]
    total = sum(int(OPS.scores(model, row, 0)[0]) for row in rows)
    assert values["bits_per_byte"] == round(-total / 16 / (len(text) - 1), 6)
    assert values["gzip"] == pytest.approx(8 * len(gzip.compress(text, 9)) / len(text))
    assert values["unigram"] is not None


def test_eval_of_files_works_without_the_training_text(es, exported, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("print(1)\n")
    options = ("eval", exported, "--data", tmp_path / "a.txt", *REFERENCE)
    monkeypatch.setenv("ES_SERVICE_CACHE", str(tmp_path / "empty"))
    outcome = es(*options)
    assert outcome.code == 0
    assert "not in this machine's cache" in outcome.out
    assert es(*options, "--json").json["unigram"] is None


def test_eval_of_text_that_is_not_there(es, tmp_path):
    outcome = es("eval", "done", "--data", tmp_path / "none.txt")
    assert outcome.code == 2
    assert "--data: there is no file or folder" in outcome.err
    (tmp_path / "empty.txt").touch()
    assert "there is no UTF-8 text" in es("eval", "done", "--data", tmp_path / "empty.txt").err


def test_eval_of_a_generation_of_a_file_is_refused(es, exported):
    outcome = es("eval", exported, "--generation", 3, *REFERENCE)
    assert outcome.code == 2
    assert "--generation" in outcome.err
    assert es("eval", "done", "--generation", 7, *REFERENCE).code == 2


# plot


def test_plot_writes_a_png_beside_the_run_or_where_it_is_told(es, run_copy, tmp_path):
    outcome = es("plot", "done", at=run_copy)
    assert outcome.code == 0
    assert outcome.out.strip() == str(run_copy.directory.path / "loss.png")
    assert (run_copy.directory.path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert es("plot", "done", "--out", tmp_path / "other.png", at=run_copy).code == 0
    assert (tmp_path / "other.png").exists()
    assert es("plot", "done", "--out", tmp_path / "no" / "other.png", at=run_copy).code == 2


def test_plot_without_the_corpus_leaves_the_baselines_out(es, run_copy, tmp_path, monkeypatch):
    monkeypatch.setenv("ES_SERVICE_CACHE", str(tmp_path / "empty"))
    outcome = es("plot", "done", at=run_copy)
    assert outcome.code == 0
    assert "without baselines" in outcome.err


def test_plot_of_a_run_before_its_first_commit(run_copy):
    directory, config = run_copy.directory, run_copy.directory.read_config()
    directory.journal_path.write_bytes(MAGIC + encode(scan(directory.journal_path).header))
    directory.metrics_path.unlink()
    assert plot.draw(directory, config, Baselines(4.7, 3.5, 2.1), directory.path / "x.png").stat().st_size > 10_000


def test_plot_without_matplotlib_says_how_to_install_it(es, run_copy, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError("No module named 'matplotlib'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    outcome = es("plot", "done", at=run_copy)
    assert outcome.code == 2
    assert "pip install 'es-service[plot]'" in outcome.err


def test_labels_of_near_baselines_do_not_cover_each_other():
    assert plot._spread([2.0, 2.1, 5.0], 0.5) == [2.0, 2.5, 5.0]
