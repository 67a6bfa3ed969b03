"""One process a node between the head and the workers there, so that the head handles one message for all of them.

A call carries what the head has for the node's workers since its last one; the answer carries what they have answered.
The head has a call there while anything is unanswered, so a head that is busy makes fewer calls, each with more in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

__all__ = ["Answer", "Branch", "Relay"]

_WINDOW_SECONDS = 0.005
"""How long the first answer waits for others of its node."""
_INLINE_BYTES = 100_000
"""Parts up to this size go with each message; longer ones once to the node's own object store."""

Answer = bytes | BaseException
"""What a worker answered to a message, or what was raised instead; a `RayError`: it is gone."""
_Parcel = tuple[str, bytes, list[int]]
"""A message for a worker, and which of the parts that come with the call end it."""


class Relay:
    """The actor on the node. The workers are the head's: it ends them when it loses this process."""

    def __init__(self) -> None:
        self._workers: dict[str, Any] = {}
        self._answers: list[tuple[str, Answer]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._unanswered = 0
        self._calls = 0
        self._changed = asyncio.Condition()

    async def exchange(
        self, number: int, workers: dict[str, Any], parcels: list[_Parcel], *parts: bytes
    ) -> list[tuple[str, Answer]]:
        """Send the parcels on; what was answered, as soon as there is something or the next call has come.

        `workers` are actors that are new. Calls are numbered, as they may overtake each other.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: self._calls == number)
            self._calls += 1
            self._workers |= workers
            self._forward(parcels, parts)
            self._changed.notify_all()
            await self._changed.wait_for(lambda: self._answers or self._calls > number + 1)
            with suppress(asyncio.TimeoutError):
                rest = self._changed.wait_for(lambda: not self._unanswered or self._calls > number + 1)
                await asyncio.wait_for(rest, _WINDOW_SECONDS)
            answers, self._answers = self._answers, []
            return answers

    def _forward(self, parcels: list[_Parcel], parts: Sequence[bytes]) -> None:
        kept = [ray.put(part) if len(part) > _INLINE_BYTES else part for part in parts]
        for worker, data, places in parcels:
            call = self._workers[worker].handle.remote(data, *(kept[place] for place in places))
            task = asyncio.ensure_future(self._wait(worker, call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._unanswered += len(parcels)

    async def _wait(self, worker: str, call: Any) -> None:
        try:
            answer: Answer = await call
        except RayTaskError as error:
            answer = error.cause
        except Exception as error:  # an answer that is not told would leave its worker busy for ever
            answer = error
        async with self._changed:
            self._unanswered -= 1
            self._answers.append((worker, answer))
            self._changed.notify_all()


class Branch:
    """The head's end: messages for the workers of one node, which wait for `call`."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.unanswered: dict[str, int] = {}
        """Messages of each worker."""
        self._relay: Any = (
            ray.remote(Relay)
            .options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
                enable_task_events=False,
            )
            .remote()
        )
        self._new: dict[str, Any] = {}
        self._parcels: list[_Parcel] = []
        self._parts: list[Any] = []
        self._numbers = self._open = 0

    def add(self, worker: str, actor: Any) -> None:
        """A worker of this node; from now on all its messages must come through here."""
        self._new[worker] = actor
        self.unanswered[worker] = 0

    def forget(self, worker: str) -> None:
        """Nothing is expected from it any more."""
        self.unanswered.pop(worker, None)

    def send(self, worker: str, data: bytes, parts: Sequence[Any]) -> None:
        """Put one message to those that go with the next call."""
        places = []
        for part in parts:
            place = next((n for n, other in enumerate(self._parts) if other is part), len(self._parts))
            if place == len(self._parts):
                self._parts.append(part)
            places.append(place)
        self._parcels.append((worker, data, places))
        self.unanswered[worker] += 1

    def call(self) -> Any | None:
        """The reference of a call with all that waits, or that only fetches answers; None if none is needed."""
        if not self._parcels and (self._open or not any(self.unanswered.values())):
            return None
        reference = self._relay.exchange.remote(self._numbers, self._new, self._parcels, *self._parts)
        self._numbers += 1
        self._open += 1
        self._new, self._parcels, self._parts = {}, [], []
        return reference

    def answers(self, reference: Any) -> list[tuple[str, Answer]]:
        """What a call of this branch brought, of workers that are not forgotten; raises `RayError` if all is lost."""
        self._open -= 1
        answers = [(worker, answer) for worker, answer in ray.get(reference) if worker in self.unanswered]
        for worker, _ in answers:
            self.unanswered[worker] -= 1
        return answers

    def close(self) -> None:
        """End the process on the node."""
        ray.kill(self._relay, no_restart=True)
