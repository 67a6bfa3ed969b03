"""Following files that grow: each whole line once, torn ones when they are whole, and consumers that fail."""

from __future__ import annotations

import json
import threading

import pytest

from es_service.directory import RunDirectory
from es_service.tail import Facts, Follower, RunTail, Tail


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "r").mkdir()
    return RunDirectory(tmp_path, "r")


def test_each_line_is_taken_once_and_the_file_may_come_later(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = Tail(path)
    assert tail.take() == []
    path.write_text('{"kind": "a", "n": 1}\n{"kind": "b"}\n')
    assert tail.take() == [{"kind": "a", "n": 1}, {"kind": "b"}]
    assert tail.take() == []


def test_a_line_without_its_end_waits_for_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    line = '{"kind": "é", "n": 2}\n'.encode()
    tail = Tail(path)
    for end in range(1, len(line)):  # also in the middle of a character
        path.write_bytes(b'{"kind": "a"}\n' + line[:end])
        assert tail.take() == ([{"kind": "a"}] if end == 1 else [])
    path.write_bytes(b'{"kind": "a"}\n' + line)
    assert tail.take() == [{"kind": "é", "n": 2}]


def test_half_a_line_that_a_crash_left_does_not_hide_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "commit", "gener{"kind": "commit", "generation": 4}\nnonsense\n[1]\n{"kind": "b"}\n')
    assert Tail(path).take() == [{"kind": "commit", "generation": 4}, {"kind": "b"}]


def test_a_file_that_shrank_is_read_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "a"}\n{"kind": "b"}\n')
    tail = Tail(path)
    tail.take()
    path.write_text('{"kind": "c"}\n')
    assert tail.take() == [{"kind": "c"}]


def test_a_large_file_comes_in_pieces_with_every_line(tmp_path, monkeypatch):
    monkeypatch.setattr("es_service.tail._CHUNK_BYTES", 100)
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "a", "n": n} for n in range(50)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "x" * 250 + "\n" + '{"kind": "b"}\n')
    tail, found = Tail(path), []
    for _ in range(40):
        found += tail.take()
    assert found == [*rows, {"kind": "b"}]


def test_the_tail_of_a_run_reads_its_files(directory):
    tail = RunTail(directory)
    assert not tail.take()
    directory.log_metrics("commit", generation=0)
    directory.log_metrics("commit")  # without a generation it is no row of ours
    directory.log_event("finished", generation=1)
    directory.log_sample(generation=0, text="x")
    directory.workers_path.write_text('{"w": {"leases": 2}}')
    facts = tail.take()
    assert [row["generation"] for row in facts.metrics] == [0]
    assert [row["kind"] for row in facts.events] == ["finished"]
    assert [row["text"] for row in facts.samples] == ["x"]
    assert facts.workers == {"w": {"leases": 2}}
    assert not tail.take()


def test_skip_passes_over_what_is_there(directory):
    directory.log_metrics("commit", generation=0)
    tail = RunTail(directory)
    tail.skip()
    directory.log_metrics("commit", generation=1)
    assert [row["generation"] for row in tail.take().metrics] == [1]


class Collector:
    name = "collector"

    def __init__(self, failing: bool = False) -> None:
        self.generations, self.closed, self.failing, self.called = [], False, failing, threading.Event()

    def take(self, facts: Facts) -> None:
        self.generations += [row["generation"] for row in facts.metrics]
        self.called.set()
        if self.failing:
            raise ValueError("no more room")

    def close(self) -> None:
        self.closed = True


def test_a_follower_hands_over_the_last_facts_before_it_closes(directory):
    collector = Collector()
    follower = Follower(RunTail(directory), collector)
    assert collector.called.wait(30)
    directory.log_metrics("commit", generation=7)
    follower.close()
    assert collector.generations == [7]
    assert collector.closed


def test_a_consumer_that_fails_is_named_and_stops_nothing(directory, capsys):
    collector = Collector(failing=True)
    Follower(RunTail(directory), collector).close()
    assert "collector: no more room; the run goes on without it" in capsys.readouterr().err
    assert not collector.closed
