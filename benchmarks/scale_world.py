"""A cluster that does not exist, around the real coordinator: simulated workers, links and aggregator; one clock.

`Coordinator.run()` is the program under test, with its state machine, plan, messages and journal as they are. What it
computes itself is charged by the CPU seconds that it really took; all else by `Costs`. The pool's `poll` moves time on.
"""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.scale_costs import Costs
from es_service import journal
from es_service.aggregator import Applied, Canonical
from es_service.config import RunConfig
from es_service.coordinator import Coordinator
from es_service.directory import RunDirectory
from es_service.journal_writer import JournalWriter
from es_service.messages import (
    Lease,
    LeaseResult,
    Message,
    Order,
    Restore,
    SliceOrder,
    SliceResult,
    decode,
    encode,
)
from es_service.pools import COPIED_BYTES, HEAD, PoolEvent, Ready, Reply
from es_service.problem import layout_of, plan_of, run_id
from es_service.telemetry import Telemetry
from es_service.updates import slices
from es_service.votes import packed_size

__all__ = ["Outcome", "simulate"]


def _digest(generation: int) -> int:
    return 1 + generation


class Clock:
    """Simulated seconds. Between `leave` and `enter` the head computes, and its CPU seconds pass."""

    def __init__(self, costs: Costs) -> None:
        self.now = 0.0
        self.head_busy = 0.0
        self._scale = costs.head_cpu
        self._mark = time.thread_time()

    def enter(self) -> None:
        """The head has called something simulated."""
        self.charge((time.thread_time() - self._mark) * self._scale)

    def leave(self) -> None:
        """Back to the head."""
        self._mark = time.thread_time()

    def charge(self, seconds: float) -> None:
        """The head is busy."""
        self.now += seconds
        self.head_busy += seconds

    def __call__(self) -> float:
        self.enter()
        self.leave()
        return self.now


@dataclass(slots=True)
class _Worker:
    """A replica's generation, and when it has done all that it was sent."""

    replica: int = 0
    free: float = 0.0


@dataclass
class Traffic:
    """Bytes through the head's link, and when each way is free again."""

    bytes_down: int = 0
    bytes_up: int = 0
    down_free: float = 0.0
    up_free: float = 0.0


@dataclass(frozen=True, slots=True)
class _Broadcast:
    """Bytes for all workers: `copied` of them go with each message, or every node has them when they are `ready`."""

    data: bytes
    copied: int
    ready: float


