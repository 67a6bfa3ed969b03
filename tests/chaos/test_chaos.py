"""A seeded schedule of faults against a run on the session's Ray cluster: the journal is that of the undisturbed run.

Short by default: every kind of fault, in a fixed order, and then the end. `make chaos` goes on with kinds at random for
minutes and prints the seed; `make chaos SEED=n SECONDS=s` repeats a schedule (the faults and their order; what they hit
depends on the machine's pace, which no seed fixes).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import pytest
from rays import drain, finish, run

from es_service import launch as launch_module
from es_service.directory import RunDirectory
from es_service.launch import launch
from es_service.tail import Tail

pytestmark = [pytest.mark.ray, pytest.mark.timeout(0)]

SEED = int(os.environ.get("SEED", "1"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "0"))
FIRST = ("lie", "kill", "pause", "scale", "slow", "join", "head", "lose", "join", "lie", "scale", "leave", "kill")
WORKERS = 4
PATIENCE_SECONDS = 120
MAKE_RAY_POOL = launch_module.make_ray_pool


def unreliable():
    """Workers that lie or are slow once a file says so, and of whose answers some come twice."""

    def make_pool(config, corpus):
        from dataclasses import replace
        from pathlib import Path

        import numpy as np

        from es_service import votes
        from es_service.messages import LeaseResult, decode, encode
        from es_service.pools import HEAD, Reply
        from workers import pool as pool_module
        from workers.actor import WorkerActor

        flags = Path(config.deployment.runs_dir)

        class Unreliable(WorkerActor):
            def handle(self, *parts):
                answer = super().handle(*parts)
                if not answer or not isinstance(result := decode(answer), LeaseResult):
                    return answer
                time.sleep(0.3 if (flags / f"slow-{os.getpid()}").exists() else 0)
                if not (flags / f"lie-{os.getpid()}").exists():
                    return answer
                votes_Q = votes.unpack(result.payload, result.lease.num_units)
                return encode(replace(result, payload=votes.pack((1 - np.abs(votes_Q)).astype(np.int8))))

        pool_module.WorkerActor = Unreliable
        pool = MAKE_RAY_POOL(config, corpus)
        poll, answers = pool.poll, itertools.count()

        def twice(timeout):
            events = poll(timeout)
            found = [event for event in events if isinstance(event, Reply) and event.data and event.worker != HEAD]
            return events + [event for event in found if next(answers) % 5 == 0]

        pool.poll = twice
        return pool

    return make_pool


@dataclass(frozen=True)
class Worker:
    name: str
    pid: int
    node: str


class Fleet:
    """The workers of the head that is there now, from the run's events."""

    def __init__(self, directory):
        self.tail = Tail(directory.events_path)
        self.workers, self.pids = {}, {}
        self.kinds = Counter()
        self.wrong = set()
        """Process ids of those that were found wrong."""

    def look(self):
        for event in self.tail.take():
            self.kinds[event["kind"]] += 1
            name = event.get("worker")
            match event["kind"]:
                case "worker_ready":
                    node, pid = re.search(r"node (\w+) pid (\d+)", event["about"]).groups()
                    self.workers[name] = Worker(name, int(pid), node)
                    self.pids[name] = int(pid)
                case "quarantined":
                    self.workers.pop(name, None)
                    self.wrong.add(self.pids[name])
                case "worker_gone":
                    self.workers.pop(name, None)
                case "restarted":
                    self.workers.clear()


