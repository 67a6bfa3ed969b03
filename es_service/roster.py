"""Who works for the run: the leases that each worker holds, and who may take the next. Pure; every step is O(1)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Roster", "State", "Worker"]

_MOST_RUNS = 32
"""Runs of generations that are told apart for each worker; beyond that the two oldest become one, gap and all."""


class State(Enum):
    """What a worker may do. A quarantined one gave wrong results; a draining one is about to be taken away."""

    ACTIVE = "active"
    DRAINING = "draining"
    QUARANTINED = "quarantined"


@dataclass(slots=True)
class Worker:
    """Leases that a worker holds: (generation, index) -> time of assignment. `faults` since its last good result.

    One that `shares` the canonical parameters waits for the aggregator instead of making each update again.
    """

    shares: bool = False
    state: State = State.ACTIVE
    leases: dict[tuple[int, int], float] = field(default_factory=dict)
    faults: int = 0
    divergences: int = 0
    """Results in a row that were cast on wrong parameters."""


class Roster:
    """Workers by name, in shelves of equal load. The least loaded come first, among them those without faults."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.workers: dict[str, Worker] = {}
        self.in_flight = 0
        """Leases held by all workers."""
        self._shelves: dict[tuple[int, bool, bool], dict[str, None]] = {
            (load, faulty, shares): {} for load in range(depth) for faulty in (False, True) for shares in (False, True)
        }
        self._shelf_of: dict[str, tuple[int, bool, bool]] = {}
        self._states: Counter[State] = Counter()
        self.wrong: dict[str, None] = {}
        """Workers that were found wrong, here or gone."""
        self._touched: dict[str, list[list[int]]] = {}
        """[first, last] of each run of committed generations that hold votes of a worker, be it here or gone."""

    @property
    def size(self) -> int:
        """Workers that are here, in whatever state."""
        return len(self.workers)

    @property
    def active(self) -> int:
        """Workers that may be given leases."""
        return self._states[State.ACTIVE]

    def is_active(self, name: str) -> bool:
        """Whether a worker of this name is here and may be given leases."""
        return name in self.workers and self.workers[name].state is State.ACTIVE

    def is_quarantined(self, name: str) -> bool:
        """Whether the worker of this name was found wrong, be it here or gone: what it sent may still arrive."""
        return name in self.wrong

    @property
    def any_sound(self) -> bool:
        """Whether there are workers that are not quarantined."""
        return len(self.workers) > self._states[State.QUARANTINED]

    def states(self) -> Counter[str]:
        """How many workers are in each state."""
        return Counter({state.value: count for state, count in self._states.items() if count})

    def add(self, name: str, worker: Worker) -> None:
        """Put in a worker that holds nothing."""
        self.workers[name] = worker
        self.wrong.pop(name, None)
        self._states[worker.state] += 1
        self._shelve(name)

    def remove(self, name: str) -> Worker | None:
        """Take a worker out; what it held is in the answer."""
        worker = self.workers.pop(name, None)
        if worker is not None:
            self._states[worker.state] -= 1
            self.in_flight -= len(worker.leases)
            self._unshelve(name)
        return worker

    def set_state(self, name: str, state: State) -> None:
        """A worker that is not active keeps what it holds and gets no more; one that is not here stays away."""
        if state is State.QUARANTINED:
            self.wrong[name] = None
        worker = self.workers.get(name)
        if worker is None:
            return
        self._states[worker.state] -= 1
        self._states[state] += 1
        worker.state = state
        self._shelve(name)

    def give(self, name: str, key: tuple[int, int], now: float) -> None:
        """The worker holds this lease from `now` on."""
        self.workers[name].leases[key] = now
        self.in_flight += 1
        self._shelve(name)

    def release(self, name: str, key: tuple[int, int]) -> float | None:
        """Take a lease back from its holder; when it was given out, if it was."""
        worker = self.workers.get(name)
        since = worker.leases.pop(key, None) if worker else None
        if since is not None:
            self.in_flight -= 1
            self._shelve(name)
        return since

    def take_all(self, name: str) -> list[tuple[int, int]]:
        """Take back what a worker holds."""
        keys = list(self.workers[name].leases) if name in self.workers else []
        for key in keys:
            self.release(name, key)
        return keys

    def held_by(self, names: Iterable[str], generation: int) -> list[tuple[str, int]]:
        """(name, index) of each lease of a generation that these workers hold."""
        return [(name, index) for name in names for when, index in self.workers[name].leases if when == generation]

    def fault(self, name: str) -> int:
        """It becomes the last choice until it is `sound` again; its faults since it was. 0: gone, or in quarantine."""
        if name not in self.workers or self.is_quarantined(name):
            return 0
        self.workers[name].faults += 1
        self._shelve(name)
        return self.workers[name].faults

    def reads(self, name: str) -> bool:
        """Whether it takes the canonical parameters from memory: after a fault it does not, until it is `sound`."""
        return self.workers[name].shares and not self.workers[name].faults

    def diverged(self, name: str, counts: bool) -> int:
        """It voted on wrong parameters again: so many times in a row now."""
        if name not in self.workers:
            return 0
        self.workers[name].divergences += counts
        return self.workers[name].divergences

    def sound(self, name: str, current: bool) -> None:
        """It gave a good result, on parameters that were compared if they are `current`."""
        worker = self.workers.get(name)
        if worker is not None:
            worker.faults = 0
            worker.divergences *= not current
            self._shelve(name)

    def has_room(self, current: bool) -> bool:
        """Whether `with_room` gives anybody."""
        return any(True for _ in self.with_room(current))

    def with_room(self, current: bool, idle: bool = False) -> Iterator[str]:
        """Active workers that hold less than `depth` leases, or none if they must be `idle`; the best first.

        Without `current`, only those that need not share the parameters of the open generation.
        """
        for load in range(1 if idle else self.depth):
            for faulty in (False, True):
                for shares in (False, True)[: 1 + current]:
                    yield from self._shelves[load, faulty, shares]

    def touched(self, name: str) -> str:
        """The committed generations that hold votes of a worker, such as "0-4, 7"; of those long ago, roughly."""
        runs = self._touched.get(name, [])
        return ", ".join(f"{first}-{last}" if first < last else f"{first}" for first, last in runs)

    def touch(self, names: Iterable[str], generation: int) -> None:
        """Votes of these workers are in the record of `generation`."""
        for name in names:
            runs = self._touched.setdefault(name, [])
            if runs and runs[-1][1] >= generation - 1:
                runs[-1][1] = generation
            else:
                runs.append([generation, generation])
            if len(runs) > _MOST_RUNS:
                runs[:2] = [[runs[0][0], runs[1][1]]]

    def start_clock(self, now: float) -> None:
        """Leases that were given out before the first tick count from it."""
        for worker in self.workers.values():
            worker.leases = dict.fromkeys(worker.leases, now)

    def _shelve(self, name: str) -> None:
        worker = self.workers[name]
        load = len(worker.leases)
        shelf = (load, worker.faults > 0, worker.shares)
        if worker.state is not State.ACTIVE or load >= self.depth:
            self._unshelve(name)
        elif self._shelf_of.get(name) != shelf:
            self._unshelve(name)
            self._shelves[shelf][name] = None
            self._shelf_of[name] = shelf

    def _unshelve(self, name: str) -> None:
        shelf = self._shelf_of.pop(name, None)
        if shelf is not None:
            del self._shelves[shelf][name]
