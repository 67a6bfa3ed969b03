"""The state machine of a run: events in, commands out. No Ray, clock, file or thread; time is an event.

One generation is open at a time. Its plan is a set of leases; each is assigned, perhaps more than once, and its first
valid result counts. When every lease has one and their digests agree, the generation closes; the shell writes the
record and answers `Committed`. The aggregator follows behind and reports each canonical digest: it decides where
replicas disagree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from statistics import median

from es_service.events import (
    Aggregated,
    Assign,
    Close,
    Command,
    Committed,
    Event,
    Fell,
    Finish,
    Joined,
    Left,
    Notice,
    Pause,
    Returned,
    SendRestore,
    Stop,
    Tick,
)
from es_service.messages import Lease, LeaseResult
from es_service.plan import Plan

__all__ = ["Machine", "Policy"]


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules that depend on the deployment only."""

    goal: int
    """Generation at which the run is finished."""
    max_lag: int = 2
    """Generations that the canonical parameters may be behind before no more leases are issued."""
    depth: int = 2
    """Leases that a worker holds at once, so that it never waits for the next."""
    lease_timeout: float = 600.0
    """Seconds after which a lease is also given to another worker."""
    hedge_factor: float = 3.0
    """The same, as a multiple of the median time that leases were held, once that is known."""
    hedge_floor: float = 1.0
    """Least seconds before a second attempt."""


class _Phase(Enum):
    OPEN = "open"
    CLOSING = "closing"
    ENDED = "ended"


@dataclass(slots=True)
class _Worker:
    """Leases that a worker holds: (generation, index) -> time of assignment. `faults` since its last good result.

    One that `shares` the canonical parameters waits for the aggregator instead of making each update again.
    """

    shares: bool = False
    leases: dict[tuple[int, int], float] = field(default_factory=dict)
    faults: int = 0


