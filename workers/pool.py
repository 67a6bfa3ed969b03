"""The pool of worker actors: sends bytes, collects answers, replaces actors that died."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import ray
from ray._private.state import state
from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayActorError, RayError, RayTaskError

from es_service import pools
from es_service.build import identity
from es_service.config import RunConfig
from es_service.errors import BackendError, ServiceError
from es_service.pools import HEAD, Gone, Leaving, PoolEvent, Ready, Reply, Unplaced
from workers.actor import WorkerActor
from workers.evaluator import Evaluator
from workers.lookout import Lookout, Messenger
from workers.referee import Referee
from workers.relay import Branch

__all__ = ["RayPool"]

_STARTS_IN_A_ROW = 3
_WAVE_SECONDS = 120.0
"""Wait for the first worker with a GPU before leases are cut for an H100."""
_LOSSES_IN_A_ROW = 10
_LOOK_SECONDS = 2.0
_FAREWELL_SECONDS = 1.0
"""How long a pool that is closed waits until its request for nodes is withdrawn."""
_MOST_DISMISSED = 8
"""Workers found wrong that are replaced: where more are, the cause is no single machine."""
_PATIENCE_SECONDS = 20.0
"""Time after which a worker that has not started is reported: its node may not be there yet, or never come."""


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in progress: `start` of a worker, the handling of one message, or of many through a `branch`."""

    worker: str
    starting: bool
    since: float
    branch: Branch | None = None


@dataclass(frozen=True, slots=True)
class _Farewell:
    """Why a worker leaves, and until when it may answer what it was sent."""

    reason: str
    until: float


