"""The canonical parameters: every commit is applied to them, off the critical path, in one background thread.

The digest of the canonical parameters decides where replicas disagree, keyframes are saved from them alone, and
joiners are sent them.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from es_service.algorithms.base import AbstractAlgorithm
from es_service.messages import Commit
from es_service.types import Int8Array, Layout, Ops

__all__ = ["Aggregator", "Applied", "Canonical"]


@dataclass(frozen=True, slots=True)
class Canonical:
    """The canonical parameters of one generation; the array is never written to again."""

    generation: int
    parameters_P: Int8Array
    digest: int


@dataclass(frozen=True, slots=True)
class Applied:
    """Made by the aggregator, read by the coordinator: one more generation is canonical, or `error` ended it."""

    canonical: Canonical
    moved: int
    seconds: float
    bits_per_byte: float | None
    error: BaseException | None = None


class Aggregator:
    """Applies commits in order. `after` runs in the thread after each update: held-out evaluation and keyframes.

    `after(canonical)` returns held-out bits/byte or None. An exception anywhere in the thread is handed to the
    reader in `Applied.error`, and the thread ends.
    """

    def __init__(
        self,
        algorithm: AbstractAlgorithm,
        layout: Layout,
        ops: Ops,
        start: Canonical,
        after: Callable[[Canonical], float | None],
    ) -> None:
        self.algorithm = algorithm
        self.layout = layout
        self.ops = ops
        self.after = after
        self._canonical = start
        self._commits: queue.SimpleQueue[Commit | None] = queue.SimpleQueue()
        self._applied: queue.SimpleQueue[Applied] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="aggregator", daemon=True)
        self._thread.start()

    @property
    def canonical(self) -> Canonical:
        """The newest canonical parameters."""
        return self._canonical

    def submit(self, commit: Commit) -> None:
        """Queue a commit; commits must come in order."""
        self._commits.put(commit)

    def take(self, timeout: float = 0.0) -> list[Applied]:
        """What has been applied since the last call; waits up to `timeout` seconds for the first."""
        applied = []
        try:
            applied.append(self._applied.get(timeout=timeout) if timeout > 0 else self._applied.get_nowait())
            while True:
                applied.append(self._applied.get_nowait())
        except queue.Empty:
            return applied

    def close(self) -> list[Applied]:
        """Apply what is queued, end the thread, return what had not been taken."""
        self._commits.put(None)
        self._thread.join()
        return self.take()

    def _run(self) -> None:
        try:
            while (commit := self._commits.get()) is not None:
                self._applied.put(self._apply(commit))
        except BaseException as error:  # handed over: the coordinator raises it in its own thread
            self._applied.put(Applied(self._canonical, 0, 0.0, None, error))

    def _apply(self, commit: Commit) -> Applied:
        began = time.perf_counter()
        assert commit.generation == self._canonical.generation, "commits out of order"
        parameters_P = self._canonical.parameters_P.copy()
        moved = self.algorithm.update(self.ops, parameters_P, commit.generation, commit.threshold, commit.record)
        digest = self.ops.digest(self.layout, parameters_P)
        self._canonical = Canonical(commit.generation + 1, parameters_P, digest)
        seconds = time.perf_counter() - began
        return Applied(self._canonical, moved, seconds, self.after(self._canonical))
