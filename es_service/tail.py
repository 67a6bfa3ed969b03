"""Follows the side files of a run while they grow: metrics, events and samples, each line once, and workers.json."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from es_service.directory import RunDirectory, parse_line

__all__ = ["Consumer", "Facts", "Follower", "RunTail", "Tail"]

Row = dict[str, Any]

_CHUNK_BYTES = 4 << 20
_POLL_SECONDS = 0.5


class Tail:
    """New whole lines of one file of JSON lines, which may not be there yet. A file that shrank is read afresh."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def skip(self) -> None:
        """Pass over what the file holds now."""
        self._offset = self.path.stat().st_size if self.path.exists() else 0

    def take(self) -> list[Row]:
        """Rows since the last call, at most 4 MiB of them; a last line without its end waits until it has one."""
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                if size < self._offset:
                    self._offset = 0
                file.seek(self._offset)
                data = file.read(_CHUNK_BYTES)
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        if not whole and len(data) == _CHUNK_BYTES:
            whole = data  # no line of ours is that long
        self._offset += len(whole)
        rows = (parse_line(line) for line in whole.decode("utf-8", "replace").split("\n"))
        return [row for row in rows if row is not None]


@dataclass(frozen=True, slots=True)
class Facts:
    """Made by `RunTail`, read by its consumers: new rows of three files, and workers.json where it has changed."""

    metrics: Sequence[Row] = ()
    events: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    workers: Row | None = None

    def __bool__(self) -> bool:
        return bool(self.metrics or self.events or self.samples or self.workers is not None)


class RunTail:
    """The side files of one run. Rows of metrics and samples have an integer generation."""

    def __init__(self, directory: RunDirectory) -> None:
        self._metrics = Tail(directory.metrics_path)
        self._events = Tail(directory.events_path)
        self._samples = Tail(directory.samples_path)
        self._workers_path = directory.workers_path
        self._workers_time = 0

    def skip(self) -> None:
        """Pass over what has happened so far."""
        for tail in (self._metrics, self._events, self._samples):
            tail.skip()

    def take(self) -> Facts:
        """What is new; false if nothing is."""
        metrics, samples = _numbered(self._metrics.take()), _numbered(self._samples.take())
        return Facts(metrics, self._events.take(), samples, self._workers())

    def _workers(self) -> Row | None:
        try:
            changed = self._workers_path.stat().st_mtime_ns
            if changed == self._workers_time:
                return None
            self._workers_time = changed
            values = json.loads(self._workers_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return values if isinstance(values, dict) else None


def _numbered(rows: list[Row]) -> list[Row]:
    return [row for row in rows if isinstance(row.get("generation"), int)]


class Consumer(Protocol):
    """Somebody who wants to know what a run does: the page, a tracker."""

    name: str

    def take(self, facts: Facts) -> None:
        """Called about twice a second, from one thread; without facts too."""
        ...

    def close(self) -> None:
        """Called once, after the last facts."""
        ...


class Follower:
    """A thread that hands what is new in a run's directory to a consumer until it is closed.

    A consumer that raises is not called again: the run goes on without it, and a line says so.
    """

    def __init__(self, tail: RunTail, consumer: Consumer) -> None:
        self._tail = tail
        self._consumer = consumer
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow-{consumer.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hand over the last facts, then close the consumer."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._drain()
            while not self._end.wait(_POLL_SECONDS):
                self._drain()
            self._drain()
            self._consumer.close()
        except Exception as error:  # whoever watches must not stop a run
            print(
                f"{self._consumer.name}: {error or type(error).__name__}; the run goes on without it", file=sys.stderr
            )

    def _drain(self) -> None:
        while facts := self._tail.take():
            self._consumer.take(facts)
        self._consumer.take(facts)
