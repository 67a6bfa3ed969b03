"""Decides whether an update is made whole by every replica or in slices by some workers, and sees the slices through.

Both give the same bits, so it may change its mind at any time: where slices make trouble, the votes go out instead, and
for some updates after them. Where two workers differ about a slice the head makes it, and of every joined step it makes
one slice too, drawn in secret, if it has the time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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
_WORTH_SHARE = 0.03
"""The same as a share of a generation."""
_PATIENCE = 3.0
"""Multiple of the seconds of a whole update after which the votes go out instead; at least one second."""
_LONGEST_SECONDS = 60.0
"""The same where nothing is known of the time."""
_LONGEST_PAUSE = 64
"""Updates that are made whole after slices: one at first, twice as many each time, at most so many."""


@dataclass(frozen=True, slots=True)
class _Check:
    """What workers made of a slice that the head makes too, and whether it went out as part of a step."""

    answers: Mapping[str, bytes]
    applied: bool


class Updater:
    """One closed generation at a time.

    `send(worker, data, parts, size)` sends a message of so many bytes. What a worker made that `is_wrong` counts no
    more.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: Pool,
        send: Callable[[str, bytes, Sequence[Any], int], None],
        is_wrong: Callable[[str], bool],
    ) -> None:
        layout = layout_of(config)
        self.run = run_id(config)
        self.mode = config.deployment.sliced_updates
        self.pool = pool
        self.send = send
        self.is_wrong = is_wrong
        self.whole_seconds: float | None = None
        """What the last whole update took the head."""
        self._parts = slices(layout)
        if algorithm_of(config).of_tensors(self._parts[0]) is None:
            self.mode = "never"
        self._commit: Commit | None = None
        self._update: SlicedUpdate | None = None
        self._record: Any = None
        self._began = -inf
        self._checks: dict[tuple[int, int], _Check] = {}
        """By generation and index of the slice."""
        self._pause = self._pauses = 0

    @property
    def busy(self) -> bool:
        """Whether slices are under way."""
        return self._update is not None

    @property
    def checking(self) -> bool:
        """Whether the head is still to answer for a slice."""
        return bool(self._checks)

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
        self._assign(workers)
        return True

    def _pays(self, workers: int, generation_seconds: float) -> bool:
        """Whether so many idle workers are to make slices."""
        if self.mode == "never" or workers < OPINIONS:
            return False
        if self.mode == "always":
            return True
        whole = self.whole_seconds
        return whole is not None and whole >= max(_WORTH_SECONDS, _WORTH_SHARE * generation_seconds)

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
        """A slice came back; the workers that are wrong, if it is the head's. A late one counts for nothing.

        Raises `WrongStepError` if a wrong one was part of a step that went out.
        """
        if worker == HEAD:
            return self._compare(result)
        if self._update is not None and result.generation == self._update.generation:
            self._update.returned(worker, result.index, result.payload)
        return []

    def take(self, workers: Sequence[str], now: float) -> Commit | None:
        """The commit to be sent, once it is known: the step, or the votes if slices fail or take too long.

        What is missing goes to `workers`, who are idle.
        """
        if self._update is None or self._commit is None:
            return None
        self._update.withdraw(self.is_wrong)
        commit, update, step = self._commit, self._update, self._update.step
        if step is None and update.dispute is None:
            self._assign(workers)
            if now < self._deadline and not update.stuck:
                return None
        self._commit = self._update = self._record = None
        self._learn(step is not None, now - self._began)
        if update.dispute:
            self._ask_head(commit, *update.dispute, applied=False)
        elif step is not None and not self._checks:
            self._ask_head(commit, *update.drawn(), applied=True)
        return commit if step is None else Commit(commit.generation, commit.threshold, step, is_step=True)

    def _learn(self, joined: bool, took: float) -> None:
        """Slices that failed, or were slower than a whole update, are not tried again for a while."""
        slow = self.mode == "auto" and self.whole_seconds is not None and took >= self.whole_seconds
        self._pauses = 0 if joined and not slow else min(max(1, 2 * self._pauses), _LONGEST_PAUSE)
        self._pause = self._pauses

    def _ask_head(self, commit: Commit, index: int, answers: Mapping[str, bytes], applied: bool) -> None:
        self._checks[commit.generation, index] = _Check(answers, applied)
        self.pool.send(HEAD, encode(SliceOrder(self.run, commit.generation, index, commit.threshold, commit.record)))

    def _compare(self, result: SliceResult) -> list[str]:
        check = self._checks.pop((result.generation, result.index))
        wrong = [name for name, payload in check.answers.items() if payload != result.payload]
        if wrong and check.applied:
            names = " and ".join(wrong)
            raise WrongStepError(f"generation {result.generation}: {names} made the same wrong slice of its update")
        return wrong
