"""Workers inside this process, without Ray: the same port as the Ray pool. One message is handled in each poll."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from es_service.errors import ServiceError
from es_service.pools import HEAD, Gone, PoolEvent, Ready, Reply
from workers.evaluator import Evaluator

__all__ = ["LocalPool"]


def _first(workers: Sequence[str]) -> str:
    return workers[0]


class LocalPool:
    """Evaluators by name. `choose` picks which works next among those with messages waiting; by default, in turn.

    With `shares` they read the canonical parameters instead of making each update themselves. What is sent to HEAD goes
    to one more evaluator, which `make_referee` gives when it is needed.
    """

    def __init__(
        self,
        evaluators: dict[str, Evaluator],
        choose: Callable[[Sequence[str]], str] = _first,
        shares: bool = False,
        make_referee: Callable[[], Evaluator] | None = None,
        wave_pairs: int = 0,
    ) -> None:
        self._evaluators = dict(evaluators)
        self._choose = choose
        self._make_referee = make_referee
        self.size = len(evaluators)
        self.wave_pairs = wave_pairs
        self._queues: dict[str, deque[bytes]] = {name: deque() for name in evaluators}
        self._events: list[PoolEvent] = [
            Ready(name, f"in this process, {evaluator.ops.name}", shares) for name, evaluator in evaluators.items()
        ]

    def broadcast(self, data: bytes) -> bytes:
        """The bytes themselves."""
        return data

    def send(self, worker: str, data: bytes, parts: Sequence[bytes] = ()) -> None:
        """Queue one message."""
        if worker == HEAD and HEAD not in self._queues:
            assert self._make_referee, "this pool has no evaluator for the head"
            self._evaluators[HEAD] = self._make_referee()
            self._queues[HEAD] = deque()
        if worker in self._queues:
            self._queues[worker].append(b"".join((data, *parts)))

    def poll(self, timeout: float) -> list[PoolEvent]:  # noqa: ARG002 - never waits, as it does the work itself
        """Handle one message of one worker."""
        events, self._events = self._events, []
        waiting = [name for name, queue in self._queues.items() if queue]
        if not events and waiting:
            name = self._choose(waiting)
            self._queues[name] = self._queues.pop(name)
            events.append(self._handle(name, self._queues[name].popleft()))
        return events

    def _handle(self, name: str, data: bytes) -> PoolEvent:
        try:
            return Reply(name, self._evaluators[name].handle(data))
        except ServiceError as error:
            del self._queues[name]
            if name == HEAD or not self._queues:  # nobody would replace it
                raise
            return Gone(name, str(error))

    def scale(self, workers: int) -> None:
        """Nothing: these workers take turns on the same cores, so that their number would change nothing."""

    def dismiss(self, worker: str) -> None:
        """Nothing: another would be in the same process."""

    def close(self) -> None:
        """Drop what is queued."""
        self._queues.clear()
