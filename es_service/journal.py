"""The journal's format: records to bytes, bytes to records, and the scan that finds every damaged bit.

Bytes are fixed by specs/formats.md and explained in docs/journal.md, with the reasons for what counts as a torn tail.
Nothing here writes a file; `journal_writer` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from zlib import crc32

import numpy as np
import numpy.typing as npt

from es_service.errors import JournalError, RunError

__all__ = [
    "COMMIT_FIELDS",
    "MAGIC",
    "MAX_PAYLOAD_BYTES",
    "Change",
    "Close",
    "Commit",
    "CommitIndex",
    "Header",
    "JournalContents",
    "Record",
    "canonical_json",
    "decode",
    "encode",
    "misfit",
    "scan",
]

MAGIC = b"ESJ1"
MAX_PAYLOAD_BYTES = 1 << 28
"""Longest payload that is written or read: 2^30 packed votes and more."""

_HEAD = struct.Struct("<BII")
_CRC = struct.Struct("<I")
_COMMIT = struct.Struct("<QIiqiiQ")
_CLOSE = struct.Struct("<QQ")
_OVERHEAD = _HEAD.size + _CRC.size

_NAMES = ["generation", "units", "threshold", "score_sum", "score_min", "score_max", "digest"]
COMMIT_FIELDS = np.dtype(list(zip(_NAMES, ["<u8", "<u4", "<i4", "<i8", "<i4", "<i4", "<u8"], strict=True)))
"""The fixed part of a commit's payload."""


@dataclass(frozen=True, slots=True)
class Header:
    """First record: what the run is. `digest` is that of the parameters at generation 0."""

    spec: dict[str, Any]
    digest: int


@dataclass(frozen=True, slots=True)
class Commit:
    """One generation. `digest` is that of the parameters that the votes were cast on; `record` is the algorithm's."""

    generation: int
    units: int
    threshold: int
    score_sum: int
    score_min: int
    score_max: int
    digest: int
    record: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """From `generation` on the run has this spec (the whole spec, not a difference)."""

    generation: int
    spec: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Close:
    """Last record of a run that ended in order: generations committed, digest of the parameters after them."""

    generation: int
    digest: int


Record = Header | Commit | Change | Close
_KINDS: dict[int, type[Record]] = {1: Header, 2: Commit, 3: Change, 4: Close}
_KIND_OF = {cls: kind for kind, cls in _KINDS.items()}


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def encode(record: Record) -> bytes:
    """Return the record as it stands in the file; raise `JournalError` if a field does not fit its place."""
    try:
        payload = _payload(record)
    except (struct.error, TypeError, ValueError) as error:
        raise JournalError(f"a {type(record).__name__.lower()} record cannot be written: {error}") from error
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise JournalError(f"a record of {len(payload)} bytes is longer than the journal's {MAX_PAYLOAD_BYTES}")
    head = struct.pack("<BI", _KIND_OF[type(record)], len(payload))
    return head + _CRC.pack(crc32(head)) + payload + _CRC.pack(crc32(payload))


def _payload(record: Record) -> bytes:
    match record:
        case Header(spec, digest):
            return canonical_json({"digest": f"{_u64(digest):016x}", "spec": spec})
        case Commit():
            numbers = (record.generation, record.units, record.threshold)
            scores = (record.score_sum, record.score_min, record.score_max)
            return _COMMIT.pack(*numbers, *scores, record.digest) + record.record
        case Change(generation, spec):
            return canonical_json({"generation": _u64(generation), "spec": spec})
        case Close(generation, digest):
            return _CLOSE.pack(generation, digest)


def decode(kind: int, payload: bytes) -> Record:
    """Return the record of a payload whose checksum was good; raise `ValueError` if `encode` cannot have made it."""
    match kind:
        case 1 | 3:
            return _from_json(kind, payload)
        case 2:
            if len(payload) < _COMMIT.size:
                raise ValueError(f"a commit of {len(payload)} bytes is too short")
            return _commit(payload)
        case 4:
            if len(payload) != _CLOSE.size:
                raise ValueError(f"a close of {len(payload)} bytes, not {_CLOSE.size}")
            return Close(*_CLOSE.unpack(payload))
    raise ValueError(f"record type {kind} is unknown")


def _commit(payload: bytes) -> Commit:
    return Commit(*(*_COMMIT.unpack_from(payload), payload[_COMMIT.size :]))


