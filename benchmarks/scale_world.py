"""A cluster that does not exist, around the real coordinator: simulated workers, links and aggregator; one clock.

`Coordinator.run()` is the program under test, with its state machine, plan, messages and journal as they are. What it
computes itself is charged by the CPU seconds that it really took; all else by `Costs`. The pool's `poll` moves time on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.scale_costs import Costs
from benchmarks.scale_pool import Clock, SimulatedPool, digest_of
from es_service import journal
from es_service.aggregator import Applied, Canonical
from es_service.config import RunConfig
from es_service.coordinator import Coordinator
from es_service.directory import RunDirectory
from es_service.journal_writer import JournalWriter
from es_service.problem import plan_of
from es_service.telemetry import Telemetry

__all__ = ["Outcome", "simulate"]


class SimulatedAggregator:
    """Makes each update in the predicted time of the GPU that the config gives it; parameters are never looked at."""

    shared: Any = None

    def __init__(self, config: RunConfig, costs: Costs, clock: Clock, committed: Callable[[], None]) -> None:
        self.costs, self.clock, self.committed = costs, clock, committed
        self.canonical = Canonical(0, np.zeros(0, np.int8), digest_of(0))
        self._seconds = {True: costs.step, False: costs.update_seconds(config.population // 2)}
        self._done: list[tuple[float, Applied]] = []

    def submit(self, commit: Any) -> None:
        """Queue a commit."""
        self.clock.enter()
        self.committed()
        began = max(self.clock.now, self._done[-1][0] if self._done else 0.0)
        seconds = self._seconds[commit.is_step]
        canonical = Canonical(commit.generation + 1, self.canonical.parameters_P, digest_of(commit.generation + 1))
        self._done.append((began + seconds, Applied(canonical, 0, seconds, {}, commit.is_step)))
        self.clock.leave()

    def take(self, timeout: float = 0.0) -> list[Any]:
        """What is done by now."""
        self.clock.enter()
        if self._done and timeout:
            self.clock.now = max(self.clock.now, min(self._done[0][0], self.clock.now + timeout))
        ready = [applied for at, applied in self._done if at <= self.clock.now]
        self._done = self._done[len(ready) :]
        if ready:
            self.canonical = ready[-1].canonical
        self.clock.leave()
        return ready

    def close(self) -> list[Any]:
        """Everything is done."""
        if self._done:
            self.canonical = self._done[-1][1].canonical
        return []


class _Keeper:
    """Evaluates and saves nothing."""

    def after(self, canonical: Any) -> None:
        """See `Keeper`."""

    def last(self, canonical: Any) -> None:
        """See `Keeper`."""


class _Writer:
    """The real journal; the disk's wait is charged as measured before."""

    def __init__(self, writer: JournalWriter, costs: Costs, clock: Clock) -> None:
        self._writer, self._costs, self._clock = writer, costs, clock

    def append(self, record: journal.Record) -> None:
        """See `JournalWriter`."""
        self._writer.append(record)
        self._clock.enter()
        self._clock.charge(self._costs.fsync)
        self._clock.leave()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Means over the measured generations; the first two, with joins and the first update, are left out."""

    workers: int
    population: int
    text: int
    leases: int
    seconds: float
    """A generation, from commit to commit."""
    efficiency: float
    """Share of the workers' time in the forward pass."""
    rate: float
    """Share of the bytes/s that the same GPUs make with full tiles and nothing else to do."""
    update: float
    """Share of the workers' time in updates."""
    head_busy: float
    """Share of the time that the head's thread computes."""
    results: float
    """Results a second at the head."""
    down: float
    up: float
    """Bytes/s out of and into the head."""


def simulate(config: RunConfig, costs: Costs, directory: Path, seed: int = 1) -> Outcome:
    """Run `config.deployment.generations` (3 or more) generations with its `workers` simulated."""
    clock = Clock(costs)
    pool, marks = SimulatedPool(config, costs, clock, seed), []
    aggregator = SimulatedAggregator(config, costs, clock, lambda: marks.append(_totals(clock, pool)))
    run = RunDirectory(directory, f"run-{time.monotonic_ns()}")
    run.create()
    with JournalWriter.create(run.journal_path, journal.Header(config.spec, digest_of(0))) as writer:
        ports: list[Any] = [_Writer(writer, costs, clock), aggregator, _Keeper(), pool]
        coordinator = Coordinator(config, run, *ports, Telemetry(config, run, 0, clock), clock=clock)
        machine = coordinator.machine
        machine.policy = replace(machine.policy, audit_secret=b"%d" % seed)  # the same audits in every simulation
        coordinator.run()
    return _outcome(config, costs, (marks[-1] - marks[1]) / (len(marks) - 2))


def _totals(clock: Clock, pool: SimulatedPool) -> npt.NDArray[np.float64]:
    traffic = pool.traffic
    head = (clock.now, clock.head_busy, pool.results, traffic.bytes_down, traffic.bytes_up)
    return np.array([*head, pool.evaluating, pool.updating])


def _outcome(config: RunConfig, costs: Costs, generation: npt.NDArray[np.float64]) -> Outcome:
    """`generation`: what one generation added to `_totals`."""
    seconds, busy, results, down, up, evaluating, updating = map(float, generation)
    workers = config.deployment.workers
    text = config.segment.bytes * config.feeding.passes(config.population)
    return Outcome(
        workers=workers,
        population=config.population,
        text=text,
        leases=len(plan_of(config)),
        seconds=seconds,
        efficiency=evaluating / (workers * seconds),
        rate=config.population * text / (workers * seconds * costs.full_rate()),
        update=updating / (workers * seconds),
        head_busy=busy / seconds,
        results=results / seconds,
        down=down / seconds,
        up=up / seconds,
    )