class Machine:
    """`plan_of(generation)` gives the plan of each generation; `digest` belongs to the canonical `aggregated`."""

    def __init__(
        self, plan_of: Callable[[int], Plan], policy: Policy, generation: int, aggregated: int, digest: int
    ) -> None:
        self.plan_of = plan_of
        self.policy = policy
        self.generation = generation
        self.aggregated = aggregated
        self.now = inf
        self._canonical = digest
        self._phase = _Phase.OPEN
        self._stopping: str | None = None
        self._workers: dict[str, _Worker] = {}
        self._recorded: dict[int, int] = {}
        self._seconds: deque[float] = deque(maxlen=64)
        self._open()

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands that follow from it."""
        if self._phase is _Phase.ENDED and not isinstance(event, Aggregated):
            return []
        match event:
            case Joined(worker, shares):
                self._drop(worker)
                self._workers[worker] = _Worker(shares)
                return [SendRestore(worker), *self._assign()]
            case Left(worker):
                self._drop(worker)
                return self._assign()
            case Returned(worker, result):
                return self._returned(worker, result)
            case Fell(worker, lease, reason):
                return self._fell(worker, lease, reason)
            case Committed(generation):
                return self._committed(generation)
            case Aggregated(generation, digest):
                return self._aggregated(generation, digest)
            case Tick(now):
                self._tick(now)
                return self._assign() + self._hedge()
            case Stop(reason):
                self._stopping = reason
                return self._end(reason) if self._phase is _Phase.OPEN else []

    @property
    def in_flight(self) -> int:
        """Leases held by workers now."""
        return sum(len(worker.leases) for worker in self._workers.values())

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers that are there."""
        return tuple(self._workers)

    def _open(self) -> None:
        self._plan = self.plan_of(self.generation)
        self._pending = deque(range(len(self._plan)))
        self._attempts = [0] * len(self._plan)
        self._tally: dict[int, tuple[str, LeaseResult]] = {}
        self._against: dict[str, int] = {}

    def _tick(self, now: float) -> None:
        """Leases given out before the first tick count from it."""
        if self.now == inf:
            for worker in self._workers.values():
                worker.leases = dict.fromkeys(worker.leases, now)
        self.now = now

    def _end(self, reason: str) -> list[Command]:
        self._phase = _Phase.ENDED
        return [Finish(self.generation, reason)]

    # Leases out.

    def _assign(self) -> list[Command]:
        commands: list[Command] = []
        if self._phase is not _Phase.OPEN or self.generation - self.aggregated > self.policy.max_lag:
            return commands
        while self._pending:
            room = {name: w for name, w in self._able().items() if len(w.leases) < self.policy.depth}
            if not room:
                break
            name = min(room, key=lambda worker: (len(room[worker].leases), room[worker].faults))
            commands.append(self._give(name, self._pending.popleft()))
        return commands

    def _able(self) -> dict[str, _Worker]:
        """Workers that can have the parameters of the open generation."""
        current = self.aggregated == self.generation
        return {name: worker for name, worker in self._workers.items() if current or not worker.shares}

    def _give(self, name: str, index: int) -> Assign:
        first, units = self._plan.range(index)
        self._workers[name].leases[self.generation, index] = self.now
        self._attempts[index] += 1
        return Assign(name, Lease(self.generation, first, units, self._attempts[index] - 1))

    def _hedge(self) -> list[Command]:
        """Give each lease of which every holder is overdue to an idle worker as well, the oldest first."""
        commands: list[Command] = []
        idle = sorted((name for name, w in self._able().items() if not w.leases), key=self._faults, reverse=True)
        if self._phase is not _Phase.OPEN or not idle:
            return commands
        newest: dict[int, tuple[float, str]] = {}
        for name, worker in self._workers.items():
            for (generation, index), since in worker.leases.items():
                if generation == self.generation and index not in self._tally:
                    newest[index] = max(newest.get(index, (since, name)), (since, name))
        for index, (since, name) in sorted(newest.items(), key=lambda item: item[1]):
            if idle and self.now - since > self._deadline():
                commands.append(Notice("hedged", name, self.generation, f"lease {index}"))
                commands.append(self._give(idle.pop(), index))
        return commands

    def _faults(self, name: str) -> int:
        return self._workers[name].faults

    def _deadline(self) -> float:
        if not self._seconds:
            return self.policy.lease_timeout
        usual = self.policy.hedge_factor * median(self._seconds)
        return min(self.policy.lease_timeout, max(self.policy.hedge_floor, usual))

    # Results in.

    def _returned(self, name: str, result: LeaseResult) -> list[Command]:
        index = self._index_of(result.lease)
        if index is None:
            return self._malformed(name, "no such lease in the plan")
        since = self._release(name, result.lease.generation, index)
        if since is not None and since < inf:
            self._seconds.append(self.now - since)
        if result.lease.generation != self.generation or self._phase is not _Phase.OPEN:
            return [Notice("late", name, result.lease.generation), *self._assign()]
        if self.aggregated == self.generation and result.digest != self._canonical:
            return self._reject({index: (name, result)}) + self._assign()
        return self._count(name, index, result) + self._close() + self._assign()

    def _index_of(self, lease: Lease) -> int | None:
        """Place of a lease in the plan of its generation; None if no such lease can have been given out."""
        if lease.generation > self.generation:
            return None
        plan = self.plan_of(lease.generation)
        index = lease.first_unit // plan.lease_units
        known = index < len(plan) and plan.range(index) == (lease.first_unit, lease.num_units)
        return index if known else None

    def _count(self, name: str, index: int, result: LeaseResult) -> list[Command]:
        if name in self._workers:
            self._workers[name].faults = 0
        if index not in self._tally:
            self._tally[index] = (name, result)
            if index in self._pending:
                self._pending.remove(index)
            return []
        first = self._tally[index][1]
        same = (first.payload, first.digest) == (result.payload, result.digest)
        return [Notice("duplicate" if same else "mismatch", name, self.generation, f"lease {index}")]

    def _reject(self, wrong: dict[int, tuple[str, LeaseResult]]) -> list[Command]:
        """Results cast on other parameters than the canonical ones: evaluate again, rebuild those replicas."""
        self._against |= {name: result.digest for name, result in wrong.values()}
        everyone = len(self._against) > 1 and self._workers.keys() <= self._against.keys()
        if everyone and len(set(self._against.values())) == 1:
            return self._pause(self.generation, next(iter(self._against.values())))
        commands: list[Command] = []
        for index, (name, _) in wrong.items():
            commands.append(Notice("diverged", name, self.generation, f"lease {index}"))
            self._requeue(index)
        for name in dict.fromkeys(name for name, _ in wrong.values()):
            commands += self._rebuild(name)
        return commands

    def _rebuild(self, name: str) -> list[Command]:
        """The replica of a worker that is there cannot be used: it gets another, and is the last choice for a while."""
        if name not in self._workers:
            return []
        self._workers[name].faults += 1
        return [SendRestore(name)]

    def _requeue(self, index: int) -> None:
        held = any((self.generation, index) in worker.leases for worker in self._workers.values())
        if index not in self._tally and index not in self._pending and not held:
            self._pending.append(index)

    def _release(self, name: str, generation: int, index: int) -> float | None:
        """Take a lease back from its holder; when it was given out, if it was."""
        worker = self._workers.get(name)
        return worker.leases.pop((generation, index), None) if worker else None

    def _drop(self, name: str) -> _Worker:
        """Take a worker away, and back what it holds."""
        worker = self._workers.pop(name, _Worker())
        for generation, index in worker.leases:
            if generation == self.generation:
                self._requeue(index)
        return worker

    def _fell(self, name: str, lease: Lease | None, reason: str) -> list[Command]:
        index = self._index_of(lease) if lease else None
        if lease is None or index is None:
            return self._malformed(name, reason)
        self._release(name, lease.generation, index)
        if lease.generation == self.generation:
            self._requeue(index)
        return [Notice("fell", name, lease.generation, reason), *self._rebuild(name), *self._assign()]

    def _malformed(self, name: str, reason: str) -> list[Command]:
        """Nobody knows which lease this was to answer: take back all that the worker holds."""
        commands: list[Command] = [Notice("malformed", name, self.generation, reason)]
        if name in self._workers:
            old = self._drop(name)
            self._workers[name] = _Worker(old.shares, faults=old.faults)
        return commands + self._rebuild(name) + self._assign()

    # Generations.

    def _close(self) -> list[Command]:
        if len(self._tally) < len(self._plan):
            return []
        results = tuple(self._tally[index][1] for index in range(len(self._plan)))
        if len({result.digest for result in results}) > 1:
            return []  # the aggregator decides when it gets here
        self._phase = _Phase.CLOSING
        return [Close(self.generation, results)]

    def _committed(self, generation: int) -> list[Command]:
        if self._phase is not _Phase.CLOSING or generation != self.generation:
            raise AssertionError(f"commit of generation {generation}, while {self.generation} is {self._phase.value}")
        digest = self._tally[0][1].digest
        if self.aggregated < generation:
            self._recorded[generation] = digest
        elif digest != self._canonical:
            return self._pause(generation, digest)
        self.generation += 1
        self._phase = _Phase.OPEN
        if self.generation >= self.policy.goal:
            return self._end("goal")
        if self._stopping:
            return self._end(self._stopping)
        self._open()
        return self._assign()

    def _aggregated(self, generation: int, digest: int) -> list[Command]:
        self.aggregated, self._canonical = generation, digest
        recorded = self._recorded.pop(generation, digest)
        if recorded != digest:
            return self._pause(generation, recorded)
        if generation != self.generation or self._phase is not _Phase.OPEN:
            return self._assign()
        wrong = {index: vote for index, vote in self._tally.items() if vote[1].digest != digest}
        for index in wrong:
            del self._tally[index]
        return (self._reject(wrong) if wrong else []) + self._assign()

    def _pause(self, generation: int, theirs: int) -> list[Command]:
        self._phase = _Phase.ENDED
        return [
            Pause(
                f"generation {generation}: the replicas agree on digest {theirs:016x} and the canonical parameters "
                f"have {self._canonical:016x}; replay with --verify to find which is right"
            )
        ]
