"""The pool of actors without Ray: when it gives up, and who comes and goes when other numbers are wanted."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from es_service.errors import BackendError, DataError
from es_service.pools import Gone, Leaving, Ready
from workers import pool as module
from workers.lookout import Messenger
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
        pool._branches = {}

        def ends(name, outcome):
            pool._actors.setdefault(name, object())
            return pool._finished(SimpleNamespace(outcome=outcome), _Call(name, starting, 0.0))

        ends.pool = pool
        return names, ends

    return make


class Relayed:
    """A branch of two workers whose relay answers, or is lost."""

    node = "far"

    def __init__(self, pool, answers):
        self.unanswered = dict.fromkeys(("worker-0", "worker-1"), 1)
        self.given, self.closed = answers, 0
        pool._branches[self.node] = self
        pool._nodes |= dict.fromkeys(self.unanswered, self.node)

    def forget(self, worker):
        self.unanswered.pop(worker, None)

    def answers(self, reference):
        if isinstance(self.given, Exception):
            raise self.given
        return self.given

    def close(self):
        self.closed += 1


@pytest.mark.parametrize(
    ("answers", "lost"),
    [
        (ActorDiedError(), ["worker-0", "worker-1"]),
        ([("worker-0", ActorDiedError()), ("worker-1", ActorDiedError())], ["worker-0", "worker-1"]),
        ([("worker-0", ValueError("no answer")), ("worker-1", b"answer")], ["worker-0"]),
    ],
)
def test_a_relay_ends_with_the_last_worker_of_its_node(fleet, answers, lost):
    _, ends = fleet(3)
    pool = ends.pool
    branch = Relayed(pool, answers)
    pool._calls = {n: _Call("", False, 0.0, branch) for n in range(3)} | {3: _Call("worker-2", False, 0.0)}
    events = pool._finished(0, pool._calls.pop(0))
    assert gone(events) == lost
    ended = len(lost) == 2
    assert branch.closed == ended
    assert (branch.node in pool._branches) is not ended
    assert list(pool._calls) == ([3] if ended else [1, 2, 3]), "nobody waits for what will not come"


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


# Who comes and goes.


class Ref:
    """A call of an actor; done when it has an outcome."""

    outcome = None


class Actor:
    """Starts at once, and answers when it is told to."""

    def __init__(self, node):
        self.calls = []
        self.start = SimpleNamespace(remote=self._start)
        self.handle = SimpleNamespace(remote=self._handle)
        self.node = node

    def _start(self):
        ref = Ref()
        ref.outcome = "about", self.node
        return ref

    def _handle(self, *parts):
        self.calls.append(Ref())
        return self.calls[-1]


class Cluster:
    """What the pool uses of Ray; remembers which nodes were asked for, and who was ended."""

    def __init__(self):
        self.actors, self.ended, self.asked, self.now = {}, [], [], 0.0
        self.actor_class = SimpleNamespace(remote=self._make, options=lambda **_: self.actor_class)

    def remote(self, _):
        return self.actor_class

    def _make(self, config_json, version, head, run, name):
        self.actors[name] = Actor("node-1")
        return self.actors[name]

    def get_runtime_context(self):
        return SimpleNamespace(get_node_id=lambda: "node-0", get_actor_name=lambda: "head-r", current_actor=None)

    def get(self, ref):
        return ref.outcome

    def wait(self, refs, num_returns, timeout, fetch_local):
        done = [ref for ref in refs if ref.outcome is not None]
        return done[:num_returns], []

    def kill(self, actor, no_restart):
        self.ended += [name for name, other in self.actors.items() if other is actor]


class AtOnce:
    """A messenger without a thread."""

    def __init__(self, tell, what, retry_seconds):
        self.say = tell

    def close(self, seconds):
        pass


@pytest.fixture
def cluster(monkeypatch):
    cluster = Cluster()
    monkeypatch.setattr(module, "ray", cluster)
    monkeypatch.setattr(module, "request_resources", lambda bundles: cluster.asked.append(len(bundles)))
    monkeypatch.setattr(module, "Messenger", AtOnce)
    monkeypatch.setattr(module, "_draining_nodes", set)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: cluster.now))
    return cluster


@pytest.fixture
def pool_of(cluster, tiny_config):
    """`pool_of(3)`: a pool whose three workers have started."""

    def make(workers):
        worker = {"threads": 1}
        pool = RayPool(
            tiny_config(deployment__workers=workers, deployment__pool="ray", deployment__worker=worker), None
        )
        assert said(pool, Ready) == [f"worker-{n + 1}" for n in range(workers)]
        return pool

    return make


def said(pool, kind):
    """Of whom a poll said this."""
    return [event.worker for event in pool.poll(0.0) if isinstance(event, kind)]


@pytest.mark.parametrize("workers", [0, 3])
def test_nodes_are_asked_for_until_the_workers_are_there(cluster, pool_of, workers):
    """Also by a head that died while its workers started: the floor that it left is withdrawn."""
    pool = pool_of(workers)
    pool.poll(0.0)
    assert cluster.asked == ([workers, 0] if workers else [0])
    pool.close()
    assert cluster.asked[-1] == 0


def test_a_request_for_nodes_that_hangs_holds_up_nobody(cluster, pool_of, monkeypatch):
    release, asked = threading.Event(), []
    monkeypatch.setattr(module, "Messenger", Messenger)
    monkeypatch.setattr(module, "request_resources", lambda bundles: (asked.append(len(bundles)), release.wait(60)))
    began = time.monotonic()
    pool = pool_of(3)
    assert said(pool, Ready) == []
    pool.scale(4)
    assert said(pool, Ready) == ["worker-4"]
    pool.close()
    assert time.monotonic() - began < 30
    assert len(asked) == 1, "it hangs"
    release.set()


def test_a_worker_that_leaves_may_answer_what_it_has_but_not_for_ever(cluster, pool_of):
    pool = pool_of(3)
    for name in ("worker-2", "worker-3"):
        pool.send(name, b"order")
    pool.scale(1)
    assert said(pool, Leaving) == ["worker-2", "worker-3"]
    cluster.now = 599.0
    cluster.actors["worker-2"].calls[0].outcome = b"answer"
    assert said(pool, Gone) == []
    assert said(pool, Gone) == ["worker-2"]
    cluster.now = 601.0
    assert said(pool, Gone) == ["worker-3"] == cluster.ended[1:]


def test_another_number_that_is_asked_for_while_workers_leave_or_start_is_what_counts(cluster, pool_of):
    pool = pool_of(3)
    pool.send("worker-3", b"order")
    pool.scale(2)
    assert said(pool, Leaving) == ["worker-3"]
    pool.scale(4)
    pool.scale(5)
    assert said(pool, Ready) == ["worker-4", "worker-5", "worker-6"], "one of them for the one that leaves"
    cluster.actors["worker-3"].calls[0].outcome = b"answer"
    pool.poll(0.0)
    assert said(pool, Gone) == ["worker-3"]
    assert sorted(pool._actors) == ["worker-1", "worker-2", "worker-4", "worker-5", "worker-6"]
    pool.scale(7)
    pool._adjust()
    pool.scale(5)
    pool._adjust()
    assert cluster.ended == ["worker-3", "worker-7", "worker-8"], "those that start are ended without more ado"
    assert pool.poll(0.0) == []


def test_a_worker_that_was_wrong_is_replaced_at_once(cluster, pool_of):
    pool = pool_of(2)
    pool.send("worker-1", b"order")
    pool.dismiss("worker-1")
    pool.dismiss("stranger")
    events = pool.poll(0.0)
    assert events[0] == Gone("worker-1", "it was found wrong"), "it holds nothing that counts"
    assert [event.worker for event in events[1:]] == ["worker-3"]
    assert cluster.ended == ["worker-1"]


def test_where_everybody_is_wrong_replacing_them_comes_to_an_end(cluster, pool_of):
    pool = pool_of(2)
    for n in range(1, 9):
        pool.dismiss(f"worker-{n}")
        assert gone(pool.poll(0.0)) == [f"worker-{n}"]
    pool.dismiss("worker-9")
    assert gone(pool.poll(0.0)) == [], "it stays, without work"
    assert sorted(pool._actors) == ["worker-10", "worker-9"]
    pool.scale(1)
    assert said(pool, Leaving) == ["worker-9"], "rather than a younger one that is sound"
