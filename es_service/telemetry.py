"""What becomes known of a run: facts in; lines of side files, workers.json, metrics and the status out."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np

from es_service import __version__, journal
from es_service.aggregator import Applied, HeldOut
from es_service.config import RunConfig
from es_service.data import Baselines
from es_service.directory import RunDirectory
from es_service.events import Finish, Notice
from es_service.exporter import Exporter
from es_service.generation import Machine
from es_service.messages import Behind, Lease, LeaseResult
from es_service.metrics import BASELINES, LEASE_EVENTS, SIGNS, WORKER_STATES, Metrics
from es_service.problem import algorithm_of, figure_of, layout_of, scored, training_score
from es_service.types import Int8Array
from es_service.worker_table import WorkerTable

__all__ = ["Status", "Telemetry", "bits_per_byte"]

_MOST_GIVEN = 8
"""Leases of one worker beyond which the old ones are looked through: a worker holds fewer."""

_QUARANTINE_SECONDS = 600.0
"""How long a worker counts as quarantined, though another has taken its place."""


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
    accuracy: float | None = None
    unit: str = "bits/byte"
    bytes_per_second: float | None = None
    bits_per_member: float | None = None
    wire_bits_per_member: float | None = None
    reason: str = ""
    alarm: str = ""
    """The last worker that was found wrong, and what it touched."""
    unplaced: int = 0
    """Workers that have not started for a long time."""
    storage: str = ""
    """What keeps the run's files from being stored at present."""


