"""The pool of worker actors: sends bytes, collects answers, replaces actors that died."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from es_service import pools
from es_service.build import identity
from es_service.config import RunConfig
from es_service.errors import BackendError, ServiceError
from es_service.pools import HEAD, Gone, PoolEvent, Ready, Reply
from workers.actor import WorkerActor
from workers.evaluator import Evaluator
from workers.referee import Referee

__all__ = ["RayPool"]

_STARTS_IN_A_ROW = 3
_WAVE_SECONDS = 120.0
"""Wait for the first worker with a GPU before leases are cut for an H100."""
_LOSSES_IN_A_ROW = 10


@dataclass(frozen=True, slots=True)
class _Call:
    """A call in progress: `start` of a worker, or the handling of one message."""

    worker: str
    starting: bool


class RayPool:
    """Keeps `deployment.workers` actors alive. Names count up and are never used twice.

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
        self._actors: dict[str, Any] = {}
        self._calls: dict[Any, _Call] = {}
        self._node = ray.get_runtime_context().get_node_id()
        self._names = 0
        self._failures = self._losses = 0
        for _ in range(config.deployment.workers):
            self._spawn()
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
        actor = self._actors.get(worker)
        if actor is not None:
            self._calls[actor.handle.remote(data, *parts)] = _Call(worker, starting=False)

    def poll(self, timeout: float) -> list[PoolEvent]:
        """Answers, starts and deaths since the last call."""
        judged: list[PoolEvent] = [*self._referee.poll()]
        if not self._calls:
            return judged
        calls = list(self._calls)
        ready, _ = ray.wait(calls, num_returns=1, timeout=timeout, fetch_local=False)
        if ready:
            ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0, fetch_local=False)
        done = ((ref, self._calls.pop(ref, None)) for ref in ready)
        return judged + [event for ref, call in done if call for event in self._finished(ref, call)]

    def close(self) -> None:
        """End all actors."""
        self._referee.close()
        for worker in list(self._actors):
            self._drop(worker)

    def _spawn(self) -> None:
        self._names += 1
        name = f"worker-{self._names}"
        context = ray.get_runtime_context()
        run = (context.get_actor_name() or "").removeprefix("head-")
        actor = self._actor_class.remote(self._config_json, identity(), context.current_actor, run, name)
        self._actors[name] = actor
        self._calls[actor.start.remote()] = _Call(name, starting=True)

    def _finished(self, ref: Any, call: _Call) -> list[PoolEvent]:
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            return self._lost(call, error.cause)
        except RayError as error:
            reason = "its process or node is gone" if isinstance(error, RayActorError) else "its answer was lost"
            return self._lost(call, BackendError(f"{reason} ({type(error).__name__})"))
        if not call.starting:
            self._losses = 0 if answer else self._losses
            return [Reply(call.worker, answer)]
        self._failures = 0
        about, node = answer
        return [Ready(call.worker, about, shares=node == self._node)]

    def _lost(self, call: _Call, error: BaseException) -> list[PoolEvent]:
        """Replace the worker; give up where workers do not even start, or die again and again with nothing done."""
        self._drop(call.worker)
        self._failures += call.starting
        self._losses += 1
        if self._failures >= _STARTS_IN_A_ROW or self._losses >= _LOSSES_IN_A_ROW + len(self._actors):
            if isinstance(error, ServiceError):
                raise error
            raise BackendError(f"{self._losses} workers in a row came to nothing, the last with: {error}") from error
        self._spawn()
        return [Gone(call.worker, f"{type(error).__name__}: {error}")]

    def _drop(self, worker: str) -> None:
        actor = self._actors.pop(worker, None)
        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        if actor is not None:
            ray.kill(actor, no_restart=True)
