"""The carriers between head and worker, and their bytes on the wire.

A message is one type byte, a fixed little-endian struct, then length-prefixed byte strings. Nothing is unpickled:
`decode` checks every length and range and raises `MessageError`. `run` is the first 8 bytes of the spec hash.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import inf
from typing import Any, ClassVar

from es_service.errors import MessageError

__all__ = [
    "Behind",
    "Commit",
    "Lease",
    "LeaseResult",
    "Message",
    "Order",
    "Restore",
    "Share",
    "SliceOrder",
    "SliceResult",
    "decode",
    "encode",
    "encode_commit",
    "encode_order",
    "encode_restore",
    "encode_slice_order",
]  # fmt: skip

MAX_MESSAGE_BYTES = 1 << 31
MAX_COMMITS = 256

_BLOB = struct.Struct("<I")
_LEASE = struct.Struct("<QIII")
_THRESHOLD = struct.Struct("<i")
_COMMIT = struct.Struct("<QiBI")


@dataclass(frozen=True, slots=True)
class Lease:
    """A range of units of one generation, given to one worker. Made by the state machine."""

    generation: int
    first_unit: int
    num_units: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Commit:
    """What a replica needs to go from `generation` to the next. Made by the head.

    `record` holds the votes or, if it `is_step`, what they come to (`es_service.updates`): both give the same bits.
    """

    generation: int
    threshold: int
    record: bytes
    is_step: bool = False


@dataclass(frozen=True, slots=True)
class Order:
    """Head to worker: apply these commits as far as they are new, then evaluate the lease.

    `threshold` will stand in the record of the lease's generation. A lease of no units is not evaluated: then the
    commits are all that there is, and the answer is empty.
    """

    run: int
    lease: Lease
    threshold: int
    commits: tuple[Commit, ...]


@dataclass(frozen=True, slots=True)
class Restore:
    """Head to worker: take these parameters as those of `generation`; empty means the initial values of the seed."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQQ")
    run: int
    generation: int
    digest: int
    parameters: bytes


@dataclass(frozen=True, slots=True)
class Share:
    """Head to worker on its node: take the parameters of `generation` from shared memory (`es_service.shared`)."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQQ")
    run: int
    generation: int
    digest: int
    path: str


@dataclass(frozen=True, slots=True)
class LeaseResult:
    """Worker to head: encoded votes of a lease, sums of its members' scores (1/16 bit) and the replica's digest.

    `model_bytes` counts the bytes that were run through the model, `seconds` the time that took: both for metrics only.
    """

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQIIIqiiQQd")
    run: int
    lease: Lease
    score_sum: int
    score_min: int
    score_max: int
    digest: int
    model_bytes: int
    seconds: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class Behind:
    """Worker to head: the lease cannot be done, as the replica is at `replica_generation` (-1: none)."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQIIIq")
    run: int
    lease: Lease
    replica_generation: int


