"""Asks again and again, in a thread of its own, for what may take long to answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

__all__ = ["Lookout"]


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
        while not self._closing.wait(self._every_seconds):
            with suppress(Exception):  # whatever an unreachable service raises: asked again
                self.seen = self._look()