class Telemetry:
    """Told by the coordinator, in its thread. Raises `RunError` where a line cannot be written."""

    def __init__(
        self, config: RunConfig, directory: RunDirectory, generation: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.config = config
        self.directory = directory
        self.clock = clock
        self.metrics = Metrics()
        self.status = Status("running", generation, config.deployment.generations, 0, unit=figure_of(config))
        self._exporter: Exporter | None = None
        self._size = layout_of(config).size
        self._table = WorkerTable(directory.workers_path, clock)
        self._opened = clock()
        self._woke = self._looked = -inf
        self._down = self._up = self._model_bytes = self._wanted = 0
        self._given: dict[str, dict[Lease, float]] = {}
        """When each worker was given the leases that it has not answered."""
        self._wrong: dict[str, float] = {}
        """When each worker that went into quarantine did so."""
        self._describe()

    # The metrics port.

    def resumed(self, config: RunConfig, commits: Iterable[journal.Commit], model_bytes: int) -> None:
        """Counters go on from commits of the journal that had this spec and whose members read `model_bytes`."""
        algorithm, record = algorithm_of(config), None
        for record in commits:
            self._count_votes(algorithm.votes(record.record))
            self.metrics.generations.inc()
        self.metrics.model_bytes.inc(model_bytes)
        if record is not None:
            self._show_scores(config, record)

    def expose(self, backend: str, ray_exporters: Sequence[str] = ()) -> None:
        """Open the port, unless the deployment wants none; raises `ConfigError` if it cannot be had."""
        self.metrics.build.info({"version": __version__, "python": platform.python_version(), "backend": backend})
        if self.config.deployment.metrics_port >= 0:
            self._exporter = Exporter(self.config.deployment, self.directory, self.metrics.registry, ray_exporters)

    def baselines(self, baselines: Baselines) -> None:
        """What simple models need for the held-out text. May be called from another thread."""
        values = {model: round(getattr(baselines, model), 6) for model in BASELINES}
        self.directory.log_metrics("baselines", generation=self.status.generation, **values)
        for model in BASELINES:
            self.metrics.baseline.labels(model).set(getattr(baselines, model))

    def close(self) -> None:
        """Close the port."""
        if self._exporter is not None:
            self._exporter.close()

    def _describe(self) -> None:
        self.metrics.goal.set(self.config.deployment.generations)
        self.metrics.population.set(self.config.population)
        self.metrics.parameters.set(self._size)
        self.metrics.last_commit.set(time.time())  # a head that has just started is not stalled

    # Workers and what goes between them and the head.

    def worker_ready(self, worker: str, about: str) -> None:
        """A worker can take leases."""
        self.directory.log_event("worker_ready", worker=worker, about=about)
        self.metrics.worker_events.labels("ready").inc()
        if not self.status.workers:
            self._opened = self.clock()  # time without workers is nobody's speed

    def worker_gone(self, worker: str, reason: str) -> None:
        """A worker will answer nothing more: the leases that it had expire."""
        self.directory.log_event("worker_gone", worker=worker, reason=reason)
        self._table.gone(worker)
        self.metrics.worker_events.labels("gone").inc()
        self.metrics.lease_events.labels("expired").inc(len(self._given.pop(worker, ())))

    def restarted(self) -> None:
        """The head is there in place of one that died."""
        self._show(alarm=f"the head died; another goes on from generation {self.status.generation}")

    def wants(self, workers: int) -> None:
        """So many workers are to be there from now on. Time in which none were is no delay of the next commit."""
        if workers and not self._wanted:
            self.metrics.last_commit.set(time.time())
        self._wanted = workers
        self.metrics.wanted.set(workers)

    def scaled(self, workers: int) -> None:
        """Another number of workers was asked for."""
        self.directory.log_event("scaled", workers=workers)
        self.wants(workers)

    def unplaced(self, workers: int, need: str) -> None:
        """So many workers have not started for a long time."""
        reason = f"a worker needs {need}: the cluster has no room for it yet, or it is slow to load its corpus"
        self.directory.log_event("unplaced", workers=workers, reason=reason if workers else "")
        self._show(unplaced=workers)

    def fleet(self, workers: int) -> None:
        """A worker came or went: how many there are now."""
        self._show(workers=workers)
        self._looked = -inf

    def look(self, machine: Machine, replicas: Mapping[str, int]) -> None:
        """Workers by state, leases held, generations of replicas. Walks over all workers, so once a second at most."""
        now = self.clock()
        if now - self._looked < 1:
            return
        self._looked = now
        states = machine.roster.states()
        states["quarantined"] = sum(
            now - since < _QUARANTINE_SECONDS or name in machine.roster.workers for name, since in self._wrong.items()
        )
        for state in WORKER_STATES:
            self.metrics.workers.labels(state).set(states[state])
        self.metrics.leases_in_flight.set(machine.in_flight)
        self.metrics.replica_lag.labels("canonical").set(machine.generation - machine.aggregated)
        slowest = min(replicas.values(), default=machine.generation)
        self.metrics.replica_lag.labels("slowest_worker").set(machine.generation - slowest)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around what the coordinator waits for; all other time it is busy."""
        now = self.clock()
        if self._woke > -inf:
            self.metrics.busy_seconds.inc(max(now - self._woke, 0))
        yield
        self._woke = self.clock()

    def sent(self, num_bytes: int) -> None:
        """A message went to a worker."""
        self._down += num_bytes
        self.metrics.wire_bytes.labels("down").inc(num_bytes)

    def received(self, num_bytes: int) -> None:
        """A message came from a worker."""
        self._up += num_bytes
        self.metrics.wire_bytes.labels("up").inc(num_bytes)

    def assigned(self, worker: str, lease: Lease) -> None:
        """A lease was given out."""
        self._given.setdefault(worker, {})[lease] = self.clock()
        self.metrics.lease_events.labels("issued").inc()

    def answered(self, worker: str, answer: LeaseResult | Behind) -> None:
        """A well-formed answer to a lease came, whether it will count or not."""
        since = self._given.get(worker, {}).pop(answer.lease, None)
        if isinstance(answer, LeaseResult):
            self._table.returned(worker, answer)
            self._model_bytes += answer.model_bytes
            self.metrics.lease_events.labels("returned").inc()
            if since is not None:
                self.metrics.lease_seconds.observe(self.clock() - since)

    def notice(self, notice: Notice) -> None:
        """The state machine has something to say."""
        self.directory.log_event(notice.kind, worker=notice.worker, generation=notice.generation, detail=notice.detail)
        if notice.kind == "quarantined":
            self._wrong[notice.worker] = self.clock()
            self._show(alarm=f"{notice.worker} is in quarantine since generation {notice.generation}: {notice.detail}")
        self.metrics.lease_events.labels(notice.kind if notice.kind in LEASE_EVENTS else "other").inc()

    # Generations.

    def committed(
        self, record: journal.Commit, votes_Q: Int8Array, model_bytes: int, journal_bytes: int, fsync_seconds: float
    ) -> None:
        """The record of a generation is durable; `model_bytes` is what the members that count read."""
        now = self.clock()
        seconds, self._opened = max(now - self._opened, 1e-9), now
        values = self._log_commit(record, votes_Q, seconds, journal_bytes, fsync_seconds)
        metrics = self.metrics
        metrics.generations.inc()
        metrics.model_bytes.inc(model_bytes)
        metrics.generation_seconds.observe(seconds)
        metrics.last_commit.set(time.time())
        metrics.journal_bytes.set(journal_bytes)
        metrics.fsync_seconds.observe(fsync_seconds)
        metrics.wire_per_member.set((self._down + self._up) / self.config.population)
        self._count_votes(votes_Q)
        self._show_scores(self.config, record)
        self._forget(record.generation)
        self._down = self._up = self._model_bytes = 0
        self._table.write()
        self._show(generation=record.generation + 1, **values)

    def _log_commit(
        self, record: journal.Commit, votes_Q: Int8Array, seconds: float, journal_bytes: int, fsync_seconds: float
    ) -> dict[str, float]:
        members = self.config.population
        values = {
            "bits_per_byte": round(_training_loss(self.config, record), 6),
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
        return values

    def _count_votes(self, votes_Q: Int8Array) -> None:
        plus, minus = int(np.count_nonzero(votes_Q > 0)), int(np.count_nonzero(votes_Q < 0))
        for sign, count in zip(SIGNS, (plus, len(votes_Q) - plus - minus, minus), strict=True):
            self.metrics.votes.labels(sign).inc(count)

    def _show_scores(self, config: RunConfig, record: journal.Commit) -> None:
        mean = record.score_sum / config.population
        for statistic, score in (("min", record.score_min), ("mean", mean), ("max", record.score_max)):
            self.metrics.score.labels(statistic).set(score / 16)
        self.metrics.loss.labels("train").set(_training_loss(config, record))
        self.metrics.record_per_member.set(len(record.record) / config.population)

    def _forget(self, generation: int) -> None:
        """Leases of long ago that nobody will answer: their worker's answer was malformed."""
        for worker, given in self._given.items():
            if len(given) > _MOST_GIVEN:
                self._given[worker] = {lease: at for lease, at in given.items() if lease.generation >= generation - 1}

    def applied(self, applied: Applied) -> None:
        """One more generation is canonical."""
        moved = applied.moved / self._size
        self.directory.log_metrics(
            "update",
            generation=applied.canonical.generation - 1,
            moved_ratio=round(moved, 6),
            seconds=round(applied.seconds, 6),
        )
        self.metrics.moved.set(moved)
        self.metrics.update_seconds.observe(applied.seconds)
        for kind, ratio in applied.saturated.items():
            self.metrics.saturated.labels(kind).set(ratio)

    def slice_checked(self) -> None:
        """The head has found a slice of workers right."""
        self.metrics.slice_checks.inc()

    def evaluated(self, generation: int, held_out: HeldOut | None) -> None:
        """Canonical parameters were evaluated on held-out data, or it was not their turn."""
        if held_out is None:
            return
        values = {"bits_per_byte": round(held_out.bits_per_byte, 6)}
        if held_out.accuracy is not None:
            values["accuracy"] = round(held_out.accuracy, 6)
            self.metrics.accuracy.labels("held_out").set(held_out.accuracy)
        self.directory.log_metrics("evaluation", generation=generation, **values)
        self.metrics.loss.labels("held_out").set(held_out.bits_per_byte)
        self.metrics.evaluated.set(generation)
        shown = {"held_out": held_out.bits_per_byte, "accuracy": held_out.accuracy}
        self._show(**shown, held_out_generation=generation)

    # The end.

    def finished(self, finish: Finish) -> None:
        """The journal is closed."""
        self._table.write(at_once=True)
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
    """-score / (16 bytes scored) of a mean member score in 1/16 bit; a classifier scores labels, one byte each."""
    return -member_score / (16 * scored(config))


def _training_loss(config: RunConfig, record: journal.Commit) -> float:
    return bits_per_byte(config, training_score(config, record.score_sum, record.score_min))
