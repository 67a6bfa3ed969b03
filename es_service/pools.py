"""The port between the coordinator and its workers, and what comes through it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = [
    "COPIED_BYTES",
    "HEAD",
    "RELAYED_WORKERS",
    "Gone",
    "Leaving",
    "Pool",
    "PoolEvent",
    "Ready",
    "Reply",
    "Unplaced",
]

HEAD = "head"
"""Name of the evaluator in the head's own process. It takes no lease but to settle what workers cannot."""
COPIED_BYTES = 1 << 20
"""Copies of a commit for all workers that the head sends itself: 1 ms of a 10 Gbit/s link, as long as a fetch takes."""

RELAYED_WORKERS = 64
"""Workers from which on those of a node are reached through one process there: fewer are no load for the head."""


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker can take messages. `about` says in one line where it is and which kernels it uses.

    One that `shares` is on the head's node and can read its memory.
    """

    worker: str
    about: str
    shares: bool = False


@dataclass(frozen=True, slots=True)
class Gone:
    """A worker will answer nothing more."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one message, in the order sent to that worker; empty for a restore."""

    worker: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Leaving:
    """A worker will be taken away when it has answered what it was sent."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Unplaced:
    """So many workers have not started for a long time; told again when it changes. `need` is what each asks."""

    workers: int
    need: str


PoolEvent = Ready | Gone | Leaving | Unplaced | Reply


class Pool(Protocol):
    """Workers by name. Messages to one worker are handled in the order sent; names are never used twice.

    `HEAD` names an evaluator in the head's own process; it is always there and tells no `Ready`.
    """

    wave_pairs: int
    """Pairs that fill one worker's device once, asked when the pool is made; 0 where that is nothing to go by."""

    @property
    def size(self) -> int:
        """Workers that it is to keep now; 0: unknown."""
        ...

    def broadcast(self, data: bytes) -> Any:
        """Bytes that end the messages to many workers, in whatever form is cheapest to send to all: see `send`."""
        ...

    def send(self, worker: str, data: bytes, parts: Sequence[Any] = ()) -> None:
        """Queue one message, `data` and then `parts` from `broadcast`; never blocks. One that has gone drops it."""
        ...

    def poll(self, timeout: float) -> list[PoolEvent]:
        """What has happened; waits up to `timeout` seconds for the first event."""
        ...

    def scale(self, workers: int) -> None:
        """Keep so many workers from now on; those that are too many leave when they have answered."""
        ...

    def dismiss(self, worker: str) -> None:
        """A worker was found wrong and gets no more work: end it and start another, where that promises anything."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
