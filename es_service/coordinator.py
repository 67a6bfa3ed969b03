"""Drives one run: state machine, journal, aggregator and pool put together. No Ray; the head actor wraps this."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from es_service import events, journal
from es_service.aggregator import Aggregator, Applied, Evaluated
from es_service.algorithms.base import AbstractAlgorithm, Past
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import DivergenceError, MessageError, RunError, WrongStepError
from es_service.events import Assign, Close, Command, Dismiss, Event, Finish, Judge, Notice, Pause, SendRestore
from es_service.generation import Machine, Policy
from es_service.journal_writer import JournalWriter
from es_service.keeper import Keeper
from es_service.messages import (
    Behind,
    Commit,
    Lease,
    LeaseResult,
    Order,
    Restore,
    SliceResult,
    decode,
    encode,
)
from es_service.plan import Plan
from es_service.pools import HEAD, Gone, Leaving, Pool, PoolEvent, Ready, Reply, Unplaced
from es_service.problem import algorithm_of, plan_of, run_id
from es_service.replicas import Replicas
from es_service.storage import Uploader
from es_service.telemetry import Status, Telemetry
from es_service.updater import Updater

__all__ = ["Coordinator"]

_POLL_SECONDS = 0.05
_KEPT_PLANS = 8
"""Generations of which late results are told from malformed ones."""
_SPARES = 4
"""Workers that evaluate, for each without a lease, from which on those without are few enough to be kept up to date."""


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
        telemetry: Telemetry,
        uploader: Uploader | None = None,
        history: Sequence[Past] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.directory = directory
        self.writer = writer
        self.aggregator = aggregator
        self.keeper = keeper
        self.pool = pool
        self.uploader = uploader
        self.clock = clock
        self.algorithm: AbstractAlgorithm = algorithm_of(config)
        self._history = list(history)
        self._threshold = self.algorithm.threshold(writer.generation, self._history)
        start, policy, agree = aggregator.canonical, Policy.of(config.deployment), self.algorithm.agrees
        self._plans: dict[int, Plan] = {}
        self.machine = Machine(self._plan, policy, writer.generation, start.generation, start.digest, agree)
        self.run_id = run_id(config)
        self.updater = Updater(config, pool, self._send_parts, self.machine.roster.is_quarantined)
        self.telemetry = telemetry
        self._kept_up = writer.generation
        reads = self.machine.roster.reads
        self.replicas = Replicas(self.run_id, policy.max_lag, pool, aggregator, self._send_parts, reads)
        self._stop, self._stop_reason = threading.Event(), ""
        self._scales: deque[int] = deque()
        self._began = self._last_beat = clock()
        self._finish: Finish | None = None

    def _plan(self, generation: int) -> Plan:
        """Cut for the workers that the pool keeps when a generation opens: no result depends on the cut."""
        if generation not in self._plans:
            self._plans = {g: plan for g, plan in self._plans.items() if g > generation - _KEPT_PLANS}
            config = self.config.with_deployment(workers=self.pool.size or self.config.deployment.workers)
            self._plans[generation] = plan_of(config, self.pool.wave_pairs)
        return self._plans[generation]

    # Called by others.

    def stop(self, reason: str) -> None:
        """Ask for an end at the last commit."""
        self._stop_reason = reason
        self._stop.set()

    def scale(self, workers: int) -> None:
        """Keep so many workers from now on."""
        self._scales.append(workers)

    def heartbeat(self) -> Status:
        """The driver is alive; what it may show."""
        self._last_beat = self.clock()
        status = self.telemetry.status
        return replace(status, storage=self.uploader.problem) if self.uploader else status

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
            if isinstance(error, WrongStepError):
                self.aggregator.close()  # it writes keyframes
                error = WrongStepError(f"{error}. {self.keeper.distrust()}")
            with suppress(RunError):  # the disk may be what failed
                self.telemetry.failed(error)
            raise error
        finally:
            self.pool.close()
            self.aggregator.close()
            self.writer.close()
            if self.uploader:
                self.uploader.close()
            self.telemetry.close()

    def _start(self) -> None:
        self.telemetry.wants(self.pool.size or self.config.deployment.workers or 1)
        if self.machine.generation >= self.config.deployment.generations:
            self._finish = Finish(self.machine.generation, "goal")
        elif self.machine.generation == 0:
            self.telemetry.evaluated(0, self.keeper.after(self.aggregator.canonical))

    def _turn(self) -> None:
        busy = self.machine.in_flight > 0 or self.updater.busy
        with self.telemetry.waiting():
            happened = self.pool.poll(self._patience() if busy else 0.0)
        self._handle(events.Tick(self.clock()))
        for event in happened:
            self._on_pool(event)
        self._on_update()
        with self.telemetry.waiting():
            applied = self.aggregator.take(0.0 if busy else _POLL_SECONDS)
        for news in applied:
            self._on_aggregator(news)
        self._keep_up()
        self.telemetry.look(self.machine, self.replicas.generations)
        self._check_scale()
        self._check_stop()

    def _patience(self) -> float:
        """How long to wait for workers: not long while workers of this node wait for the aggregator."""
        waiting = self.replicas.sharing and self.machine.aggregated < self.machine.generation
        return _POLL_SECONDS / 20 if waiting else _POLL_SECONDS

    def _check_stop(self) -> None:
        if self.driver_is_silent() and not self.config.deployment.detach:
            self.stop(f"no sign of the driver for {self.config.deployment.heartbeat_timeout_seconds:g} s")
        if self.directory.stop_path.exists():
            self.directory.stop_path.unlink(missing_ok=True)
            self.stop("stop requested")
        if self._stop.is_set() and self._finish is None:
            self._handle(events.Stop(self._stop_reason))

    def _check_scale(self) -> None:
        wanted = self._scales.popleft() if self._scales else self.directory.take_scale()
        if wanted is not None:
            self.pool.scale(wanted)
            self.telemetry.scaled(wanted)

    def _end(self, finish: Finish) -> None:
        """The aggregator catches up, the last generation is evaluated and saved, the journal is closed."""
        while self.updater.checking:  # a slice of a step that went out
            for event in self.pool.poll(_POLL_SECONDS):
                if isinstance(event, Reply) and event.worker == HEAD:
                    self._on_pool(event)
            time.sleep(_POLL_SECONDS / 20)
        self.pool.close()
        for news in self.aggregator.close():
            self._on_aggregator(news)
        canonical = self.aggregator.canonical
        self.telemetry.evaluated(canonical.generation, self.keeper.last(canonical))
        self.writer.append(journal.Close(canonical.generation, canonical.digest))
        self.telemetry.finished(finish)

    # Events in.

    def _on_pool(self, event: PoolEvent) -> None:
        match event:
            case Ready(worker, about, shares):
                self.telemetry.worker_ready(worker, about)
                if shares:
                    self.replicas.sharing.add(worker)
                self._handle(events.Joined(worker, shares))
                self.telemetry.fleet(self.machine.roster.size)
            case Gone(worker, reason):
                self.telemetry.worker_gone(worker, reason)
                self.replicas.left(worker)
                self.updater.left(worker)
                self._handle(events.Left(worker))
                self.telemetry.fleet(self.machine.roster.size)
            case Leaving(worker, reason):
                self._handle(events.Draining(worker, reason))
            case Unplaced(workers, need):
                self.telemetry.unplaced(workers, need)
            case Reply(worker, b"") if self.replicas.empty[worker]:
                self.replicas.empty[worker] -= 1
            case Reply(worker, data):
                if worker != HEAD:
                    self.telemetry.received(len(data))
                self._on_reply(worker, data)

    def _on_reply(self, worker: str, data: bytes) -> None:
        """A reply that is not well formed costs the worker its open leases and its replica."""
        try:
            message = decode(data)
            if isinstance(message, LeaseResult) and message.run == self.run_id:
                self.algorithm.check(message.payload, message.lease.num_units)
                self.telemetry.answered(worker, message)
                self._handle(events.Returned(worker, message))
            elif isinstance(message, Behind) and message.run == self.run_id:
                self.telemetry.answered(worker, message)
                reason = f"replica at generation {message.replica_generation}"
                self._handle(events.Fell(worker, message.lease, reason))
            elif isinstance(message, SliceResult) and message.run == self.run_id:
                self._on_slice(worker, message)
            else:
                raise MessageError("not an answer to an order of this run")
        except MessageError as error:
            self.updater.left(worker)
            self._handle(events.Fell(worker, None, str(error)))

    def _on_slice(self, worker: str, message: SliceResult) -> None:
        wrong = self.updater.answered(worker, message)
        for name in wrong:
            self._handle(events.Outvoted(name, f"its slice of update {message.generation} is not the head's"))
        if worker == HEAD and not wrong:
            self.telemetry.slice_checked()

    def _on_update(self) -> None:
        """A generation whose update was made in slices is committed when they are joined."""
        commit = self.updater.take(self._idle(), self.clock()) if self.updater.busy else None
        if commit is not None:
            self._publish(commit)
            self._handle(events.Committed(commit.generation))

    def _idle(self) -> list[str]:
        return list(self.machine.roster.with_room(current=True, idle=True))

    def _on_aggregator(self, news: Applied | Evaluated | BaseException) -> None:
        match news:
            case Applied():
                self.telemetry.applied(news)
                if not news.is_step:
                    self.updater.whole_seconds = news.seconds
                self._handle(events.Aggregated(news.canonical.generation, news.canonical.digest))
            case Evaluated(generation, held_out):
                self.telemetry.evaluated(generation, held_out)
            case BaseException():
                raise news

    # Commands out.

    def _handle(self, event: Event) -> None:
        commands = deque[Command](self.machine.handle(event))
        while commands:
            match commands.popleft():
                case SendRestore(worker):
                    self.replicas.restore(worker)
                case Assign(worker, lease):
                    self.replicas.order(worker, lease, self._threshold)
                    self.telemetry.assigned(worker, lease)
                case Judge(lease):
                    self._judge(lease)
                case Close(number, results):
                    done = self._commit(number, results)
                    commands.extend(self.machine.handle(events.Committed(number)) if done else [])
                case Dismiss(worker):
                    self.pool.dismiss(worker)
                case Notice() as notice:
                    self.telemetry.notice(notice)
                case Pause(reason):
                    raise DivergenceError(reason)
                case Finish() as finish:
                    self._finish = finish

    def _keep_up(self) -> None:
        """When a generation has opened, the few workers that it has no lease for get the commits too."""
        if self.machine.generation == self._kept_up:
            return
        self._kept_up, idle = self.machine.generation, self._idle()
        if _SPARES * len(idle) <= self.machine.in_flight:
            self.replicas.keep_up(idle, self.machine.generation)

    def _judge(self, lease: Lease) -> None:
        """To the evaluator in this process, with the canonical parameters; no bytes on any wire."""
        canonical = self.aggregator.canonical
        what = (self.run_id, canonical.generation, canonical.digest)
        self.replicas.empty[HEAD] += 1
        self.pool.send(HEAD, encode(Restore(*what, canonical.parameters_P.tobytes())))
        self.pool.send(HEAD, encode(Order(self.run_id, lease, self._threshold, ())))

    def _send_parts(self, worker: str, data: bytes, parts: Sequence[Any], size: int) -> None:
        self.telemetry.sent(size)
        self.pool.send(worker, data, parts)

    def _commit(self, number: int, results: tuple[LeaseResult, ...]) -> bool:
        """Votes durable first; only then does anybody act on them. False while slices of the update are made."""
        record = journal.Commit(
            generation=number,
            units=self.algorithm.units,
            threshold=self._threshold,
            score_sum=sum(result.score_sum for result in results),
            score_min=min(result.score_min for result in results),
            score_max=max(result.score_max for result in results),
            digest=results[0].digest,
            record=self.algorithm.close([result.payload for result in results]),
        )
        self.writer.append(record)
        sums = (record.score_sum, record.score_min, record.score_max)
        self._history.append(Past(record.units, record.threshold, *sums))
        self._threshold = self.algorithm.threshold(number + 1, self._history)
        commit = Commit(number, record.threshold, record.record)
        last = number + 1 == self.config.deployment.generations  # for the aggregator alone
        sliced = not last and self.updater.begin(commit, self._idle(), self.clock())
        if not sliced:
            self._publish(commit)
        votes_Q = self.algorithm.votes(record.record)
        model_bytes = sum(result.model_bytes for result in results)
        self.telemetry.committed(record, votes_Q, model_bytes, self.writer.bytes, self.writer.fsync_seconds)
        limit = self.config.deployment.time_limit_seconds
        if limit is not None and self.clock() - self._began > limit:
            self.stop("time limit")
        return not sliced

    def _publish(self, commit: Commit) -> None:
        """To the replicas, with their next leases, and to the canonical parameters."""
        self.replicas.publish(commit)
        self.aggregator.submit(commit)
