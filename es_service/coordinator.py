"""Drives one run: state machine, journal, aggregator and pool put together. No Ray; the head actor wraps this."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from es_service import events, journal
from es_service.aggregator import Aggregator, Applied, Evaluated
from es_service.algorithms.base import AbstractAlgorithm
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import DivergenceError, MessageError, RunError
from es_service.events import Assign, Close, Command, Event, Finish, Notice, Pause, SendRestore
from es_service.generation import Machine, Policy
from es_service.journal_writer import JournalWriter
from es_service.keeper import Keeper
from es_service.messages import Behind, Commit, LeaseResult, Order, Restore, Share, decode, encode
from es_service.pools import Gone, Pool, PoolEvent, Ready, Reply
from es_service.problem import algorithm_of, layout_of, plan_of, run_id

__all__ = ["Coordinator", "Status"]

_POLL_SECONDS = 0.05
_KEPT_COMMITS = 32


@dataclass(frozen=True, slots=True)
class Status:
    """What a driver shows. Made by the coordinator after every commit; `None` where not known yet."""

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


class Coordinator:
    """One run from its open journal to its goal. `run()` blocks; the other public methods may be called meanwhile."""

    def __init__(
        self,
        config: RunConfig,
        directory: RunDirectory,
        writer: JournalWriter,
        aggregator: Aggregator,
        keeper: Keeper,
        pool: Pool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.directory = directory
        self.writer = writer
        self.aggregator = aggregator
        self.keeper = keeper
        self.pool = pool
        self.clock = clock
        self.algorithm: AbstractAlgorithm = algorithm_of(config)
        deployment = config.deployment
        policy = Policy(deployment.generations, deployment.max_lag, lease_timeout=deployment.lease_timeout_seconds)
        plan, start = plan_of(config), aggregator.canonical
        self.machine = Machine(lambda _: plan, policy, writer.generation, start.generation, start.digest)
        self.run_id = run_id(config)
        self.status = Status("running", writer.generation, deployment.generations, 0)
        self._size = layout_of(config).size
        self._recent: deque[Commit] = deque(maxlen=_KEPT_COMMITS + deployment.max_lag)
        self._replicas: dict[str, int] = {}
        self._sharing: set[str] = set()
        self._stop = threading.Event()
        self._stop_reason = ""
        self._began = self._last_beat = self._opened = clock()
        self._down = self._up = self._model_bytes = 0
        self._finish: Finish | None = None

    # Called by others.

    def stop(self, reason: str) -> None:
        """Ask for an end at the last commit."""
        self._stop_reason = reason
        self._stop.set()

    def heartbeat(self) -> Status:
        """The driver is alive; what it may show."""
        self._last_beat = self.clock()
        return self.status

    def driver_is_silent(self) -> bool:
        """No heartbeat for longer than the deployment allows."""
        return self.clock() - self._last_beat > self.config.deployment.heartbeat_timeout_seconds

    # The loop.

    def run(self) -> Finish:
        """Train until the goal, a limit or a stop; closes the pool, the aggregator and the journal in any case."""
        try:
            self._start()
            while self._finish is None:
                self._turn()
            self._end(self._finish)
            return self._finish
        except BaseException as error:
            self._set_status(state="failed", reason=str(error) or type(error).__name__)
            with suppress(RunError):  # the disk may be what failed
                self.directory.log_event("failed", generation=self.machine.generation, reason=str(error))
            raise
        finally:
            self.pool.close()
            self.aggregator.close()
            self.writer.close()

    def _start(self) -> None:
        if self.machine.generation >= self.config.deployment.generations:
            self._finish = Finish(self.machine.generation, "goal")
        elif self.machine.generation == 0:
            self._on_held_out(0, self.keeper.after(self.aggregator.canonical))

    def _turn(self) -> None:
        busy = self.machine.in_flight > 0
        happened = self.pool.poll(self._patience() if busy else 0.0)
        self._handle(events.Tick(self.clock()))
        for event in happened:
            self._on_pool(event)
        for news in self.aggregator.take(0.0 if busy else _POLL_SECONDS):
            self._on_aggregator(news)
        self._check_stop()

    def _patience(self) -> float:
        """How long to wait for workers: not long while workers of this node wait for the aggregator."""
        waiting = self._sharing and self.machine.aggregated < self.machine.generation
        return _POLL_SECONDS / 20 if waiting else _POLL_SECONDS

    def _check_stop(self) -> None:
        if self.driver_is_silent() and not self.config.deployment.detach:
            self.stop(f"no sign of the driver for {self.config.deployment.heartbeat_timeout_seconds:g} s")
        if self.directory.stop_path.exists():
            self.directory.stop_path.unlink(missing_ok=True)
            self.stop("stop requested")
        if self._stop.is_set() and self._finish is None:
            self._handle(events.Stop(self._stop_reason))

    def _end(self, finish: Finish) -> None:
        """The aggregator catches up, the last generation is evaluated and saved, the journal is closed."""
        self.pool.close()
        for news in self.aggregator.close():
            self._on_aggregator(news)
        canonical = self.aggregator.canonical
        self._on_held_out(canonical.generation, self.keeper.last(canonical))
        self.writer.append(journal.Close(canonical.generation, canonical.digest))
        self.directory.log_event("finished", generation=finish.generation, reason=finish.reason)
        self._set_status(state="finished", generation=finish.generation, reason=finish.reason)

    # Events in.

    def _on_pool(self, event: PoolEvent) -> None:
        match event:
            case Ready(worker, about, shares):
                self.directory.log_event("worker_ready", worker=worker, about=about)
                if not self.machine.workers:
                    self._opened = self.clock()  # time without workers is nobody's speed
                if shares:
                    self._sharing.add(worker)
                self._handle(events.Joined(worker, shares))
            case Gone(worker, reason):
                self.directory.log_event("worker_gone", worker=worker, reason=reason)
                self._replicas.pop(worker, None)
                self._handle(events.Left(worker))
            case Reply(worker, data):
                self._up += len(data)
                if data:
                    self._on_reply(worker, data)
        self._set_status(workers=len(self.machine.workers))

    def _on_reply(self, worker: str, data: bytes) -> None:
        """A reply that is not well formed costs the worker its open leases and its replica."""
        try:
            message = decode(data)
            if isinstance(message, LeaseResult) and message.run == self.run_id:
                self.algorithm.check(message.payload, message.lease.num_units)
                self._model_bytes += message.model_bytes
                self._handle(events.Returned(worker, message))
            elif isinstance(message, Behind) and message.run == self.run_id:
                reason = f"replica at generation {message.replica_generation}"
                self._handle(events.Fell(worker, message.lease, reason))
            else:
                raise MessageError("not an answer to a lease of this run")
        except MessageError as error:
            self._handle(events.Fell(worker, None, str(error)))

    def _on_aggregator(self, news: Applied | Evaluated | BaseException) -> None:
        match news:
            case Applied():
                self._on_applied(news)
            case Evaluated(generation, held_out):
                self._on_held_out(generation, held_out)
            case BaseException():
                raise news

    def _on_applied(self, applied: Applied) -> None:
        canonical = applied.canonical
        self.directory.log_metrics(
            "update",
            generation=canonical.generation - 1,
            moved_ratio=round(applied.moved / self._size, 6),
            seconds=round(applied.seconds, 6),
        )
        self._handle(events.Aggregated(canonical.generation, canonical.digest))

    def _on_held_out(self, generation: int, held_out: float | None) -> None:
        if held_out is not None:
            self.directory.log_metrics("evaluation", generation=generation, bits_per_byte=round(held_out, 6))
            self._set_status(held_out=held_out, held_out_generation=generation)

    # Commands out.

    def _handle(self, event: Event) -> None:
        commands = deque[Command](self.machine.handle(event))
        while commands:
            match commands.popleft():
                case SendRestore(worker):
                    self._restore(worker)
                case Assign(worker, lease):
                    self._send(worker, Order(self.run_id, lease, self._commits_for(worker, lease.generation)))
                    self._replicas[worker] = lease.generation
                case Close(number, results):
                    self._commit(number, results)
                    commands.extend(self.machine.handle(events.Committed(number)))
                case Notice(kind, worker, number, detail):
                    self.directory.log_event(kind, worker=worker, generation=number, detail=detail)
                case Pause(reason):
                    raise DivergenceError(reason)
                case Finish() as finish:
                    self._finish = finish

    def _commits_for(self, worker: str, generation: int) -> tuple[Commit, ...]:
        """Commits between what the replica has and `generation`; restores it first if they are no longer kept."""
        oldest = self._recent[0].generation if self._recent else generation
        if self._replicas[worker] < (generation if worker in self._sharing else oldest):
            self._restore(worker)
        return tuple(commit for commit in self._recent if self._replicas[worker] <= commit.generation < generation)

    def _restore(self, worker: str) -> None:
        canonical = self.aggregator.canonical
        what = (self.run_id, canonical.generation, canonical.digest)
        if worker in self._sharing:
            self._send(worker, Share(*what, str(self.aggregator.shared.path)))
        else:
            self._send(worker, Restore(*what, canonical.parameters_P.tobytes() if canonical.generation else b""))
        self._replicas[worker] = canonical.generation

    def _send(self, worker: str, message: Order | Restore | Share) -> None:
        data = encode(message)
        self._down += len(data)
        self.pool.send(worker, data)

    def _commit(self, number: int, results: tuple[LeaseResult, ...]) -> None:
        """Votes durable first; only then does anybody act on them."""
        record = journal.Commit(
            generation=number,
            units=self.algorithm.units,
            threshold=self.algorithm.threshold(number),
            score_sum=sum(result.score_sum for result in results),
            score_min=min(result.score_min for result in results),
            score_max=max(result.score_max for result in results),
            digest=results[0].digest,
            record=self.algorithm.close([result.payload for result in results]),
        )
        self.writer.append(record)
        commit = Commit(number, record.threshold, record.record)
        self._recent.append(commit)
        self.aggregator.submit(commit)
        self._log_commit(record)
        limit = self.config.deployment.time_limit_seconds
        if limit is not None and self.clock() - self._began > limit:
            self.stop("time limit")

    def _log_commit(self, record: journal.Commit) -> None:
        now = self.clock()
        seconds, self._opened = max(now - self._opened, 1e-9), now
        members = self.config.population
        wire_bytes = self._down + self._up
        values = {
            "bits_per_byte": round(bits_per_byte(self.config, record.score_sum / members), 6),
            "bytes_per_second": round(self._model_bytes / seconds, 1),
            "bits_per_member": round(8 * len(record.record) / members, 6),
            "wire_bits_per_member": round(8 * wire_bytes / members, 6),
        }
        votes = self.algorithm.votes(record.record)
        self.directory.log_metrics(
            "commit",
            generation=record.generation,
            seconds=round(seconds, 6),
            **values,
            model_bytes=self._model_bytes,
            votes_plus=int((votes > 0).sum()),
            votes_minus=int((votes < 0).sum()),
            units=record.units,
            threshold=record.threshold,
            score_min=record.score_min,
            score_max=record.score_max,
            wire_bytes_down=self._down,
            wire_bytes_up=self._up,
            journal_bytes=self.writer.bytes,
            fsync_seconds=round(self.writer.fsync_seconds, 6),
            workers=len(self.machine.workers),
        )
        self._down = self._up = self._model_bytes = 0
        self._set_status(generation=record.generation + 1, **values)

    def _set_status(self, **changes: Any) -> None:
        fields = {name: getattr(self.status, name) for name in Status.__slots__}
        self.status = Status(**(fields | changes))


def bits_per_byte(config: RunConfig, member_score: float) -> float:
    """-score / (16 bytes scored) of a mean member score in 1/16 bit."""
    scored = config.segment.bytes * config.feeding.passes(config.population)
    return -member_score / (16 * scored)
