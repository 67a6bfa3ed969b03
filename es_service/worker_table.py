"""What each worker has done, in workers.json of the run's directory: one small file, replaced every few seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from es_service.errors import RunError
from es_service.messages import LeaseResult

__all__ = ["WorkerTable"]

_WRITE_SECONDS = 2.0
_KEPT = 0.9
"""Weight of what was, at each lease: the speed shown is that of about the newest ten."""


@dataclass(slots=True)
class _Worker:
    leases: int = 0
    model_bytes: float = 0.0
    seconds: float = 0.0


class WorkerTable:
    """Leases of each worker that is there now, and the speed of the newest. Raises `RunError` if it cannot write."""

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.path = path
        self.clock = clock
        self._workers: dict[str, _Worker] = {}
        self._written = clock() - _WRITE_SECONDS

    def returned(self, worker: str, result: LeaseResult) -> None:
        """A well-formed result came."""
        known = self._workers.setdefault(worker, _Worker())
        known.leases += 1
        known.model_bytes = _KEPT * known.model_bytes + result.model_bytes
        known.seconds = _KEPT * known.seconds + result.seconds

    def gone(self, worker: str) -> None:
        """Nothing more will come from it."""
        self._workers.pop(worker, None)

    def write(self, at_once: bool = False) -> None:
        """Replace the file, unless that was done a moment ago."""
        now = self.clock()
        if not at_once and now - self._written < _WRITE_SECONDS:
            return
        self._written = now
        values = {
            name: {"leases": one.leases, "bytes_per_second": round(one.model_bytes / max(one.seconds, 1e-9))}
            for name, one in self._workers.items()
        }
        partial = self.path.with_name(self.path.name + ".tmp")
        try:
            partial.write_text(json.dumps(values), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); make room or put the directory back, then "
                "resume the run"
            ) from error