class RayPool:
    """Keeps so many actors alive as it was last told. Names count up and are never used twice.

    Lives in the head's process: the actors are owned by it and die with it. `poll` raises when several workers in a row
    could not even start, or died without a result: the cause will not go away by trying again. What is sent to HEAD is
    evaluated in this process, by the evaluator that `make_referee` gives.
    """

    def __init__(self, config: RunConfig, make_referee: Callable[[], Evaluator]) -> None:
        worker = config.deployment.worker
        self._config_json = config.model_dump_json()
        self._actor_class: Any = ray.remote(WorkerActor).options(
            num_cpus=worker.resources["CPU"],
            num_gpus=worker.resources["GPU"],
            max_restarts=0,
            scheduling_strategy="SPREAD",
            enable_task_events=False,
        )
        self._referee = Referee(make_referee)
        self._drained = Lookout(_draining_nodes, _LOOK_SECONDS)
        self._nodes_wanted = Messenger(self._request, "the request for nodes", _LOOK_SECONDS)
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, _Call] = {}
        self._node = ray.get_runtime_context().get_node_id()
        self._names = 0
        self._failures = self._losses = 0
        self._proven: set[str] = set()
        """Workers that have given a result."""
        self._resources = {key: value for key, value in worker.resources.items() if value}
        self._wanted = config.deployment.workers
        self._leave_seconds = config.deployment.lease_timeout_seconds
        self._leaving: dict[str, _Farewell] = {}
        self._wrong: set[str] = set()
        """Workers that were dismissed, those included that are gone."""
        self._nodes: dict[str, str] = {}
        self._branches: dict[str, Branch] = {}
        self._looked, self._unplaced = 0.0, 0
        self._asked = True  # by a head that died while its workers started, for all that is known
        self._adjust()
        self.wave_pairs = 0 if config.deployment.lease_pairs or not worker.num_gpus else self._ask_wave()

    def _ask_wave(self) -> int:
        """What the first worker says of its GPU, as they are alike; 0 where none has started in time."""
        first = next(iter(self._actors.values()))
        try:
            wave: int = ray.get(first.wave_pairs.remote(), timeout=_WAVE_SECONDS)
        except RayError:
            return 0
        return wave

    def broadcast(self, data: bytes) -> Any:
        """Bytes that are many in all copies become an object: each node fetches it once, from any node that has it."""
        return ray.put(data) if len(data) * len(self._actors) > pools.COPIED_BYTES else data

    def send(self, worker: str, data: bytes, parts: Sequence[Any] = ()) -> None:
        """Queue one message."""
        if worker == HEAD:
            self._referee.send(data)
        actor, branch = self._actors.get(worker), self._branches.get(self._nodes.get(worker, ""))
        if branch is not None and worker in branch.unanswered:
            branch.send(worker, data, parts)
        elif actor is not None:
            self._calls[actor.handle.remote(data, *parts)] = _Call(worker, False, time.monotonic())

    def poll(self, timeout: float) -> list[PoolEvent]:
        """Answers, starts and deaths since the last call."""
        events: list[PoolEvent] = [*self._referee.poll(), *self._adjust(), *self._watch()]
        for branch in self._branches.values():
            if (ref := branch.call()) is not None:
                self._calls[ref] = _Call("", False, time.monotonic(), branch)
        if not self._calls:
            return events
        calls = list(self._calls)
        ready, _ = ray.wait(calls, num_returns=1, timeout=timeout, fetch_local=False)
        if ready:
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0, fetch_local=False)
        done = ((ref, self._calls.pop(ref, None)) for ref in ready)
        return events + [event for ref, call in done if call for event in self._finished(ref, call)]

    @property
    def size(self) -> int:
        """Workers that it is to keep now."""
        return self._wanted

    def scale(self, workers: int) -> None:
        """Keep so many actors; the newest leave first. May be called from any thread."""
        self._wanted = workers

    def dismiss(self, worker: str) -> None:
        """End a worker that was found wrong and start another; after `_MOST_DISMISSED` it is the first to leave."""
        if worker in self._actors:
            self._wrong.add(worker)
            if len(self._wrong) <= _MOST_DISMISSED:
                self._leaving[worker] = _Farewell("it was found wrong", until=-inf)

    def close(self) -> None:
        """End all actors."""
        self._drained.close()
        self._ask_for_nodes(0)
        self._nodes_wanted.close(_FAREWELL_SECONDS)
        self._referee.close()
        for branch in self._branches.values():
            branch.close()
        self._branches.clear()
        for worker in list(self._actors):
            self._drop(worker)

    def _spawn(self) -> None:
        self._names += 1
        name = f"worker-{self._names}"
        context = ray.get_runtime_context()
        run = (context.get_actor_name() or "").removeprefix("head-")
        actor = self._actor_class.remote(self._config_json, identity(), context.current_actor, run, name)
        self._actors[name] = actor
        self._calls[actor.start.remote()] = _Call(name, True, time.monotonic())

    def _adjust(self) -> list[PoolEvent]:
        """End what leaves, let go what is too many, start what is missing."""
        events = self._end_leaving() if self._leaving else []
        missing = self._wanted + len(self._leaving) - len(self._actors)
        if not (missing or self._asked):
            return events
        starting = {call.worker for call in self._calls.values() if call.starting}
        staying = [worker for worker in self._actors if worker not in self._leaving]
        staying.sort(key=self._wrong.__contains__)  # else oldest first
        for worker in staying[self._wanted :]:
            if worker in starting:  # nobody knows it yet
                self._drop(worker)
            else:
                events.append(self._let_go(worker, "fewer workers are wanted"))
        for _ in range(missing):
            self._spawn()
        if missing > 0 or not starting:
            self._ask_for_nodes(max(missing, 0) and self._wanted)
        return events

    def _end_leaving(self) -> list[PoolEvent]:
        """Workers that have answered what they were sent, or do not in time."""
        events: list[PoolEvent] = []
        busy, now = self._busy(), time.monotonic()
        for worker, farewell in list(self._leaving.items()):
            if worker not in busy or now > farewell.until:
                events.append(Gone(worker, farewell.reason))
                self._drop(worker)
        return events

    def _busy(self) -> set[str]:
        """Workers that have something to answer."""
        counts = (item for branch in self._branches.values() for item in branch.unanswered.items())
        return {call.worker for call in self._calls.values()} | {worker for worker, count in counts if count}

    def _let_go(self, worker: str, reason: str) -> Leaving:
        self._leaving[worker] = _Farewell(reason, time.monotonic() + self._leave_seconds)
        return Leaving(worker, reason)

    def _watch(self) -> list[PoolEvent]:
        """Nodes that are drained, such as spot machines before they are taken away, and workers that do not start."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return []
        self._looked = now
        nodes = self._drained.seen
        lost = [worker for worker, node in self._nodes.items() if node in nodes and worker not in self._leaving]
        events: list[PoolEvent] = [self._let_go(worker, "its node is drained") for worker in lost]
        waiting = sum(call.starting and now - call.since > _PATIENCE_SECONDS for call in self._calls.values())
        if waiting != self._unplaced:
            self._unplaced = waiting
            events.append(Unplaced(waiting, ", ".join(f"{value:g} {key}" for key, value in self._resources.items())))
        return events

    def _ask_for_nodes(self, workers: int) -> None:
        """Tell an autoscaler at once what workers are to come; withdrawn when they are there, as they hold their nodes.

        Without that, it would keep idle nodes after the run.
        """
        if workers or self._asked:
            self._nodes_wanted.say(workers)
        self._asked = workers > 0

    def _request(self, workers: int) -> None:
        """Waits for the GCS."""
        request_resources(bundles=[self._resources] * workers if self._resources else [])

    def _finished(self, ref: Any, call: _Call) -> list[PoolEvent]:
        if call.branch is not None:
            return self._collected(ref, call.branch)
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            return self._lost(call, error.cause)
        except RayError as error:
            return self._lost(call, error, gone=True)
        if not call.starting:
            return [self._answered(call.worker, answer)]
        self._failures = 0
        about, node = answer
        self._nodes[call.worker] = node
        if node != self._node and self._wanted >= pools.RELAYED_WORKERS:
            if node not in self._branches:
                self._branches[node] = Branch(node)
            self._branches[node].add(call.worker, self._actors[call.worker])
        return [Ready(call.worker, about, shares=node == self._node)]

    def _collected(self, ref: Any, branch: Branch) -> list[PoolEvent]:
        """Answers of several workers; all workers of a node whose process is gone are lost."""
        try:
            answers = branch.answers(ref)
        except RayError as error:
            answers = [(worker, error) for worker in branch.unanswered]
            self._end(branch)
        events: list[PoolEvent] = []
        for worker, answer in answers:
            if isinstance(answer, bytes):
                events.append(self._answered(worker, answer))
            elif worker in self._actors:  # else it was lost by another answer of these
                events += self._lost(_Call(worker, False, 0.0), answer, gone=isinstance(answer, RayError))
        return events

    def _end(self, branch: Branch) -> None:
        """Its node has no workers any more, or it has lost their answers."""
        if self._branches.get(branch.node) is branch:
            del self._branches[branch.node]
            branch.close()
        self._calls = {ref: call for ref, call in self._calls.items() if call.branch is not branch}

    def _answered(self, worker: str, answer: bytes) -> Reply:
        if answer:
            self._losses = 0
            self._proven.add(worker)
        return Reply(worker, answer)

    def _lost(self, call: _Call, error: BaseException, gone: bool = False) -> list[PoolEvent]:
        """Replace the worker; give up where workers do not even start, or die again and again with nothing done.

        Many may go at once with their node, be it while they start, and that is no reason to give up.
        """
        if gone:
            reason = "its process or node is gone" if isinstance(error, RayActorError) else "its answer was lost"
            error = BackendError(f"{reason} ({type(error).__name__})")
        self._losses += call.worker not in self._proven
        self._drop(call.worker)
        self._failures += call.starting and not gone
        if self._failures >= _STARTS_IN_A_ROW or self._losses >= _LOSSES_IN_A_ROW + self._wanted:
            if isinstance(error, ServiceError) and not gone:
                raise error
            raise BackendError(
                f"{self._losses} workers in a row came to nothing, the last with: {error}; look at the workers' logs "
                "(`ray logs`) and at the memory of their nodes, then resume the run"
            ) from error
        return [Gone(call.worker, f"{type(error).__name__}: {error}")]

    def _drop(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        self._leaving.pop(worker, None)
        branch = self._branches.get(self._nodes.pop(worker, ""))
        if branch is not None:
            branch.forget(worker)
            if not branch.unanswered:
                self._end(branch)
        self._proven.discard(worker)
        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        if actor is not None:
            ray.kill(actor, no_restart=True)


def _draining_nodes() -> set[str]:
    """Ids of the nodes that will be taken away; what Ray Train uses, though it is private. Waits for the GCS."""
    draining: dict[str, int] = state.get_draining_nodes()
    return set(draining)
