"""steps and from-steps, on the finished run and on egg-smoke."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from es_service import steps
from es_service.directory import RunDirectory
from es_service.journal import scan

REFERENCE = ("--backend", "reference")


@pytest.fixture
def file(es, tmp_path):
    path = tmp_path / "model.steps"
    assert es("steps", "done", "--out", path, *REFERENCE).code == 0
    return path


def test_steps_say_what_they_take(es, tmp_path, finished_run):
    path = tmp_path / "model.steps"
    outcome = es("steps", "done", "--out", path, *REFERENCE)
    assert outcome.code == 0
    rows = {line.split("  ")[0]: line for line in outcome.out.splitlines()[2:]}
    assert list(rows) == ["entropy", "coded votes", "scores", "all else", "file"]
    assert f"{path.stat().st_size:,}" in rows["file"]
    assert "60 votes" in rows["coded votes"]
    found, contents = steps.scan(path), scan(finished_run.directory.journal_path)
    assert found.header.generations == len(contents.commits) == 6
    assert found.header.digest == contents.close.digest
    assert (
        sum(block.code_bytes for block in found.blocks) + sum(block.score_bytes for block in found.blocks) < found.bytes
    )


def test_equal_runs_give_equal_files(es, file, tmp_path, run_copy):
    assert es("steps", "done", "--out", tmp_path / "again.steps", *REFERENCE, at=run_copy).code == 0
    assert (tmp_path / "again.steps").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("generation", [0, 3, None])
def test_the_model_is_the_file_that_export_writes(es, file, tmp_path, generation):
    where = [] if generation is None else ["--generation", generation]
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert es("export", "done", "--out", first, *where, *REFERENCE).code == 0
    outcome = es("from-steps", file, "--out", second, *where, *REFERENCE)
    assert outcome.code == 0
    assert f"generation {6 if generation is None else generation}, digest" in outcome.out
    assert first.read_bytes() == second.read_bytes()


def test_a_tensor_and_rows_of_it(es, file, tmp_path):
    whole, part = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    es("export", "done", "--out", whole, "--generation", 4, *REFERENCE)
    for options, expected in (
        (["--tensor", "blocks.1.mlp.0"], load_file(whole)["blocks.1.mlp.0"]),
        (["--tensor", "blocks.1.mlp.0", "--rows", "7:40"], load_file(whole)["blocks.1.mlp.0"][7:40]),
        (["--tensor", "ln_out", "--rows", "3:4"], load_file(whole)["ln_out"][3:4]),
    ):
        assert es("from-steps", file, "--out", part, "--generation", 4, *options, *REFERENCE).code == 0
        found = load_file(part)
        assert list(found) == [options[1]]
        assert np.array_equal(found[options[1]], expected)
    with safe_open(part, "np") as opened:
        assert (opened.metadata()["generation"], opened.metadata()["rows"]) == ("4", "3:4")


def test_a_run_of_them_goes_on_as_the_original_did(es, file, tmp_path, finished_run, run_copy):
    outcome = es("from-steps", file, "--resume-as", "again", "--generation", 4, *REFERENCE, at=run_copy)
    assert outcome.code == 0
    assert f"es-service resume again --runs-dir {run_copy.runs_dir}" in outcome.out
    original, directory = finished_run.directory.journal_path, RunDirectory(run_copy.runs_dir, "again")
    made = directory.journal_path.read_bytes()
    assert original.read_bytes()[: len(made)] == made
    assert es("journal", "again", "--json", at=run_copy).json["commits"] == 4
    verified = es("replay", "again", "--verify", *REFERENCE, at=run_copy)
    assert verified.code == 0
    assert "4 recorded digests and 1 keyframes agree" in verified.out
    options = ("--set", "deployment.pool=local", "--set", "deployment.worker.backend=reference")
    assert es("resume", "again", *options, at=run_copy).code == 0
    assert directory.journal_path.read_bytes() == original.read_bytes()
    assert sorted(path.name for path in run_copy.runs_dir.iterdir()) == ["again", "done"]


@pytest.mark.parametrize("generation", [0, 6])
def test_a_run_of_the_first_or_the_last_generation(es, file, run_copy, generation):
    made = ("from-steps", file, "--resume-as", "again", "--generation", generation, *REFERENCE)
    assert es(*made, at=run_copy).code == 0
    assert es("status", "again", "--json", at=run_copy).json["generation"] == generation
    assert es("replay", "again", "--verify", *REFERENCE, at=run_copy).code == 0
    refused = es(*made, at=run_copy)
    assert refused.code == 3
    assert "again exists; choose another name with --resume-as" in refused.err


def test_without_scores_the_model_comes_back_and_no_run(es, file, tmp_path, run_copy):
    small = tmp_path / "small.steps"
    assert es("steps", "done", "--out", small, "--without-scores", *REFERENCE).code == 0
    assert small.stat().st_size < file.stat().st_size
    outcome = es("from-steps", small, "--resume-as", "again", *REFERENCE, at=run_copy)
    assert outcome.code == 2
    assert "has no scores" in outcome.err
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for source, out in zip((file, small), outputs, strict=True):
        assert es("from-steps", source, "--out", out, *REFERENCE).code == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--generation", 7], "--generation: the run has no generation 7; give 0 to 6"),
        (["--tensor", "tail"], "--tensor: no tensor 'tail'; the model has emb"),
        (["--rows", "0:1"], "--rows: name the tensor"),
        (["--tensor", "head", "--rows", "4:4"], "--rows: '4:4' is no A:B"),
        (["--tensor", "head", "--rows", "0:257"], "0 <= A < B <= 256"),
        (["--tensor", "head", "--rows=-1:3"], "--rows: '-1:3'"),
    ],
)
def test_what_is_not_there_is_refused(es, file, tmp_path, options, problem):
    outcome = es("from-steps", file, "--out", tmp_path / "x.safetensors", *options, *REFERENCE)
    assert outcome.code == 2
    assert problem in outcome.err
    assert not (tmp_path / "x.safetensors").exists()


def test_a_run_of_one_tensor_is_refused(es, file, run_copy):
    outcome = es("from-steps", file, "--resume-as", "again", "--tensor", "head", at=run_copy)
    assert outcome.code == 2
    assert "--tensor: a run needs all tensors" in outcome.err
    assert not (run_copy.runs_dir / "again").exists()


def test_a_damaged_file_names_the_byte(es, file, tmp_path):
    data, (block,) = bytearray(file.read_bytes()), steps.scan(file).blocks
    data[-20] ^= 4
    file.write_bytes(data)
    outcome = es("from-steps", file, "--out", tmp_path / "x.safetensors")
    assert outcome.code == 3
    assert f"model.steps, byte {block.offset}: the record's checksum" in outcome.err


def test_a_failure_leaves_no_run(es, file, run_copy, monkeypatch):
    from es_service.commands import from_steps

    def fail(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(from_steps.keyframes, "save", fail)
    outcome = es("from-steps", file, "--resume-as", "again", *REFERENCE, at=run_copy)
    assert outcome.code == 3
    assert "the run cannot be made: No space left" in outcome.err
    assert [path.name for path in run_copy.runs_dir.iterdir()] == ["done"]


LOCAL = ("--set", "deployment.pool=local", "--set", "deployment.metrics_port=-1")


def there_and_back(es, at, folder, source, generation):
    """Train, write the steps, and make of them the model as exported, and a run that ends in the same journal."""
    assert es("train", source, "--name", "first", *LOCAL, at=at).code == 0
    path, exported, rebuilt = (folder / name for name in ("s.steps", "a.safetensors", "b.safetensors"))
    assert es("steps", "first", "--out", path, at=at).code == 0
    assert es("export", "first", "--out", exported, "--generation", generation, at=at).code == 0
    assert es("from-steps", path, "--out", rebuilt, "--generation", generation).code == 0
    assert exported.read_bytes() == rebuilt.read_bytes()
    assert es("from-steps", path, "--resume-as", "second", "--generation", generation, at=at).code == 0
    assert es("resume", "second", *LOCAL, at=at).code == 0
    first, second = (RunDirectory(at.runs_dir, name).journal_path.read_bytes() for name in ("first", "second"))
    assert first == second
    return path, load_file(exported)


def test_egg_smoke_there_and_back(es, run_copy, tmp_path):
    path, model = there_and_back(es, run_copy, tmp_path, "egg-smoke", 6)
    rows = tmp_path / "rows.safetensors"
    assert es("from-steps", path, "--out", rows, "--generation", 6, "--tensor", "emb", "--rows", "99:130").code == 0
    assert np.array_equal(load_file(rows)["emb"], model["emb"][99:130])


TERNARY = """
population = 12
[model]
kind = "ternary_lm"
context = 3
embedding = 5
width = 13
[algorithm]
kind = "noise_step"
alignment = "antithetic"
density = { kind = "staged", nonzeros = [4, 2], below = [8.0] }
[data]
kind = "files"
paths = ["TEXT"]
held_out_percent = 20
[feeding]
kind = "batch"
size = 50
[deployment]
generations = 5
evaluation_rows = 8
evaluation_bytes = 8
"""


def test_a_ternary_run_there_and_back(es, run_copy, tmp_path):
    config = tmp_path / "ternary.toml"
    config.write_text(TERNARY.replace("TEXT", str(run_copy.cache.parent / "text")))
    path, model = there_and_back(es, run_copy, tmp_path, config, 3)
    assert set(np.unique(np.concatenate([values.reshape(-1) for values in model.values()]))) == {-1, 0, 1}
    rows = tmp_path / "rows.safetensors"
    options = ("--generation", 3, "--tensor", "layers.0.weight", "--rows", "2:11")
    assert es("from-steps", path, "--out", rows, *options).code == 0
    assert np.array_equal(load_file(rows)["layers.0.weight"], model["layers.0.weight"][2:11])
    for packing, a_byte in (("trits", 5), ("2bit", 4)):
        check_packed(es, run_copy, tmp_path / f"{packing}.safetensors", packing, a_byte, model)


def check_packed(es, run_copy, path, packing, a_byte, model):
    """An export of the model there_and_back made, packed: its sizes, and the same held-out figure and text."""
    assert es("export", "first", "--generation", 3, "--out", path, "--pack", packing, at=run_copy).code == 0
    packed = load_file(path)
    assert {name: values.shape for name, values in packed.items()} == {
        name: (-(-values.size // a_byte),) for name, values in model.items()
    }
    assert {values.dtype for values in packed.values()} == {np.dtype(np.uint8)}
    plain = path.with_name("plain.safetensors")
    assert es("export", "first", "--generation", 3, "--out", plain, at=run_copy).code == 0
    for command in (("eval", "--json"), ("sample", "--bytes", 20)):
        outcomes = [es(command[0], file, *command[1:], at=run_copy) for file in (plain, path)]
        assert [outcome.code for outcome in outcomes] == [0, 0]
        assert outcomes[0].out.replace(str(plain), "") == outcomes[1].out.replace(str(path), "")


def test_only_ternary_models_are_packed(es, tmp_path):
    outcome = es("export", "done", "--out", tmp_path / "m.safetensors", "--pack", "trits", *REFERENCE)
    assert outcome.code == 2
    assert "--pack: the weights of done are not ternary" in outcome.err
    assert not list(tmp_path.iterdir())
