"""The canonical parameters: every commit is applied to them in one background thread.

Replicas elsewhere make the same update themselves and do not wait; workers on this node read the result instead.

The digest of the canonical parameters decides where replicas disagree, keyframes are saved from them alone, and
joiners are sent them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from es_service.algorithms.base import AbstractAlgorithm
from es_service.messages import Commit
from es_service.shared import SharedParameters
from es_service.types import Int8Array, Layout, Ops, TensorKind
from es_service.updates import apply_commit

__all__ = ["Aggregator", "Applied", "Canonical", "Evaluated", "HeldOut", "saturated_ratios"]


@dataclass(frozen=True, slots=True)
class Canonical:
    """The canonical parameters of one generation; the array is never written to again."""

    generation: int
    parameters_P: Int8Array
    digest: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Made by the aggregator, read by the coordinator: one more generation is canonical.

    `moved` counts weights; `saturated` is the share of the weights of each tensor kind that are at the ends of their
    range; `is_step` if the update was made in slices elsewhere.
    """

    canonical: Canonical
    moved: int
    seconds: float
    saturated: Mapping[TensorKind, float]
    is_step: bool = False


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the unperturbed model makes of held-out data.

    Bits for each byte, which for a classifier is a label, and the share of right predictions where that is measured.
    """

    bits_per_byte: float
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Made by the aggregator, read by the coordinator: a canonical generation on held-out data."""

    generation: int
    held_out: HeldOut


News = Applied | Evaluated | BaseException
"""What the thread hands over; an exception is the last of it."""


class Aggregator:
    """Applies commits in order. `after(canonical)` runs in the thread after each: it saves, and may evaluate."""

    def __init__(
        self,
        algorithm: AbstractAlgorithm,
        layout: Layout,
        ops: Ops,
        start: Canonical,
        after: Callable[[Canonical], HeldOut | None],
        shared: SharedParameters,
    ) -> None:
        self.algorithm = algorithm
        self.layout = layout
        self.ops = ops
        self.after = after
        self.shared = shared
        self._canonical = start
        shared.publish(start.generation, start.parameters_P)
        self._commits: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="aggregator", daemon=True)
        self._thread.start()

    @property
    def canonical(self) -> Canonical:
        """The newest canonical parameters."""
        return self._canonical

    def submit(self, commit: Commit) -> None:
        """Queue a commit; commits must come in order."""
        self._commits.put(commit)

    def take(self, timeout: float = 0.0) -> list[News]:
        """What has happened since the last call; waits up to `timeout` seconds for the first."""
        news: list[News] = []
        try:
            news.append(self._news.get(timeout=timeout) if timeout > 0 else self._news.get_nowait())
            while True:
                news.append(self._news.get_nowait())
        except queue.Empty:
            return news

    def close(self) -> list[News]:
        """Apply what is queued, end the thread, return what had not been taken. May be called twice."""
        self._commits.put(None)
        self._thread.join()
        self.shared.close()
        return self.take()

    def _run(self) -> None:
        try:
            while (commit := self._commits.get()) is not None:
                self._news.put(self._apply(commit))
                held_out = self.after(self._canonical)
                if held_out is not None:
                    self._news.put(Evaluated(self._canonical.generation, held_out))
        except BaseException as error:  # handed over: the coordinator raises it in its own thread
            self._news.put(error)

    def _apply(self, commit: Commit) -> Applied:
        began = time.perf_counter()
        assert commit.generation == self._canonical.generation, "commits out of order"
        parameters_P = self._canonical.parameters_P.copy()
        moved = apply_commit(self.algorithm, self.ops, self.layout, parameters_P, commit)
        digest = self.ops.digest(self.layout, parameters_P)
        self.shared.publish(commit.generation + 1, parameters_P)
        self._canonical = Canonical(commit.generation + 1, parameters_P, digest)
        seconds = time.perf_counter() - began
        saturated = saturated_ratios(self.layout, parameters_P, self.algorithm.largest)
        return Applied(self._canonical, moved, seconds, saturated, commit.is_step)


def saturated_ratios(layout: Layout, parameters_P: Int8Array, largest: int) -> dict[TensorKind, float]:
    """Share of the weights of each kind of tensor that lie at the ends of their range, -largest .. largest."""
    counts: dict[TensorKind, list[int]] = {}
    for tensor in layout.tensors:
        part = parameters_P[tensor.offset : tensor.offset + tensor.size]
        at_ends = np.count_nonzero(part >= largest) + np.count_nonzero(part <= -largest)
        both = counts.setdefault(tensor.kind, [0, 0])
        both[0] += int(at_ends)
        both[1] += tensor.size
    return {kind: at_ends / size for kind, (at_ends, size) in counts.items()}
