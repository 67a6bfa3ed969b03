"""What the state machine takes and gives: events in, commands out."""

from __future__ import annotations

from dataclasses import dataclass

from es_service.messages import Lease, LeaseResult

__all__ = [
    "Aggregated", "Assign", "Close", "Command", "Committed", "Dismiss", "Draining", "Event", "Fell", "Finish", "Joined",
    "Judge", "Left", "Notice", "Outvoted", "Pause", "Returned", "SendRestore", "Stop", "Tick",
]  # fmt: skip


# Events: what happened, as the shell saw it.
@dataclass(frozen=True, slots=True)
class Joined:
    """A worker is there; its replica is unknown. One that `shares` reads the canonical parameters itself."""

    worker: str
    shares: bool = False


@dataclass(frozen=True, slots=True)
class Left:
    """A worker is gone, or has been given up."""

    worker: str


@dataclass(frozen=True, slots=True)
class Draining:
    """A worker will be taken away soon: it may end what it holds and gets no more."""

    worker: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Returned:
    """A worker, or the head itself (`pools.HEAD`), sent a well-formed result."""

    worker: str
    result: LeaseResult


@dataclass(frozen=True, slots=True)
class Fell:
    """A worker could not do a lease, as its replica is behind; without a lease: its answer was malformed."""

    worker: str
    lease: Lease | None
    reason: str


@dataclass(frozen=True, slots=True)
class Outvoted:
    """A worker was found wrong about something that is no lease: a slice of an update."""

    worker: str
    reason: str


@dataclass(frozen=True, slots=True)
class Committed:
    """The record of the closed generation is durable."""

    generation: int


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The canonical parameters have reached this generation."""

    generation: int
    digest: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time in seconds on any monotonic clock."""

    now: float


@dataclass(frozen=True, slots=True)
class Stop:
    """End at the last commit; the open generation is abandoned, to be evaluated again on resume."""

    reason: str


Event = Joined | Left | Draining | Returned | Fell | Outvoted | Committed | Aggregated | Tick | Stop


# Commands: what the shell must do, in this order.
@dataclass(frozen=True, slots=True)
class SendRestore:
    """Send the worker the newest canonical parameters before any later lease."""

    worker: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Send the worker this lease with the commits that its replica lacks."""

    worker: str
    lease: Lease


@dataclass(frozen=True, slots=True)
class Judge:
    """Evaluate this lease on the canonical parameters, in the head's own process: workers cannot settle it."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Close:
    """Write the record of this generation from its results in unit order, then answer `Committed`."""

    generation: int
    results: tuple[LeaseResult, ...]


@dataclass(frozen=True, slots=True)
class Dismiss:
    """The worker is in quarantine: another is wanted in its place."""

    worker: str


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to count and log; `kind` is one of a fixed few words."""

    kind: str
    worker: str
    generation: int
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Stop with an error: going on could damage the run."""

    reason: str


@dataclass(frozen=True, slots=True)
class Finish:
    """The run has reached its goal, or was stopped, with `generation` commits."""

    generation: int
    reason: str


Command = SendRestore | Assign | Judge | Close | Dismiss | Notice | Pause | Finish
