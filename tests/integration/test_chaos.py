"""A seeded schedule of faults against a run on the session's Ray cluster: the journal is that of the undisturbed run.

Short by default. `make chaos` runs it for minutes and prints the seed; `make chaos SEED=n SECONDS=s` repeats a schedule
(the faults and their times; what they hit depends on the machine's pace, which no seed fixes).
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from contextlib import suppress
from threading import Timer

import pytest
from rays import commits, finish, run

from es_service import launch as launch_module
from es_service.directory import RunDirectory
from es_service.launch import launch

pytestmark = [pytest.mark.ray, pytest.mark.timeout(0)]

SEED = int(os.environ.get("SEED", "1"))
SECONDS = float(os.environ.get("CHAOS_SECONDS", "20"))
LIAR = "worker-3"
MAKE_RAY_POOL = launch_module.make_ray_pool


def unreliable():
    """One worker lies once in a while, another is slow, and every fifth answer comes twice."""

    def make_pool(config, corpus):
        import numpy as np

        from es_service import votes
        from es_service.messages import LeaseResult, decode, encode
        from es_service.pools import Reply
        from workers import pool as pool_module
        from workers.actor import WorkerActor

        class Unreliable(WorkerActor):
            def __init__(self, config_json, version, head, run, name):
                super().__init__(config_json, version, head, run, name)
                self.name, self.lies_at = name, time.monotonic() + 1

            def handle(self, *parts):
                answer = super().handle(*parts)
                time.sleep(0.2 if answer and self.name == "worker-2" else 0)
                if (
                    self.name != "worker-3"
                    or time.monotonic() < self.lies_at
                    or not answer
                    or not isinstance(result := decode(answer), LeaseResult)
                ):
                    return answer
                votes_q = votes.unpack(result.payload, result.lease.num_units)
                return encode(type(result)(**{
                    **{name: getattr(result, name) for name in result.__slots__},
                    "payload": votes.pack((1 - np.abs(votes_q)).astype(np.int8)),
                }))  # fmt: skip

        pool_module.WorkerActor = Unreliable
        pool = MAKE_RAY_POOL(config, corpus)
        poll, seen = pool.poll, []

        def twice(timeout):
            events = poll(timeout)
            seen.extend(events)
            again = [event for n, event in enumerate(seen) if n % 5 == 0 and isinstance(event, Reply) and event.data]
            seen.clear()
            return events + again

        pool.poll = twice
        return pool

    return make_pool


class Schedule:
    """What is done to the run, and when; drawn from the seed."""

    def __init__(self, directory, seed, seconds):
        self.directory = directory
        self.rng = random.Random(seed)
        self.ends = time.monotonic() + seconds
        self.next = time.monotonic() + 2
        self.done = []
        self.timers = []

    def beat(self):
        """Do what is due. Whether all is done."""
        now = time.monotonic()
        if now < self.next:
            return False
        if now > self.ends:
            return True
        kinds = ["kill", "kill", "pause", "pause", "scale", "head"]
        kind = kinds[len(self.done)] if len(self.done) < len(kinds) else self.rng.choice(kinds)
        draw = self.rng.random()
        self.next = now + (4 if kind == "head" else 0.5 + self.rng.random())
        self.done.append(kind)
        print(f"{kind} {draw:.3f} at generation {commits(self.directory)}")
        with suppress(ProcessLookupError):  # it is gone already
            getattr(self, kind)(draw)
        return False

    def _worker(self, draw):
        ready = [(event["worker"], event["about"]) for event in self._of_this_head() if event["kind"] == "worker_ready"]
        gone = {event["worker"] for event in self._of_this_head() if event["kind"] == "worker_gone"}
        pids = [int(re.search(r"pid (\d+)", about).group(1)) for name, about in ready if name not in {LIAR, *gone}]
        return pids[int(draw * len(pids))] if len(pids) > 1 else None  # a liar alone would end the run

    def _of_this_head(self):
        events = list(self.directory.events())
        starts = [n for n, event in enumerate(events) if event["kind"] == "resumed"]
        return events[starts[-1] :] if starts else events

    def kill(self, draw):
        if pid := self._worker(draw):
            os.kill(pid, signal.SIGKILL)

    def pause(self, draw):
        if pid := self._worker(draw):
            os.kill(pid, signal.SIGSTOP)
            self.timers.append(Timer(2 + 2 * draw, resume, [pid]))
            self.timers[-1].start()

    def scale(self, draw):
        self.directory.ask_scale(3 + int(3 * draw))

    def head(self, draw):
        if holder := self.directory.holder():
            os.kill(int(holder.split()[1]), signal.SIGKILL)


def resume(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_no_schedule_of_faults_changes_the_journal(make_config, ray_address, monkeypatch):
    print(f"SEED={SEED} SECONDS={SECONDS:g}")
    monkeypatch.setattr(launch_module, "make_ray_pool", unreliable())
    config = make_config(workers=4, generations=1_000_000, audit_share=1.0)
    directory = RunDirectory(config.deployment.runs_dir, "chaos")
    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        schedule = Schedule(directory, SEED, SECONDS)

        def beat(status):
            if schedule.beat() and status.workers:
                handle.stop("enough")

        end = finish(handle, beat)
        for timer in schedule.timers:
            timer.join()
    kinds = [event["kind"] for event in directory.events()]
    assert directory.journal_path.read_bytes() == run(
        make_config(pool="local", generations=end.generation), "same", None
    )
    assert {"kill", "pause", "scale", "head"} <= set(schedule.done)
    assert {"worker_gone", "restarted", "scaled", "duplicate"} <= set(kinds)
    found = {event["worker"] for event in directory.events() if event["kind"] == "quarantined"}
    assert found <= {LIAR}
    assert found or SECONDS < 60, "in a short schedule the head may die before the liar has lied"
