"""What an event costs the state machine does not grow with workers or leases: calls are counted, not timed."""

from __future__ import annotations

import sys
from collections import deque

import pytest

from es_service.events import Aggregated, Assign, Close, Committed, Joined, Left, Returned, Tick
from es_service.generation import Machine, Policy
from es_service.messages import LeaseResult
from es_service.plan import Plan


class Calls:
    """Counts function calls and lines of Python while it is on."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Calls:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: object, event: str, argument: object):
        self.count += 1
        return self._trace


def lines_of_two_generations(workers: int, leases: int, audit_share: float = 0.01) -> tuple[int, int]:
    """(lines of Python, events) of two generations of a machine with that many workers, one of which dies in each.

    Second opinions come last, so that all audited leases are in doubt for a while.
    """
    plan = Plan.of(5 * leases, 5)
    machine = Machine(lambda _: plan, Policy(goal=10, audit_share=audit_share, audit_secret=b"s"), 0, 0, 7)
    commands = deque(c for n in range(workers) for c in machine.handle(Joined(f"w{n}")))
    commands += machine.handle(Tick(0.0))
    calls, events, now = Calls(), 0, 0.0
    while machine.generation < 3:
        command = commands.popleft()
        batch = []
        match command:
            case Assign(_, lease) if lease.attempt and any(is_first(other) for other in commands):
                commands.append(command)
                continue
            case Assign(worker, lease):
                batch = [Returned(worker, LeaseResult(0, lease, 0, 0, 0, 7, 0, 1.0, b"v"))]
                if events % 100 == 99:
                    batch.append(Tick(now := now + 0.01))
            case Close(generation):
                batch = [Committed(generation), Aggregated(generation + 1, 7), Left(f"w{generation}")]
        if machine.generation == 0:  # the first generation is not counted: everything is new
            commands.extend(c for event in batch for c in machine.handle(event))
            events += len(batch)
            continue
        with calls:
            commands.extend([c for event in batch for c in machine.handle(event)])
        events += len(batch)
    return calls.count, 2 * leases


def is_first(command: object) -> bool:
    return isinstance(command, Assign) and not command.lease.attempt


@pytest.mark.parametrize(("workers", "leases"), [(10_000, 500), (500, 2000)])
def test_an_event_costs_the_same_with_a_hundred_workers_or_ten_thousand(workers, leases):
    few, events = lines_of_two_generations(100, 100)
    many, more_events = lines_of_two_generations(workers, leases)
    assert many / more_events < 2 * few / events


def test_an_event_costs_the_same_with_a_hundred_leases_in_doubt_or_a_thousand():
    few, events = lines_of_two_generations(100, 100, audit_share=1.0)
    many, more_events = lines_of_two_generations(1000, 1000, audit_share=1.0)
    assert many / more_events < 2 * few / events
