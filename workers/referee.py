"""The evaluator in the head's own process, whose results are believed. It is made when it is first asked."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from es_service.pools import HEAD, Reply
from workers.evaluator import Evaluator

__all__ = ["Referee"]


class Referee:
    """Handles messages in a thread of its own, in order. `make` loads the kernels that it evaluates with."""

    def __init__(self, make: Callable[[], Evaluator]) -> None:
        self._make = make
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Reply | BaseException] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def send(self, data: bytes) -> None:
        """Queue one message."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="referee", daemon=True)
            self._thread.start()
        self._messages.put(data)

    def poll(self) -> list[Reply]:
        """Answers since the last call; raises what the evaluator raised."""
        replies: list[Reply] = []
        while not self._answers.empty():
            answer = self._answers.get()
            if isinstance(answer, BaseException):
                raise answer
            replies.append(answer)
        return replies

    def close(self) -> None:
        """End the thread after the message that it is at, without waiting for it."""
        self._messages.put(None)

    def _run(self) -> None:
        try:
            evaluator = self._make()
            while (data := self._messages.get()) is not None:
                self._answers.put(Reply(HEAD, evaluator.handle(data)))
        except BaseException as error:  # handed over: `poll` raises it
            self._answers.put(error)