@dataclass(frozen=True, slots=True)
class SliceOrder:
    """Head to worker: make one slice of the update of `generation` from its votes (`es_service.updates`)."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQIiI")
    run: int
    generation: int
    index: int
    threshold: int
    record: bytes


@dataclass(frozen=True, slots=True)
class SliceResult:
    """Worker to head: the packed moves of one slice."""

    HEAD: ClassVar[struct.Struct] = struct.Struct("<QQI")
    run: int
    generation: int
    index: int
    payload: bytes


Message = Order | Restore | LeaseResult | Behind | Share | SliceOrder | SliceResult
_TYPES: dict[int, type[Message]] = {
    1: Order, 2: Restore, 3: LeaseResult, 4: Behind, 5: Share, 6: SliceOrder, 7: SliceResult,
}  # fmt: skip


def _lease_fields(lease: Lease) -> tuple[int, int, int, int]:
    return lease.generation, lease.first_unit, lease.num_units, lease.attempt


def encode_order(run: int, lease: Lease, threshold: int, commits: int) -> bytes:
    """The beginning of an `Order`, up to its commits."""
    what = _LEASE.pack(*_lease_fields(lease)) + _THRESHOLD.pack(threshold)
    return b"\1" + struct.pack("<Q", run) + what + _BLOB.pack(commits)


def encode_commit(commit: Commit) -> bytes:
    """One commit as it stands in an `Order`: the same bytes for every worker."""
    return _COMMIT.pack(commit.generation, commit.threshold, commit.is_step, len(commit.record)) + commit.record


def encode_slice_order(run: int, generation: int, index: int, threshold: int, size: int) -> bytes:
    """The beginning of a `SliceOrder`, up to its record of `size` bytes."""
    return b"\6" + SliceOrder.HEAD.pack(run, generation, index, threshold, size)


def encode_restore(run: int, generation: int, digest: int, size: int) -> bytes:
    """The beginning of a `Restore`, up to its parameters of `size` bytes."""
    return b"\2" + Restore.HEAD.pack(run, generation, digest) + _BLOB.pack(size)


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    match message:
        case Order(run, lease, threshold, commits):
            return b"".join([encode_order(run, lease, threshold, len(commits)), *map(encode_commit, commits)])
        case Restore(run, generation, digest, parameters):
            return encode_restore(run, generation, digest, len(parameters)) + parameters
        case Share(run, generation, digest, path):
            data = path.encode()
            return b"\5" + Share.HEAD.pack(run, generation, digest) + _BLOB.pack(len(data)) + data
        case LeaseResult():
            m = message
            sums = (m.score_sum, m.score_min, m.score_max, m.digest, m.model_bytes, m.seconds)
            head = LeaseResult.HEAD.pack(m.run, *_lease_fields(m.lease), *sums)
            return b"\3" + head + _BLOB.pack(len(m.payload)) + m.payload
        case SliceOrder(run, generation, index, threshold, record):
            return encode_slice_order(run, generation, index, threshold, len(record)) + record
        case SliceResult(run, generation, index, payload):
            return b"\7" + SliceResult.HEAD.pack(run, generation, index) + _BLOB.pack(len(payload)) + payload
        case Behind(run, lease, replica_generation):
            return b"\4" + Behind.HEAD.pack(run, *_lease_fields(lease), replica_generation)


def decode(data: bytes) -> Message:
    """The message of these bytes; raises `MessageError` if they are anything else."""
    if not 1 <= len(data) <= MAX_MESSAGE_BYTES:
        raise MessageError(f"a message of {len(data)} bytes is outside 1 .. {MAX_MESSAGE_BYTES}")
    kind = _TYPES.get(data[0])
    if kind is None:
        raise MessageError(f"unknown message type {data[0]}")
    reader = _Reader(data)
    message: Message
    if kind is Order:
        (run,) = reader.take(struct.Struct("<Q"))
        lease = Lease(*reader.take(_LEASE))
        (threshold,) = reader.take(_THRESHOLD)
        message = Order(run, lease, threshold, reader.commits())
    elif kind is Restore:
        run, generation, digest = reader.take(Restore.HEAD)
        message = Restore(run, generation, digest, reader.blob())
    elif kind is LeaseResult:
        message = reader.result()
    elif kind is Share:
        message = reader.share()
    elif kind is SliceOrder:
        run, generation, place, threshold, size = reader.take(SliceOrder.HEAD)
        message = SliceOrder(run, generation, place, threshold, reader.raw(size))
    elif kind is SliceResult:
        run, generation, place = reader.take(SliceResult.HEAD)
        message = SliceResult(run, generation, place, reader.blob())
    else:
        run, generation, first, units, attempt, replica = reader.take(Behind.HEAD)
        message = Behind(run, Lease(generation, first, units, attempt), replica)
    reader.end()
    return message


class _Reader:
    """Takes structs and byte strings from a message, never past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 1

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.raw(layout.size))

    def raw(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise MessageError(f"a message of {len(self._data)} bytes ends inside a field")
        self._at += size
        return self._data[self._at - size : self._at]

    def blob(self) -> bytes:
        (size,) = self.take(_BLOB)
        return self.raw(size)

    def commits(self) -> tuple[Commit, ...]:
        (count,) = self.take(_BLOB)
        if count > MAX_COMMITS:
            raise MessageError(f"{count} commits in one order; the limit is {MAX_COMMITS}")
        commits = []
        for _ in range(count):
            generation, threshold, is_step, size = self.take(_COMMIT)
            if is_step > 1:
                raise MessageError(f"a commit is of votes (0) or a step (1), not {is_step}")
            commits.append(Commit(generation, threshold, self.raw(size), bool(is_step)))
        return tuple(commits)

    def result(self) -> LeaseResult:
        run, generation, first, units, attempt, *sums = self.take(LeaseResult.HEAD)
        total, low, high, digest, model_bytes, seconds = sums
        lease = Lease(generation, first, units, attempt)
        if not 0 <= seconds < inf or low > high or abs(total) > units << 32:  # NaN too; two int32 scores a unit
            raise MessageError(f"a result in {seconds} s with scores {low} .. {high}, sum {total}, is not possible")
        return LeaseResult(run, lease, total, low, high, digest, model_bytes, seconds, self.blob())

    def share(self) -> Share:
        run, generation, digest = self.take(Share.HEAD)
        try:
            return Share(run, generation, digest, self.blob().decode())
        except UnicodeDecodeError as error:
            raise MessageError("the path in a message is not UTF-8") from error

    def end(self) -> None:
        if self._at != len(self._data):
            raise MessageError(f"{len(self._data) - self._at} bytes after the end of a message")