class SimulatedPool:
    """Workers that take exactly as long as `Costs` says. Never fails."""

    size = wave_pairs = 0

    def __init__(self, config: RunConfig, costs: Costs, clock: Clock, seed: int) -> None:
        self.config, self.costs, self.clock = config, costs, clock
        self.traffic = Traffic()
        self.results = 0
        self.evaluating = self.updating = 0.0
        """Seconds of all workers in forward passes and in updates."""
        self._rng = random.Random(seed)
        self._run = run_id(config)
        self._text = config.segment.bytes * config.feeding.passes(config.population)
        self._layout = layout_of(config)
        self._parts = slices(self._layout)
        self._workers = {f"worker-{n + 1}": _Worker() for n in range(config.deployment.workers)}
        self._starts: list[PoolEvent] = [Ready(name, "simulated") for name in self._workers]
        self._workers[HEAD] = _Worker()  # the judge of audits, taken to be as fast
        self._arriving: list[tuple[float, int, str, bytes]] = []
        self._outstanding = 0

    def broadcast(self, data: bytes) -> _Broadcast:
        """As `RayPool`: copies, or an object that nodes hand on to each other."""
        if len(data) * len(self._workers) <= COPIED_BYTES:
            return _Broadcast(data, len(data), 0.0)
        self.clock.enter()
        self.clock.charge(self.costs.ray_call)
        nodes = -(-len(self._workers) // self.costs.node_workers)
        hops = nodes.bit_length()
        self._down(hops * len(data))
        ready = self.clock.now + hops * (self.costs.fetch + self.costs.latency + len(data) / self.costs.link)
        self.clock.leave()
        return _Broadcast(data, 0, ready)

    def send(self, worker: str, data: bytes, parts: Sequence[_Broadcast] = ()) -> None:
        """The bytes go through the head's link; the answer's time is known at once, as a worker does one at a time."""
        self.clock.enter()
        self.clock.charge(self.costs.ray_call / 2)
        self._outstanding += 1
        arrival = self._down(len(data) + sum(part.copied for part in parts)) + self.costs.latency
        whole = b"".join((data, *(part.data for part in parts)))
        self._work(worker, whole, max([arrival, *(part.ready for part in parts)]))
        self.clock.leave()

    def _down(self, num_bytes: int) -> float:
        """When these bytes have left the head."""
        traffic = self.traffic
        traffic.bytes_down += num_bytes
        traffic.down_free = max(traffic.down_free, self.clock.now) + num_bytes / self.costs.link
        return traffic.down_free

    def _work(self, name: str, data: bytes, arrival: float) -> None:
        message = decode(data)
        worker = self._workers[name]
        worker.free = max(worker.free, arrival)
        match message:
            case Order():
                for commit in message.commits:
                    if commit.generation == worker.replica:
                        worker.replica += 1
                        self._update(worker, 1.0, commit.is_step)
                assert worker.replica == message.lease.generation, "an order without the commits that it needs"
                self._answer(name, worker, self._evaluate(worker, message.lease))
            case SliceOrder():
                size = self._parts[message.index].size
                self._update(worker, size / self._layout.size, is_step=False)
                payload = bytes(packed_size(size))
                self._answer(name, worker, SliceResult(self._run, message.generation, message.index, payload))
            case Restore():
                worker.replica = message.generation
                self._outstanding -= 1

    def _evaluate(self, worker: _Worker, lease: Lease) -> LeaseResult:
        pace = max(0.9, self._rng.gauss(1.0, self.costs.jitter)) if self.costs.jitter else 1.0
        seconds = pace * self.costs.evaluation(2 * lease.num_units, self._text)
        self.evaluating += seconds if worker is not self._workers[HEAD] else 0.0
        worker.free += self.costs.host + seconds
        return LeaseResult(
            self._run, lease, 0, -1, 1, _digest(lease.generation), 2 * lease.num_units * self._text, seconds,
            bytes(packed_size(lease.num_units)),
        )  # fmt: skip

    def _answer(self, name: str, worker: _Worker, message: Message) -> None:
        heapq.heappush(self._arriving, (worker.free + self.costs.latency, self.results, name, encode(message)))
        self.results += 1

    def _update(self, worker: _Worker, share: float, is_step: bool) -> None:
        """A joined step, or a share of the whole update from votes."""
        seconds = self.costs.step if is_step else share * self.costs.update_seconds(self.config.population // 2)
        worker.free += seconds
        self.updating += seconds

    def poll(self, timeout: float) -> list[PoolEvent]:
        """All that has arrived; waits for the first as the real one does."""
        self.clock.enter()
        events, self._starts = self._starts, []
        until = self.clock.now + (0.0 if events else timeout)
        if not events and self._arriving and self._next() <= until:
            self.clock.now = max(self.clock.now, self._next())
        elif not events:
            self.clock.now = until
        self.clock.charge(2 * self._outstanding * self.costs.wait_ref)
        while self._arriving and self._next() <= self.clock.now:
            at, _, name, data = heapq.heappop(self._arriving)
            self.traffic.up_free = max(self.traffic.up_free, at) + len(data) / self.costs.link
            self.traffic.bytes_up += len(data)
            self._outstanding -= 1
            self.clock.charge(self.costs.ray_call / 2)
            events.append(Reply(name, data))
        self.clock.leave()
        return events

    def _next(self) -> float:
        return max(self._arriving[0][0], self.traffic.up_free)

    def close(self) -> None:
        """Nothing to end."""


class SimulatedAggregator:
    """Makes each update in the predicted time of the GPU that the config gives it; parameters are never looked at."""

    shared: Any = None

    def __init__(self, config: RunConfig, costs: Costs, clock: Clock, committed: Callable[[], None]) -> None:
        self.costs, self.clock, self.committed = costs, clock, committed
        self.canonical = Canonical(0, np.zeros(0, np.int8), _digest(0))
        self._seconds = {True: costs.step, False: costs.update_seconds(config.population // 2)}
        self._done: list[tuple[float, Applied]] = []

    def submit(self, commit: Any) -> None:
        """Queue a commit."""
        self.clock.enter()
        self.committed()
        began = max(self.clock.now, self._done[-1][0] if self._done else 0.0)
        seconds = self._seconds[commit.is_step]
        canonical = Canonical(commit.generation + 1, self.canonical.parameters_P, _digest(commit.generation + 1))
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
    with JournalWriter.create(run.journal_path, journal.Header(config.spec, _digest(0))) as writer:
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
