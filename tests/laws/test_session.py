"""Bad beginnings: nothing is lost and the message says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import deployed, local, train

from es_service.directory import RunDirectory, next_name
from es_service.errors import ConfigError, DataError, JournalError, RunError
from es_service.session import open_session, with_corpus
from workers.ops.reference import ReferenceOps


@pytest.fixture(scope="module")
def run(tiny_config):
    return train(tiny_config(deployment__generations=2))


def test_a_second_run_of_the_same_name_is_refused_and_the_first_unharmed(run):
    before = {path: path.read_bytes() for path in run.directory.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="a run with this name exists; resume it with `es-service resume run-"):
        open_session(run.config, run.directory, False, ReferenceOps(), local())
    assert before == {path: path.read_bytes() for path in run.directory.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 2}, "seed is 1 in the journal and 2 in the config"),
        ({"model__width": 32}, "model.width is 16 in the journal and 32"),
        ({"segment__burn_in": 1}, "segment.burn_in is 0"),
        ({"algorithm__rank": 2}, "algorithm.rank is 1"),
        ({"data__held_out_percent": 6.0}, "data.held_out_percent is 5.0"),
    ],
)
def test_another_spec_on_resume_names_the_field(run, tiny_config, change, field):
    before = run.journal, run.directory.config_path.read_bytes()
    with pytest.raises(ConfigError, match=field):
        open_session(tiny_config(**change), run.directory, True, ReferenceOps(), local())
    assert before == (run.journal, run.directory.config_path.read_bytes())


def test_another_corpus_on_resume_is_refused(run, tiny_config, tmp_path, corpus_dir):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_text("other text " * 500)
    other = tiny_config(data__paths=[tmp_path / "train"])
    with pytest.raises(ConfigError, match=r"data.content_hash is '[0-9a-f]{64}' in the journal"):
        open_session(other, run.directory, True, ReferenceOps(), local())


def test_the_config_on_disk_starts_the_same_run(run):
    config = run.directory.read_config()
    assert config.spec == with_corpus(config)[0].spec
    assert config.spec == run.contents.header.spec


def test_a_run_in_use_is_refused(tiny_config):
    config = tiny_config(deployment__generations=2)
    directory = RunDirectory(config.deployment.runs_dir, "in-use")
    coordinator = open_session(config, directory, False, ReferenceOps(), local())
    with pytest.raises(RunError, match="the run is in use by pid"):
        open_session(config, directory, True, ReferenceOps(), local())
    coordinator.run()
    train(config, directory=directory)


def test_a_failure_to_start_gives_the_lock_back(tiny_config):
    config = tiny_config(deployment__generations=1)
    directory = RunDirectory(config.deployment.runs_dir, "failed-start")

    def no_pool(config, corpus):
        raise RunError("no workers here")

    with pytest.raises(RunError, match="no workers here"):
        open_session(config, directory, False, ReferenceOps(), no_pool)
    assert train(config, directory=directory).finish.reason == "goal"


def test_a_missing_run_is_named(tiny_config):
    directory = RunDirectory(tiny_config().deployment.runs_dir, "never-begun")
    with pytest.raises(RunError, match="never-begun: no run of this name; `es-service status` lists those in"):
        directory.read_config()
    with pytest.raises(RunError, match="there is no journal here"):
        open_session(tiny_config(), directory, True, ReferenceOps(), local())


def test_missing_text_is_named(tiny_config, tmp_path):
    config = tiny_config(data__paths=[tmp_path / "nowhere"])
    with pytest.raises(DataError, match="nowhere"):
        with_corpus(config)


def test_too_little_text_is_refused_with_sizes_that_fit(tiny_config):
    with pytest.raises(ConfigError, match=r"segment.bytes: 5 rows of 60000 \+ 1 bytes do not fit"):
        with_corpus(tiny_config(segment__bytes=60_000))


@pytest.mark.parametrize("place", ["file", "proc"])
def test_a_directory_that_cannot_be_written(tiny_config, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    runs_dir = {"file": tmp_path / "file", "proc": Path("/proc/1/runs")}[place]
    config = deployed(tiny_config(), runs_dir=runs_dir)
    with pytest.raises(RunError, match=r"cannot write here \(.*\); set deployment.runs_dir or --runs-dir"):
        open_session(config, RunDirectory(runs_dir, "a"), False, ReferenceOps(), local())


def test_a_damaged_journal_names_the_byte(run, tiny_config):
    copy = RunDirectory(run.directory.path.parent, "damaged")
    copy.create()
    copy.write_config(run.config)
    data = bytearray(run.journal)
    at = int(run.contents.commits.offsets[0]) + 20
    data[at] ^= 1
    copy.journal_path.write_bytes(data)
    with pytest.raises(JournalError, match=f"damaged/journal.bin, byte {int(run.contents.commits.offsets[0])}: "):
        open_session(run.config, copy, True, ReferenceOps(), local())
    assert copy.journal_path.read_bytes() == data


def test_names_are_counted_up(tiny_config, tmp_path):
    assert next_name(tmp_path, "egg") == "egg-1"
    (tmp_path / "egg-1").mkdir()
    assert next_name(tmp_path, "egg") == "egg-2"


def test_a_second_train_of_a_name_in_use_leaves_the_first_one_alone(tiny_config):
    first, second = tiny_config(seed=1), tiny_config(seed=2)
    directory = RunDirectory(first.deployment.runs_dir, "twice")
    coordinator = open_session(first, directory, False, ReferenceOps(), local())
    try:
        with pytest.raises(RunError):
            open_session(second, directory, False, ReferenceOps(), local())
    finally:
        coordinator.run()
    assert directory.read_config().seed == 1
    assert train(directory.read_config(), directory=directory).finish.reason == "goal"
