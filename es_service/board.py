"""The leases of the open generation: which wait, who holds which, what came back. Pure.

Every step costs O(1), but for taking a worker's results back, which happens to liars only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Set
from math import inf

from es_service.messages import Lease, LeaseResult
from es_service.plan import Plan
from es_service.pools import HEAD
from es_service.slots import Agree, Slot

__all__ = ["Board"]


class Board:
    """One generation. `agree` tells whether two results on equal parameters can both be right."""

    def __init__(self, generation: int, plan: Plan, is_audited: Callable[[int], bool], agree: Agree) -> None:
        self.generation = generation
        self.slots = [Slot(index, is_audited(index)) for index in range(len(plan))]
        self.unsettled = len(self.slots)
        self._doubtful: set[int] = set()  # leases that have a result and need another
        self._changed: set[int] = set()  # those of them of which something changed since `doubts` were told
        self._plan = plan
        self._agree = agree
        self._now = inf  # of the last assignment
        self._waiting: deque[Slot] = deque()
        self._newest: dict[int, tuple[float, str]] = {}  # last assignment of each unsettled lease, oldest first
        for slot in self.slots:
            self._queue(slot)

    def take(self) -> Slot | None:
        """The next lease that must be given to somebody; `put_back` it, or `give` it."""
        while self._waiting:
            slot = self._waiting.popleft()
            slot.queued -= 1
            if slot.missing > slot.queued:  # else a result came meanwhile
                return slot
        return None

    def put_back(self, slot: Slot) -> None:
        """Nobody could have it now: it is the next again."""
        self._waiting.appendleft(slot)
        slot.queued += 1

    def give(self, slot: Slot, name: str, now: float) -> Lease:
        """The worker has the lease from now on; HEAD is never overdue."""
        slot.holders.add(name)
        if slot.index in self._doubtful:
            self._changed.add(slot.index)
        if name != HEAD:
            self._now = now
            self._newest.pop(slot.index, None)
            self._newest[slot.index] = now, name
        slot.attempts += 1
        return Lease(self.generation, *self._plan.range(slot.index), slot.attempts - 1)

    def release(self, slot: Slot, name: str) -> None:
        """The worker does not have it any more; if it is still wanted, it waits for another."""
        slot.holders.discard(name)
        self._refresh(slot)

    def add(self, slot: Slot, name: str, result: LeaseResult) -> str:
        """Put a result to the others; the word for what it is beside them, or nothing for the first one.

        The same worker's second answer does not count, whatever it says. `weigh` the lease afterwards.
        """
        if name in slot.results:
            return "duplicate" if self._same(slot.results[name], result) else "mismatch"
        others = list(slot.results.values())
        slot.results[name] = result
        if not others:
            return ""
        if not all(self._same(other, result) for other in others):
            return "mismatch"
        return "audited" if slot.audited and not slot.verdict.believed else "duplicate"

    def weigh(self, slot: Slot) -> tuple[str, ...]:
        """Judge a lease again after its results changed; the workers that turn out to be wrong."""
        settled = bool(slot.verdict.believed)
        verdict = slot.judge(self._agree)
        self.unsettled += settled - bool(verdict.believed)
        if slot.results and not verdict.believed:
            self._doubtful.add(slot.index)
        else:
            self._doubtful.discard(slot.index)
        self._refresh(slot)
        return verdict.wrong

    def doubts(self, changed: bool) -> list[Slot]:
        """Leases that have a result and need another; all, or those that `changed` since this was asked last."""
        told, self._changed = self._doubtful & self._changed if changed else self._doubtful, set()
        return [self.slots[index] for index in sorted(told)]

    @property
    def believed(self) -> set[str]:
        """Workers whose results count; once all leases are settled."""
        return {slot.verdict.believed[0] for slot in self.slots}

    def withdraw(self, name: str) -> Iterator[Slot]:
        """Take all results of a worker away; yields their leases, to be weighed."""
        for slot in self.slots:
            if slot.results.pop(name, None) is not None:
                yield slot

    def cast_on_others(self, digest: int) -> list[tuple[str, Slot, LeaseResult]]:
        """Results that were cast on other parameters than these."""
        return [
            (name, slot, result)
            for slot in self.slots
            for name, result in slot.results.items()
            if result.digest != digest
        ]

    def overdue(self, limit: float) -> list[tuple[Slot, str]]:
        """Unsettled leases that were last given out before `limit`, and to whom; the oldest first.

        Not those whose results were cast on different parameters: the aggregator tells which are right.
        """
        late: list[tuple[Slot, str]] = []
        for index, (since, name) in self._newest.items():
            if since >= limit:
                break
            if self.slots[index].verdict.wanted:
                late.append((self.slots[index], name))
        return late

    def waiting_for(self, slow: Set[str], held: list[tuple[str, int]]) -> list[tuple[Slot, str]]:
        """Of these (worker, lease), those where too few others have the lease, or had it, that are not slow."""
        found = [(self.slots[index], name) for name, index in held]
        return [(slot, name) for slot, name in found if len(slot.holders - slow) < slot.verdict.wanted]

    def start_clock(self, now: float) -> None:
        """Leases that were given out before the first tick count from it."""
        self._now = now
        self._newest = {index: (now, name) for index, (_, name) in self._newest.items()}

    def _queue(self, slot: Slot) -> None:
        """Put it into the queue as often as it must still be given out; at its head for a second opinion."""
        while slot.queued < slot.missing:
            (self._waiting.appendleft if slot.results else self._waiting.append)(slot)
            slot.queued += 1

    def _refresh(self, slot: Slot) -> None:
        if slot.index in self._doubtful:
            self._changed.add(slot.index)
        if slot.verdict.believed or not (slot.holders or slot.results):
            self._newest.pop(slot.index, None)
        elif slot.index not in self._newest:  # it was settled by a result that was taken away
            self._newest[slot.index] = self._now, min(slot.holders or slot.results)
        self._queue(slot)

    def _same(self, a: LeaseResult, b: LeaseResult) -> bool:
        return a.digest == b.digest and self._agree(a, b)
