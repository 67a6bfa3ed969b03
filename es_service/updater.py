"""Decides whether an update is made whole by every replica or in slices by some workers, and sees the slices through.

Both give the same bits, so it may change its mind at any time: where slices make trouble, the votes go out instead, and
for some updates after them. Of every joined step the head makes one slice itself, drawn in secret, if it has the time:
workers that agree on a wrong one are found out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

from es_service.config import RunConfig
from es_service.errors import WrongStepError
from es_service.messages import Commit, SliceOrder, SliceResult, encode, encode_slice_order
from es_service.pools import HEAD, Pool
from es_service.problem import algorithm_of, layout_of, run_id
from es_service.updates import OPINIONS, SlicedUpdate, slices

__all__ = ["Updater"]

_WORTH_SECONDS = 0.2
"""Whole updates that take the head less than this are left whole: slices cost round trips."""
_WORTH_SHARE = 0.1
"""The same as a share of a generation."""
_PATIENCE = 3.0
"""Multiple of the seconds of a whole update after which the votes go out instead; at least one second."""
_LONGEST_SECONDS = 60.0
"""The same where nothing is known of the time."""
_LONGEST_PAUSE = 64
"""Updates that are made whole after slices have failed: one at first, twice as many each time, at most so many."""


@dataclass(frozen=True, slots=True)
class _Check:
    """A slice that the head makes too, and the workers that made it."""

    generation: int
    index: int
    payload: bytes
    workers: Sequence[str]


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
        if algorithm_of(config).of_tensors(self._parts[0]) is None:
            self.mode = "never"
        self._commit: Commit | None = None
        self._update: SlicedUpdate | None = None
        self._record: Any = None
        self._began = -inf
        self._tried = 0, 0.0
        """Idle workers at the last update in slices, and the seconds that it took; 0 if it failed."""
        self._check: _Check | None = None
        self._pause = self._pauses = 0

    @property
    def busy(self) -> bool:
        """Whether slices are under way."""
        return self._update is not None

    def begin(self, commit: Commit, workers: Sequence[str], now: float) -> bool:
        """Start on a commit of votes, if slices by these idle workers pay; else it is to be sent as it is."""
        pays = self._pays(len(workers), now - self._began)
        self._began = now
        if not pays:
            return False
        if self._pause:
            self._pause -= 1
            return False
        self._commit = commit
        self._record = self.pool.broadcast(commit.record)
        self._update = SlicedUpdate(commit.generation, self._parts)
        self._tried = len(workers), 0.0
        self._assign(workers)
        return True

    def _pays(self, workers: int, generation_seconds: float) -> bool:
        """Whether so many idle workers are to make slices: where that has been tried, it must have been quicker."""
        if self.mode == "never" or workers < OPINIONS:
            return False
        if self.mode == "always":
            return True
        whole = self.whole_seconds
        if whole is None or whole < max(_WORTH_SECONDS, _WORTH_SHARE * generation_seconds):
            return False
        tried, took = self._tried
        return took < whole or not tried / 2 <= workers <= 2 * tried

    @property
    def _deadline(self) -> float:
        whole = self.whole_seconds
        return self._began + (_LONGEST_SECONDS if whole is None else max(1.0, _PATIENCE * whole))

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
        """A slice came back; the workers that it shows to be wrong. A late one counts for nothing.

        Raises `WrongStepError` if it is the head's and the workers' was another.
        """
        if worker == HEAD:
            self._compare(result)
            return []
        if self._update is None or result.generation != self._update.generation:
            return []
        return self._update.returned(worker, result.index, result.payload)

    def take(self, workers: Sequence[str], now: float) -> Commit | None:
        """The commit to be sent, once it is known: the step, or the votes if slices fail or take too long.

        What is missing goes to `workers`, who are idle.
        """
        if self._update is None or self._commit is None:
            return None
        votes, update, step = self._commit, self._update, self._update.step
        if step is None:
            self._assign(workers)
            if now < self._deadline and not update.stuck:
                return None
        self._commit = self._update = self._record = None
        if step is None:
            self._pauses = min(max(1, 2 * self._pauses), _LONGEST_PAUSE)
            self._pause = self._pauses
            return votes
        self._pauses = 0
        self._tried = self._tried[0], now - self._began
        if self._check is None:
            self._ask_head(votes, update)
        return Commit(votes.generation, votes.threshold, step, is_step=True)

    def _ask_head(self, commit: Commit, update: SlicedUpdate) -> None:
        self._check = _Check(commit.generation, *update.drawn())
        order = SliceOrder(self.run, commit.generation, self._check.index, commit.threshold, commit.record)
        self.pool.send(HEAD, encode(order))

    def _compare(self, result: SliceResult) -> None:
        check, self._check = self._check, None
        assert check
        assert (check.generation, check.index) == (result.generation, result.index)
        if result.payload != check.payload:
            raise WrongStepError(
                f"generation {check.generation}: {' and '.join(check.workers)} made the same wrong slice of its update"
            )
