"""What becomes known of a run: facts in, lines of metrics.jsonl and events.jsonl and the status of the driver out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from es_service import journal
from es_service.aggregator import Applied
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.events import Finish, Notice
from es_service.messages import LeaseResult
from es_service.problem import layout_of
from es_service.types import Int8Array

__all__ = ["Status", "Telemetry", "bits_per_byte"]


@dataclass(frozen=True, slots=True)
class Status:
    """What a driver shows. Made after every commit; `None` where not known yet."""

    state: str
    generation: int
    goal: int
    workers: int
    bits_per_byte: float | None = None
    held_out: float | None = None
    held_out_generation: int | None = None
    bytes_per_second: float | None = None
    bits_per_member: float | None = None
    wire_bits_per_member: float | None = None
    reason: str = ""
    storage: str = ""
    """What keeps the run's files from being stored at present."""


class Telemetry:
    """Told by the coordinator, in its thread. Raises `RunError` where a line cannot be written."""

    def __init__(self, config: RunConfig, directory: RunDirectory, generation: int, clock: Callable[[], float]) -> None:
        self.config = config
        self.directory = directory
        self.clock = clock
        self.status = Status("running", generation, config.deployment.generations, 0)
        self._size = layout_of(config).size
        self._opened = clock()
        self._down = self._up = self._model_bytes = 0

    # Workers and what goes between them and the head.

    def worker_ready(self, worker: str, about: str) -> None:
        """A worker can take leases."""
        self.directory.log_event("worker_ready", worker=worker, about=about)
        if not self.status.workers:
            self._opened = self.clock()  # time without workers is nobody's speed

    def worker_gone(self, worker: str, reason: str) -> None:
        """A worker will answer nothing more."""
        self.directory.log_event("worker_gone", worker=worker, reason=reason)

    def fleet(self, workers: int) -> None:
        """How many workers there are now."""
        self._show(workers=workers)

    def sent(self, num_bytes: int) -> None:
        """A message went to a worker."""
        self._down += num_bytes

    def received(self, num_bytes: int) -> None:
        """A message came from a worker."""
        self._up += num_bytes

    def returned(self, result: LeaseResult) -> None:
        """A well-formed result came, whether it will count or not."""
        self._model_bytes += result.model_bytes

    def notice(self, notice: Notice) -> None:
        """The state machine has something to say."""
        self.directory.log_event(notice.kind, worker=notice.worker, generation=notice.generation, detail=notice.detail)

    # Generations.

    def committed(self, record: journal.Commit, votes_Q: Int8Array, journal_bytes: int, fsync_seconds: float) -> None:
        """The record of a generation is durable."""
        now = self.clock()
        seconds, self._opened = max(now - self._opened, 1e-9), now
        members = self.config.population
        values = {
            "bits_per_byte": round(bits_per_byte(self.config, record.score_sum / members), 6),
            "bytes_per_second": round(self._model_bytes / seconds, 1),
            "bits_per_member": round(8 * len(record.record) / members, 6),
            "wire_bits_per_member": round(8 * (self._down + self._up) / members, 6),
        }
        self.directory.log_metrics(
            "commit",
            generation=record.generation,
            seconds=round(seconds, 6),
            **values,
            model_bytes=self._model_bytes,
            votes_plus=int((votes_Q > 0).sum()),
            votes_minus=int((votes_Q < 0).sum()),
            units=record.units,
            threshold=record.threshold,
            score_min=record.score_min,
            score_max=record.score_max,
            wire_bytes_down=self._down,
            wire_bytes_up=self._up,
            journal_bytes=journal_bytes,
            fsync_seconds=round(fsync_seconds, 6),
            workers=self.status.workers,
        )
        self._down = self._up = self._model_bytes = 0
        self._show(generation=record.generation + 1, **values)

    def applied(self, applied: Applied) -> None:
        """One more generation is canonical."""
        self.directory.log_metrics(
            "update",
            generation=applied.canonical.generation - 1,
            moved_ratio=round(applied.moved / self._size, 6),
            seconds=round(applied.seconds, 6),
        )

    def evaluated(self, generation: int, held_out: float) -> None:
        """Canonical parameters were evaluated on held-out text."""
        self.directory.log_metrics("evaluation", generation=generation, bits_per_byte=round(held_out, 6))
        self._show(held_out=held_out, held_out_generation=generation)

    # The end.

    def finished(self, finish: Finish) -> None:
        """The journal is closed."""
        self.directory.log_event("finished", generation=finish.generation, reason=finish.reason)
        self._show(state="finished", generation=finish.generation, reason=finish.reason)

    def failed(self, error: BaseException) -> None:
        """The run ends with an error. The status tells it even where the line cannot be written."""
        self._show(state="failed", reason=str(error) or type(error).__name__)
        self.directory.log_event("failed", generation=self.status.generation, reason=str(error))

    def _show(self, **changes: Any) -> None:
        fields = {name: getattr(self.status, name) for name in Status.__slots__}
        self.status = Status(**(fields | changes))


def bits_per_byte(config: RunConfig, member_score: float) -> float:
    """-score / (16 bytes scored) of a mean member score in 1/16 bit."""
    scored = config.segment.bytes * config.feeding.passes(config.population)
    return -member_score / (16 * scored)
