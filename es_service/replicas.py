"""What the replica of each worker has, and what it must be sent: parameters when it joins, then commits."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from es_service.aggregator import Aggregator
from es_service.messages import Commit, Lease, Share, encode, encode_commit, encode_order, encode_restore
from es_service.pools import Pool

__all__ = ["Replicas"]

_KEPT_COMMITS = 32


@dataclass(frozen=True, slots=True)
class _Sendable:
    """The commit that leaves `generation`, or its parameters: `size` bytes, as the pool wants them."""

    generation: int
    size: int
    data: Any


class Replicas:
    """`send(worker, data, parts, size)` sends a message of so many bytes.

    `reads` tells whether a worker takes the canonical parameters from memory of this node now.
    """

    def __init__(
        self,
        run: int,
        max_lag: int,
        pool: Pool,
        aggregator: Aggregator,
        send: Callable[[str, bytes, Sequence[Any], int], None],
        reads: Callable[[str], bool],
    ) -> None:
        self.run = run
        self.pool = pool
        self.aggregator = aggregator
        self.send = send
        self.reads = reads
        self.generations: dict[str, int] = {}
        """Of each worker, when it has handled what it was sent."""
        self.sharing: set[str] = set()
        """Workers of this node, which take the canonical parameters from memory unless that failed."""
        self.empty = Counter[str]()
        """Empty replies that are still to come from each worker: those to parameters, and to commits alone."""
        self._recent: deque[_Sendable] = deque(maxlen=_KEPT_COMMITS + max_lag)
        self._parameters = _Sendable(0, 0, None)  # none stand for those of the seed

    def left(self, worker: str) -> None:
        """It is gone."""
        self.generations.pop(worker, None)
        self.sharing.discard(worker)
        self.empty.pop(worker, None)

    def publish(self, commit: Commit) -> None:
        """Make a commit ready for all workers; it goes to each with its next lease."""
        data = encode_commit(commit)
        self._recent.append(_Sendable(commit.generation, len(data), self.pool.broadcast(data)))

    def order(self, worker: str, lease: Lease, threshold: int) -> None:
        """Send a lease, after the commits that the replica lacks."""
        commits = self._commits_for(worker, lease.generation)
        data = encode_order(self.run, lease, threshold, len(commits))
        self.send(worker, data, [c.data for c in commits], len(data) + sum(c.size for c in commits))
        self.generations[worker] = lease.generation

    def keep_up(self, workers: Iterable[str], generation: int) -> None:
        """Send the commits alone to workers that got no lease, so that their next lease need not wait for updates."""
        for worker in workers:
            if worker not in self.sharing and self.generations[worker] < generation:
                self.order(worker, Lease(generation, 0, 0, 0), 0)
                self.empty[worker] += 1

    def restore(self, worker: str) -> None:
        """Send the canonical parameters: made ready once a generation, for all workers that join in it."""
        canonical = self.aggregator.canonical
        what = (self.run, canonical.generation, canonical.digest)
        if self.reads(worker):
            data = encode(Share(*what, str(self.aggregator.shared.path)))
            self.send(worker, data, [], len(data))
        else:
            if self._parameters.generation != canonical.generation:
                data = canonical.parameters_P.tobytes()
                self._parameters = _Sendable(canonical.generation, len(data), self.pool.broadcast(data))
            size = self._parameters.size
            data = encode_restore(*what, size)
            self.send(worker, data, [self._parameters.data] if size else [], len(data) + size)
        self.empty[worker] += 1
        self.generations[worker] = canonical.generation

    def _commits_for(self, worker: str, generation: int) -> tuple[_Sendable, ...]:
        """Commits between what the replica has and `generation`; restores it first if they are no longer kept."""
        oldest = self._recent[0].generation if self._recent else generation
        if self.generations[worker] < (generation if self.reads(worker) else oldest):
            self.restore(worker)
        return tuple(commit for commit in self._recent if self.generations[worker] <= commit.generation < generation)
