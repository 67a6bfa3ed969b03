"""What may take long to answer is asked and told in threads of their own; what fails is tried again."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Lookout", "Messenger"]

_log = logging.getLogger(__name__)


class _Failures:
    """Suppresses what a block raises, and logs the first of each series: the cause may not go away by itself."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.failed = False
        """Whether the last block raised."""

    @contextmanager
    def suppressed(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever an unreachable service raises
            if not self.failed:
                _log.warning("%s failed and is tried again: %s: %s", self.what, type(error).__name__, error)
            self.failed = True
        else:
            self.failed = False


class Lookout:
    """`seen` is the last answer of `look`, empty before the first. One that hangs or fails leaves it as it was."""

    def __init__(self, look: Callable[[], set[str]], every_seconds: float) -> None:
        self.seen: set[str] = set()
        self._look = look
        self._every_seconds = every_seconds
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="lookout", daemon=True).start()

    def close(self) -> None:
        """Ask no more; does not wait for an answer that is still to come."""
        self._closing.set()

    def _run(self) -> None:
        failures = _Failures("the question for drained nodes")
        while not self._closing.wait(self._every_seconds):
            with failures.suppressed():
                self.seen = self._look()


class Messenger:
    """Tells the newest of the values that it is given, again and again until that succeeds."""

    def __init__(self, tell: Callable[[Any], None], what: str, retry_seconds: float) -> None:
        self._tell = tell
        self._what = what
        self._retry_seconds = retry_seconds
        self._changed = threading.Condition()
        self._value: Any = None
        self._pending = self._closed = False
        self._thread = threading.Thread(target=self._run, name="messenger", daemon=True)
        self._thread.start()

    def say(self, value: Any) -> None:
        """Tell this in place of what has not been told yet; returns at once."""
        with self._changed:
            self._value, self._pending = value, True
            self._changed.notify_all()

    def close(self, seconds: float) -> None:
        """Wait at most so long until the last value is told; nothing is tried again after that."""
        with self._changed:
            self._changed.wait_for(lambda: not self._pending, seconds)
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        failures = _Failures(self._what)
        while self._one(failures):
            pass

    def _one(self, failures: _Failures) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            value = self._value
            if self._closed:
                return False
        with failures.suppressed():
            self._tell(value)
        with self._changed:
            if failures.failed:
                self._changed.wait_for(lambda: self._closed or self._value is not value, self._retry_seconds)
            elif self._value is value:
                self._pending = False
                self._changed.notify_all()
        return True
