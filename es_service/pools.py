"""The port between the coordinator and its workers, and what comes through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

__all__ = ["Gone", "Pool", "PoolEvent", "Ready", "Reply"]


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


PoolEvent = Ready | Gone | Reply


class Pool(Protocol):
    """Workers by name. Messages to one worker are handled in the order sent; names are never used twice."""

    def send(self, worker: str, data: bytes) -> None:
        """Queue one message; never blocks. A worker that has gone drops it."""
        ...

    def poll(self, timeout: float) -> list[PoolEvent]:
        """What has happened; waits up to `timeout` seconds for the first event."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
