"""Decides whether an update is made whole by every replica or in slices by some workers, and sees the slices through.

Both give the same bits, so it may change its mind at any time: where slices make trouble, the votes go out instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from es_service.config import RunConfig
from es_service.messages import Commit, SliceResult, encode_slice_order
from es_service.pools import Pool
from es_service.problem import algorithm_of, layout_of, run_id
from es_service.updates import OPINIONS, SlicedUpdate, slices

__all__ = ["Updater"]

_ROUND_TRIP_SECONDS = 0.1
"""What slices cost beside the arithmetic: the votes to some workers, the slices back, the step to all."""
_PATIENCE = 3.0
"""Multiple of the expected seconds after which the votes go out instead."""
_LONGEST_SECONDS = 60.0
"""The same where nothing is known of the time."""


class Updater:
    """One closed generation at a time. `send(worker, data, parts, size)` sends a message of so many bytes."""

    def __init__(self, config: RunConfig, pool: Pool, send: Callable[[str, bytes, Sequence[Any], int], None]) -> None:
        layout = layout_of(config)
        self.run = run_id(config)
        self.mode = config.deployment.sliced_updates
        self.pool = pool
        self.send = send
        self.whole_seconds: float | None = None
        """What the last whole update took the head."""
        self._parts = slices(layout)
        self._share = max(part.size for part in self._parts) / layout.size
        if algorithm_of(config).of_tensors(self._parts[0]) is None:
            self.mode = "never"
        self._commit: Commit | None = None
        self._update: SlicedUpdate | None = None
        self._record: Any = None
        self._deadline = 0.0

    @property
    def busy(self) -> bool:
        """Whether slices are under way."""
        return self._update is not None

    def begin(self, commit: Commit, workers: Sequence[str], now: float) -> bool:
        """Start on a commit of votes, if slices by these idle workers pay; else it is to be sent as it is."""
        expected = self._expected(len(workers))
        if self.mode == "never" or len(workers) < OPINIONS:
            return False
        if self.mode == "auto" and (expected is None or self.whole_seconds is None or expected >= self.whole_seconds):
            return False
        self._commit = commit
        self._record = self.pool.broadcast(commit.record)
        self._update = SlicedUpdate(commit.generation, self._parts)
        self._deadline = now + (_LONGEST_SECONDS if expected is None else max(1.0, _PATIENCE * expected))
        self._assign(workers)
        return True

    def _expected(self, workers: int) -> float | None:
        if self.whole_seconds is None or not workers:
            return None
        rounds = -(-OPINIONS * len(self._parts) // workers)
        return self.whole_seconds * self._share * rounds + _ROUND_TRIP_SECONDS

    def _assign(self, workers: Iterable[str]) -> None:
        if self._update is None or self._commit is None:
            return
        commit, size = self._commit, len(self._commit.record)
        for worker, index in self._update.assign(workers):
            data = encode_slice_order(self.run, commit.generation, index, commit.threshold, size)
            self.send(worker, data, [self._record], len(data) + size)

    def left(self, worker: str) -> None:
        """The worker is gone, or answered with nonsense."""
        if self._update is not None:
            self._update.left(worker)

    def answered(self, worker: str, result: SliceResult) -> list[str]:
        """A slice came back; the workers that it shows to be wrong. A late one counts for nothing."""
        if self._update is None or result.generation != self._update.generation:
            return []
        return self._update.returned(worker, result.index, result.payload)

    def take(self, workers: Sequence[str], now: float) -> Commit | None:
        """The commit to be sent, once it is known: the step, or the votes if slices fail or take too long.

        What is missing goes to `workers`, who are idle.
        """
        if self._update is None or self._commit is None:
            return None
        votes, step = self._commit, self._update.step
        if step is None:
            self._assign(workers)
            if now < self._deadline and not self._update.stuck:
                return None
        self._commit = self._update = self._record = None
        return votes if step is None else Commit(votes.generation, votes.threshold, step, is_step=True)
