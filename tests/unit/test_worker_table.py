"""workers.json: what each worker has done."""

from __future__ import annotations

import json

import pytest
from harness import local, train

from es_service.errors import RunError
from es_service.messages import Lease, LeaseResult
from es_service.worker_table import WorkerTable


def result(model_bytes, seconds):
    return LeaseResult(1, Lease(0, 0, 5, 0), 0, 0, 0, 0, model_bytes, seconds, b"")


def test_leases_are_counted_and_the_speed_is_that_of_the_newest(tmp_path):
    now = [0.0]
    table = WorkerTable(tmp_path / "workers.json", lambda: now[0])
    for _ in range(100):
        table.returned("a", result(1000, 1.0))
    for _ in range(100):
        table.returned("a", result(1000, 0.1))
    table.returned("b", result(500, 0.0))
    table.gone("c")
    table.write()
    found = json.loads(table.path.read_text())
    assert found["a"]["leases"] == 200
    assert found["a"]["bytes_per_second"] == pytest.approx(10_000, rel=0.01)
    table.gone("b")
    table.write()
    assert "b" in json.loads(table.path.read_text())  # it was written a moment ago
    now[0] = 2.0
    table.write()
    assert "b" not in json.loads(table.path.read_text())


def test_a_run_leaves_the_table_of_its_workers(tiny_config):
    run = train(tiny_config(), local(2, lambda names: names[-1]))
    values = json.loads(run.directory.workers_path.read_text())
    assert set(values) == {"w0", "w1"}
    assert sum(worker["leases"] for worker in values.values()) == 5 * 4
    assert all(worker["bytes_per_second"] > 0 for worker in values.values())


def test_a_directory_that_is_gone_is_an_error_that_says_what_to_do(tmp_path):
    table = WorkerTable(tmp_path / "gone" / "workers.json", lambda: 0.0)
    with pytest.raises(RunError, match="put the directory back"):
        table.write(at_once=True)