class Schedule:
    """What is done to the run, and when. A fault waits until it can hit something; each method says whether it did."""

    def __init__(self, directory, cluster, seed, seconds):
        self.directory, self.cluster = directory, cluster
        self.fleet = Fleet(directory)
        self.rng = random.Random(seed)
        self.ends = time.monotonic() + seconds
        self.done, self.liars, self.nodes = [], set(), []
        self.workers = WORKERS
        self.later = []
        """(when, what) is still to be done."""
        self.goes_on = lambda: True
        """Whether the next fault may come."""
        self._draw()

    def _draw(self):
        first = len(self.done) < len(FIRST)
        self.kind = FIRST[len(self.done)] if first else self.rng.choice(("kill", "pause", "lose", *FIRST))
        self.size = self.rng.random()
        self.next = time.monotonic() + 0.5 + self.rng.random()
        self.waits_until = time.monotonic() + PATIENCE_SECONDS

    def beat(self, status):
        """Do what is due. Whether all is done, and the run has gone on since."""
        self.fleet.look()
        now = time.monotonic()
        assert now < self.waits_until, f"after {self.done}, {self.kind} waits in vain: {status} {self.fleet.workers}"
        for when, what in [(when, what) for when, what in self.later if now > when]:
            what()
            self.later.remove((when, what))
        if now < self.next or not self.goes_on():
            return False
        if len(self.done) >= len(FIRST) and now > self.ends:
            return not self.later and status.workers and status.generation > self.reached + 2
        if getattr(self, self.kind)():
            print(f"{len(self.done)} {self.kind} {self.size:.3f} at generation {status.generation}")
            self.done.append(self.kind)
            self.reached = status.generation
            self._draw()
        return False

    def end(self):
        """Leave nothing behind."""
        for _, what in self.later:
            what()
        for node in list(self.nodes):
            self._remove(node)

    def _worker(self, at_least=2):
        """One of those that are there, if there are so many."""
        found = list(self.fleet.workers.values())
        return found[int(self.size * len(found))] if len(found) >= at_least else None

    def _signal(self, pid, number):
        with suppress(ProcessLookupError):  # it is gone already
            os.kill(pid, number)

    def kill(self):
        if worker := self._worker():
            self._signal(worker.pid, signal.SIGKILL)
        return worker

    def pause(self):
        if worker := self._worker():
            self._signal(worker.pid, signal.SIGSTOP)
            until = time.monotonic() + 2 + 2 * self.size
            self.later.append((until, lambda: self._signal(worker.pid, signal.SIGCONT)))
        return worker

    def _flag(self, name, worker):
        (self.directory.path.parent / f"{name}-{worker.pid}").touch()

    def slow(self):
        if worker := self._worker():
            self._flag("slow", worker)
        return worker

    def lie(self):
        """Nothing else happens until it is found out: a liar alone would end the run."""
        if self.later or not (worker := self._worker(3)):
            return None
        self._flag("lie", worker)
        self.liars.add(worker.pid)
        self.goes_on = lambda: worker.pid in self.fleet.wrong
        return worker

    def scale(self):
        """One more, or one less; nothing else happens until the head has heard of it."""
        asked = self.fleet.kinds["scaled"]
        self.workers = 2 * WORKERS + 1 - self.workers
        self.directory.ask_scale(self.workers)
        self.goes_on = lambda: self.fleet.kinds["scaled"] > asked
        return True

    def head(self):
        """Nothing else happens until another is there with most of its workers."""
        heads = self.fleet.kinds["restarted"]
        if holder := self.directory.holder():
            self._signal(int(holder.split()[1]), signal.SIGKILL)
            self.goes_on = lambda: self.fleet.kinds["restarted"] > heads and len(self.fleet.workers) >= WORKERS
        return holder

    def join(self):
        """A node comes; one that was there goes on."""
        if not self.nodes:
            self.nodes.append(self.cluster.add_node(num_cpus=2, object_store_memory=80 << 20))
        return True

    def lose(self):
        """A node is lost at once with its workers; if there is one."""
        for node in list(self.nodes):
            self._remove(node)
        return True

    def leave(self):
        """A node goes after a notice."""
        for node in self.nodes:
            drain(self.cluster.address, node)
            self.later.append((time.monotonic() + 3, lambda node=node: self._remove(node)))
        return True

    def _remove(self, node):
        if node not in self.nodes:
            return
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)
        for worker in [worker for worker in self.fleet.workers.values() if worker.node == node.node_id[:8]]:
            print(f"{worker.name} is lost with its node")
            self._signal(worker.pid, signal.SIGKILL)
            del self.fleet.workers[worker.name]


def test_no_schedule_of_faults_changes_the_journal(make_config, ray_cluster, monkeypatch):
    print(f"SEED={SEED} SECONDS={SECONDS:g}")
    monkeypatch.setattr(launch_module, "make_ray_pool", unreliable())
    monkeypatch.setattr(launch_module, "_HEAD_RESTARTS", 1000)
    config = make_config(workers=WORKERS, generations=1_000_000, audit_share=1.0, sliced_updates="always")
    directory = RunDirectory(config.deployment.runs_dir, "chaos")
    schedule = Schedule(directory, ray_cluster, SEED, SECONDS)
    try:
        with launch(config, directory, resume=False, address=ray_cluster.address) as (handle, _):

            def beat(status):
                if schedule.beat(status):
                    handle.stop("enough")

            end = finish(handle, beat)
    finally:
        schedule.end()
    same = run(make_config(pool="local", generations=end.generation), "same", None)
    assert directory.journal_path.read_bytes() == same
    schedule.fleet.look()
    assert schedule.fleet.wrong == schedule.liars
    replaced = [event["worker"] for event in directory.events() if event.get("reason") == "it was found wrong"]
    assert len(replaced) >= FIRST.count("lie")
    assert schedule.fleet.kinds.keys() >= {"worker_gone", "restarted", "scaled", "duplicate", "quarantined"}
