"""The directory of a run and the files beside its journal."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from es_service.directory import RunDirectory, next_name
from es_service.errors import ConfigError, RunError


@pytest.fixture
def directory(tmp_path, tiny_config):
    directory = RunDirectory(tmp_path, "a")
    directory.create()
    directory.write_config(tiny_config())
    return directory


def test_the_config_is_kept_as_resolved(directory, tiny_config):
    assert directory.read_config() == tiny_config()
    directory.write_config(tiny_config(seed=4))
    assert directory.read_config().seed == 4


def test_lines_come_back_in_order(directory):
    assert list(directory.metrics()) == []
    directory.log_metrics("commit", generation=0, bits=1.5)
    directory.log_metrics("commit", generation=1, bits=1.25)
    directory.log_event("hedged", worker="w")
    assert [(line["kind"], line["generation"]) for line in directory.metrics()] == [("commit", 0), ("commit", 1)]
    (event,) = directory.events()
    assert (event["kind"], event["worker"]) == ("hedged", "w")
    assert event["time"] > 1e9


def test_half_a_line_that_a_crash_left_does_not_spoil_the_others(directory):
    directory.log_metrics("commit", generation=0)
    with directory.metrics_path.open("a") as file:
        file.write('{"kind": "com')
    assert [line["generation"] for line in directory.metrics()] == [0]
    directory.log_metrics("commit", generation=1)  # after a resume
    directory.log_metrics("commit", generation=2)
    assert [line["generation"] for line in directory.metrics()] == [0, 1, 2]


@pytest.mark.parametrize("text", ["", "{", '{"population": 3}', "\xff"])
def test_a_damaged_config_is_an_error(directory, text):
    directory.config_path.write_text(text, encoding="latin-1")
    with pytest.raises(RunError, match=r"config.json: cannot be read as a config"):
        directory.read_config()


def test_a_name_that_escapes_is_refused(tmp_path):
    with pytest.raises(ConfigError):
        RunDirectory(tmp_path, "../a")


def test_a_directory_without_a_journal_may_be_begun_again(directory):
    directory.create()
    directory.journal_path.touch()
    with pytest.raises(RunError, match="a run with this name exists"):
        directory.create()


def test_next_name_takes_the_first_that_is_free(tmp_path):
    for n in (1, 2, 4):
        (tmp_path / f"egg-{n}").mkdir()
    assert next_name(tmp_path, "egg") == "egg-3"


def test_a_disk_that_is_full_is_an_error_with_a_remedy(directory, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(RunError, match=r"No space left on device.*resume"):
        directory.log_event("anything")


@pytest.mark.parametrize("damage", [b"\x80\xff", b"3\n", b'{"kind": "commit"}\n', b"[]\n", b'{"kind": 7}\n'])
def test_damaged_lines_are_passed_over(directory, damage):
    directory.metrics_path.write_bytes(damage + b'\n{"kind": "commit", "generation": 4}\n')
    assert [row["generation"] for row in directory.metrics()] == [4]


def test_a_number_of_workers_that_is_asked_for_while_another_is_read_is_not_lost(directory, monkeypatch):
    read_text = Path.read_text

    def meanwhile(path, *arguments):
        monkeypatch.undo()
        directory.ask_scale(2)
        return read_text(path, *arguments)

    assert directory.take_scale() is None
    directory.path.mkdir(exist_ok=True)
    directory.ask_scale(1)
    monkeypatch.setattr(Path, "read_text", meanwhile)
    assert [directory.take_scale() for _ in range(3)] == [1, 2, None]
