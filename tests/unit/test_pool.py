"""When the pool of actors gives up, without Ray: workers that come to nothing, and nodes that go with all theirs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from es_service.errors import BackendError, DataError
from es_service.pools import Gone
from workers import pool as module
from workers.pool import RayPool, _Call


@pytest.fixture
def fleet(monkeypatch):
    """`fleet(n, starting)`: a pool of n workers, each with one call under way, and what becomes of the calls."""

    def get(ref):
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    monkeypatch.setattr(module, "ray", SimpleNamespace(get=get, kill=lambda actor, no_restart: None))

    def make(workers, starting=False):
        pool = object.__new__(RayPool)
        names = [f"worker-{n}" for n in range(workers)]
        pool._actors, pool._leaving, pool._nodes, pool._calls = dict.fromkeys(names, object()), {}, {}, {}
        pool._proven, pool._failures, pool._losses, pool._wanted = set(), 0, 0, workers

        def ends(name, outcome):
            pool._actors.setdefault(name, object())
            return pool._finished(SimpleNamespace(outcome=outcome), _Call(name, starting, 0.0))

        return names, ends

    return make


def gone(events):
    return [event.worker for event in events if isinstance(event, Gone)]


@pytest.mark.parametrize("starting", [False, True])
def test_a_node_that_goes_with_all_its_workers_ends_no_run(fleet, starting):
    names, ends = fleet(16, starting)
    assert [name for name in names for name in gone(ends(name, ActorDiedError()))] == names


def test_workers_that_gave_results_are_no_reason_to_give_up(fleet):
    names, ends = fleet(64)
    for name in names:
        ends(name, b"answer")
    for name in names:
        assert gone(ends(name, ActorDiedError())) == [name]


@pytest.mark.parametrize("starting", [False, True])
def test_processes_that_die_again_and_again_end_the_run(fleet, starting):
    _, ends = fleet(4, starting)
    for n in range(13):
        ends(f"again-{n}", ActorDiedError())
    with pytest.raises(BackendError, match="14 workers in a row came to nothing"):
        ends("again-13", ActorDiedError())


def test_an_error_of_the_start_itself_is_raised_after_three(fleet):
    _, ends = fleet(4, True)
    error = RayTaskError("start", "", DataError("data.content_hash is another"))
    for n in range(2):
        assert gone(ends(f"refused-{n}", error)) == [f"refused-{n}"]
    with pytest.raises(DataError, match=r"data\.content_hash"):
        ends("refused-2", error)