def _from_json(kind: int, payload: bytes) -> Header | Change:
    """Parse a header or change; writing it again must give the same bytes."""
    try:
        values = json.loads(payload)
        spec = values["spec"]
        record = Header(spec, int(values["digest"], 16)) if kind == 1 else Change(values["generation"], spec)
        canonical = isinstance(spec, dict) and _payload(record) == payload
    except (KeyError, RecursionError, TypeError) as error:
        raise ValueError(f"its JSON has other fields: {error}") from error
    if not canonical:
        raise ValueError("its JSON is not canonical")
    return record


def _u64(value: int) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError(f"{value!r} is not an unsigned 64-bit integer")
    return value


def misfit(record: Record, header: Header | None, commits: int) -> str:
    """Why `record` cannot stand after a header and this many commits; empty if it can."""
    match record:
        case Header():
            return "" if header is None else "a second header"
        case _ if header is None:
            return "a record before the header"
        case _ if record.generation != commits:
            return f"generation {record.generation} where {commits} is next"
        case Commit(generation=0, digest=digest) if digest != header.digest:
            return f"generation 0 was voted on digest {digest:016x}, the header says {header.digest:016x}"
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class CommitIndex:
    """The commits of a journal: fixed fields in memory, records read from the file when asked for.

    `fields` is (G,) of `COMMIT_FIELDS`; `record_bytes` is (G,), the sizes of the algorithm's records.
    """

    path: Path
    fields: npt.NDArray[np.void]
    offsets: npt.NDArray[np.uint64]
    record_bytes: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[Commit]:
        return self.between(0, len(self))

    def __getitem__(self, generation: int) -> Commit:
        if not 0 <= generation < len(self):
            raise IndexError(f"generation {generation}: the journal has {len(self)}")
        return next(self.between(generation, generation + 1))

    def between(self, first: int, stop: int) -> Iterator[Commit]:
        """Yield the commits of generations `first` .. `stop` - 1; each is checked again as it is read."""
        with self.path.open("rb") as file:
            for generation in range(first, stop):
                yield self._read(file, generation)

    def _read(self, file: BinaryIO, generation: int) -> Commit:
        offset = int(self.offsets[generation])
        file.seek(offset)
        data = file.read(_OVERHEAD + _COMMIT.size + int(self.record_bytes[generation]))
        payload, check = data[_HEAD.size : -_CRC.size], data[-_CRC.size :]
        if self.fields[generation].tobytes() == payload[: _COMMIT.size] and _CRC.pack(crc32(payload)) == check:
            return _commit(payload)
        raise JournalError(f"{self.path}, byte {offset}: the commit of generation {generation} changed since the scan")


@dataclass(frozen=True, slots=True)
class JournalContents:
    """What a scan found. The first `valid_bytes` are good; `torn_bytes` after them are not, and `torn` says why.

    `content_hash` is the SHA-256, hex, of the valid bytes.
    """

    path: Path
    header: Header
    commits: CommitIndex
    changes: tuple[Change, ...]
    close: Close | None
    valid_bytes: int
    torn_bytes: int
    torn: str
    content_hash: str

    @property
    def append_offset(self) -> int:
        """Where the next record goes: before the close record, if there is one."""
        return self.valid_bytes - (0 if self.close is None else _OVERHEAD + _CLOSE.size)

    def spec_at(self, generation: int) -> dict[str, Any]:
        """Return the spec of a generation, also of one to come: the header's, or that of the last change before it."""
        specs = [change.spec for change in self.changes if change.generation <= generation]
        return specs[-1] if specs else self.header.spec


def scan(path: Path) -> JournalContents:
    """Read a whole journal, one record in memory at a time.

    Raises `RunError` if it cannot be read and `JournalError`, naming the byte offset, if anything but the last
    record is bad. A journal that is being written may end in half a record.
    """
    try:
        with path.open("rb") as file:
            return _Scanner(path, file).scan()
    except OSError as error:
        raise RunError(f"{path}: no journal can be read here: {error.strerror}; check the run's name") from error


