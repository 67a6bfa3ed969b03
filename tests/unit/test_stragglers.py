"""One of four workers is ten times slower than the others: the run takes little longer than three healthy ones need.

The real state machine in virtual time; tests/integration/test_faults.py measures the same on Ray.
"""

from __future__ import annotations

import heapq
from collections import deque

import pytest

from es_service.events import Aggregated, Assign, Close, Committed, Finish, Joined, Returned, Tick
from es_service.generation import Machine, Policy
from es_service.messages import LeaseResult
from es_service.plan import Plan

POLL_SECONDS = 0.05
"""A coordinator without events looks at its clock so often."""
LOOKS = 40
"""In a lease at most: more in long leases change the ratio by less than 0.003, and the test takes minutes."""


class Workers:
    """Each does one lease at a time, in order, and takes `seconds[name]` for it."""

    def __init__(self, seconds, leases, goal):
        self.poll_seconds = max(POLL_SECONDS, min(seconds.values()) / LOOKS)
        plan = Plan.of(5 * leases, 5)
        self.machine = Machine(lambda _: plan, Policy(goal), 0, 0, 0)
        self.seconds = seconds
        self.now = 0.0
        self.queues = {name: deque() for name in seconds}
        self.done = []
        self.finish = None
        self.hedged = 0

    def run(self):
        """Virtual seconds until the goal."""
        self.feed(Tick(0.0))
        for name in self.seconds:
            self.feed(Joined(name))
        while self.finish is None:
            until = self.now + self.poll_seconds
            if self.done and self.done[0][0] <= until:
                self.now, name = heapq.heappop(self.done)
                self.feed(Tick(self.now))
                self.answer(name)
            else:
                self.now = until
                self.feed(Tick(self.now))
        return self.now

    def answer(self, name):
        lease = self.queues[name].popleft()
        self.start(name)
        self.feed(Returned(name, LeaseResult(0, lease, 0, 0, 0, 0, 0, 1.0, b"v")))

    def start(self, name):
        if self.queues[name]:
            heapq.heappush(self.done, (self.now + self.seconds[name], name))

    def feed(self, event):
        for command in self.machine.handle(event):
            match command:
                case Assign(name, lease):
                    self.queues[name].append(lease)
                    if len(self.queues[name]) == 1:
                        self.start(name)
                case Close(generation):
                    self.feed(Committed(generation))
                    self.feed(Aggregated(generation + 1, 0))
                case Finish():
                    self.finish = command


def seconds(healthy, slow, lease_seconds, leases, generations=40):
    each = {f"w{n}": lease_seconds for n in range(healthy)} | {f"slow{n}": 10 * lease_seconds for n in range(slow)}
    return Workers(each, leases, generations).run()


@pytest.mark.parametrize("lease_seconds", [0.1, 0.2, 3.0, 60.0])
@pytest.mark.parametrize("leases", [12, 15, 16, 24, 100])
def test_one_of_four_that_is_ten_times_slower_costs_little(lease_seconds, leases):
    assert seconds(3, 1, lease_seconds, leases) < 1.15 * seconds(3, 0, lease_seconds, leases)