class _Scanner:
    """Walks the file; `offset` is where the record under way starts, and the file is good up to there."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.size = os.fstat(file.fileno()).st_size
        self.offset = 0
        self.hash = hashlib.sha256()
        self.header: Header | None = None
        self.changes: list[Change] = []
        self.close: Close | None = None
        self.fields = bytearray()
        self.offsets, self.record_bytes = array("Q"), array("Q")
        self.torn = ""

    def scan(self) -> JournalContents:
        self._read_magic()
        while self.offset < self.size and not self.torn:
            self._read_record()
        if self.header is None:
            self._no_header("the file ends before it")
        numbers = np.array(self.offsets, np.uint64), np.array(self.record_bytes, np.uint64)
        return JournalContents(
            path=self.path,
            header=self.header,
            commits=CommitIndex(self.path, np.frombuffer(self.fields, COMMIT_FIELDS), *numbers),
            changes=tuple(self.changes),
            close=self.close,
            valid_bytes=self.offset,
            torn_bytes=self.size - self.offset,
            torn=self.torn,
            content_hash=self.hash.hexdigest(),
        )

    def _read_magic(self) -> None:
        magic = self._read(min(len(MAGIC), self.size))
        if magic != MAGIC:
            if MAGIC.startswith(magic):
                self._no_header("the file ends before it")
            what = "another version of the format" if magic[:3] == MAGIC[:3] else "not a journal, or a damaged one"
            self._fail(f"{what}: the file starts with {magic!r} and not with {MAGIC!r}")
        self.hash.update(magic)
        self.offset = len(magic)

    def _read_record(self) -> None:
        left = self.size - self.offset
        head = self._read(min(left, _HEAD.size))
        if left < _OVERHEAD:
            return self._cut("the file ends inside a record")
        kind, length, head_check = _HEAD.unpack(head)
        if crc32(head[: -_CRC.size]) != head_check:
            return self._bad_head(left - _HEAD.size)
        self._check_kind(kind, length)
        if length > left - _OVERHEAD:
            return self._cut("the file ends inside a record")
        body = self._read(length + _CRC.size)
        payload = body[:length]
        if _CRC.pack(crc32(payload)) == body[length:]:
            return self._accept(kind, payload, head + body)
        if length != left - _OVERHEAD:
            self._fail("the record's checksum is wrong", self._remedy())
        return self._cut("the last record's checksum is wrong")

    def _check_kind(self, kind: int, length: int) -> None:
        """Fail on what no torn write can explain: a head with a good checksum was written like this."""
        if kind not in _KINDS:
            self._fail(f"record type {kind} is unknown: a newer version of es-service wrote it; read it with that")
        if (kind == 1) != (self.header is None):
            self._fail("the header is missing" if self.header is None else "there is a second header")
        if self.close is not None:
            self._fail("a record follows the close record")
        if length > MAX_PAYLOAD_BYTES:
            self._fail(f"the record's length of {length} bytes is above the limit of {MAX_PAYLOAD_BYTES}")

    def _bad_head(self, left: int) -> None:
        """Cut at a head with a bad checksum if no other record can lie behind it, else fail."""
        rest = self._read(left) if left <= MAX_PAYLOAD_BYTES + _CRC.size else b""
        if rest and not rest.strip(b"\0"):
            self._cut("the file ends in zeros inside a record")
        elif rest and _CRC.pack(crc32(rest[: -_CRC.size])) == rest[-_CRC.size :]:
            self._cut("the last record's head is damaged, and its payload reaches to the end of the file")
        else:
            self._fail("the checksum of the record's type and length is wrong", self._remedy())

    def _accept(self, kind: int, payload: bytes, data: bytes) -> None:
        try:
            record = decode(kind, payload)
        except ValueError as error:
            self._fail(f"the checksum is good but the record is not: {error}")
        if problem := misfit(record, self.header, len(self.offsets)):
            self._fail(problem)
        match record:
            case Header():
                self.header = record
            case Commit():
                self.fields += payload[: _COMMIT.size]
                self.offsets.append(self.offset)
                self.record_bytes.append(len(record.record))
            case Change():
                self.changes.append(record)
            case Close():
                self.close = record
        self.hash.update(data)
        self.offset += len(data)

    def _read(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            self._fail("the file became shorter while it was read; read it again")
        return data

    def _cut(self, reason: str) -> None:
        """Everything from `offset` on is torn. Without a header there is no run to keep."""
        if self.header is None:
            self._no_header(reason)
        if self.close is not None:
            self._fail("bytes follow the close record", self._remedy())
        self.torn = reason

    def _no_header(self, reason: str) -> NoReturn:
        self._fail(
            f"the header is damaged or torn ({reason}) and no commit follows it; put back a copy of the file, "
            "or remove the run's directory and start it again: the same config gives the same run"
        )

    def _remedy(self) -> str:
        if self.header is None:
            return "; nothing was changed. Put back a copy of the file"
        return (
            f"; nothing was changed. Put back a copy of the file; without one, `truncate -s {self.offset} {self.path}` "
            f"and resume: the run goes on from generation {len(self.offsets)} and comes to the same bits again"
        )

    def _fail(self, problem: str, remedy: str = "") -> NoReturn:
        raise JournalError(f"{self.path}, byte {self.offset}: {problem}{remedy}")
