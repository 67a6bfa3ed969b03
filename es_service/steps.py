"""Models as steps: one file of spec, thresholds and entropy-coded votes, from which every generation follows.

Exact bytes: docs/steps.md. A file is written whole or not at all, so every kind of damage is an error, which names the
byte offset. Suffix: Q votes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from zlib import crc32

import numpy as np

from es_service.coding import decode, encode, read_varint, varint, zigzag
from es_service.durable import write_atomically
from es_service.errors import MessageError, StepsError
from es_service.journal import MAX_PAYLOAD_BYTES, canonical_json
from es_service.types import Int8Array
from es_service.votes import VOTES_PER_BYTE

__all__ = ["BLOCK_VOTES", "MAGIC", "Block", "Scores", "Step", "Steps", "StepsHeader", "scan", "write"]

MAGIC = b"ESS1"
FORMAT_VERSION = 1
BLOCK_VOTES = 1 << 16
"""A block is closed by the generation that brings it to this many votes."""
_HEAD = struct.Struct("<BII")
_CRC = struct.Struct("<I")
_DIGEST = struct.Struct("<Q")
_HEADER, _BLOCK = 1, 2
_MAX_UNITS = VOTES_PER_BYTE * MAX_PAYLOAD_BYTES

Scores = tuple[int, int, int]
"""Sum, least and greatest of the members' scores of one generation, as the journal has them."""


@dataclass(frozen=True, slots=True)
class StepsHeader:
    """What the steps belong to. `config` is the spec with the part of the deployment that an export has.

    `changes` are (generation, spec), ascending; `digest` is that of the parameters after the last generation;
    `scores` says whether steps carry scores.
    """

    config: dict[str, Any]
    changes: tuple[tuple[int, dict[str, Any]], ...]
    generations: int
    digest: int
    scores: bool

    def spec_at(self, generation: int) -> dict[str, Any]:
        """The spec of a generation: the config's, or that of the last change before it."""
        first = {key: value for key, value in self.config.items() if key != "deployment"}
        return [first, *(spec for start, spec in self.changes if start <= generation)][-1]


@dataclass(frozen=True, slots=True)
class Step:
    """One generation: `votes_Q` are cast on parameters of `digest`, which is not known for every generation."""

    generation: int
    threshold: int
    votes_Q: Int8Array
    scores: Scores | None
    digest: int | None


@dataclass(frozen=True, slots=True)
class Block:
    """A stretch of generations in the file. `code_bytes` of its `bytes` are votes, `score_bytes` are scores."""

    offset: int
    bytes: int
    first: int
    generations: int
    units: int
    code_bytes: int
    score_bytes: int

    @property
    def stop(self) -> int:
        """The generation after its last."""
        return self.first + self.generations


@dataclass(frozen=True, slots=True)
class Steps:
    """A file that has been checked; votes are decoded when they are asked for."""

    path: Path
    header: StepsHeader
    blocks: tuple[Block, ...]
    bytes: int

    def between(self, first: int, stop: int) -> Iterator[Step]:
        """The steps of generations `first` .. `stop` - 1; blocks without one of them are not read."""
        with self.path.open("rb") as file:
            for block in self.blocks:
                if block.first < stop and first < block.stop:
                    file.seek(block.offset)
                    steps = _Reader(self.path, file, self.bytes).steps(self.header.scores)
                    yield from (step for step in steps if first <= step.generation < stop)


def write(path: Path, header: StepsHeader, steps: Iterable[Step]) -> None:
    """Write a file durably. Every step has a digest, and scores if the header says so; equal steps, equal files."""
    values = {
        "changes": [{"generation": generation, "spec": spec} for generation, spec in header.changes],
        "config": header.config,
        "digest": f"{header.digest:016x}",
        "format_version": FORMAT_VERSION,
        "generations": header.generations,
        "scores": header.scores,
    }
    starts = {generation for generation, _ in header.changes}
    blocks = (_frame(_BLOCK, _block(block, header.scores)) for block in _grouped(steps, starts))
    try:
        write_atomically(path, MAGIC, _frame(_HEADER, canonical_json(values)), *blocks)
    except OSError as error:
        raise StepsError(f"{path}: cannot be written: {error.strerror}; free or repair that disk") from error


def _grouped(steps: Iterable[Step], starts: set[int]) -> Iterator[list[Step]]:
    """Stretches of one spec, closed as soon as they have `BLOCK_VOTES` votes."""
    block: list[Step] = []
    for step in steps:
        if block and (step.generation in starts or len(block) * len(step.votes_Q) >= BLOCK_VOTES):
            yield block
            block = []
        block.append(step)
    if block:
        yield block


def _block(steps: Sequence[Step], scores: bool) -> bytes:
    digest, units = steps[0].digest, len(steps[0].votes_Q)
    assert digest is not None, "the first step of a block has a digest"
    data = bytearray(_DIGEST.pack(digest))
    for number in (steps[0].generation, len(steps), units):
        data += varint(number)
    sections = [_columns([(step.threshold,) for step in steps], 1)]
    sections += [_columns([step.scores for step in steps if step.scores], 3)] if scores else []
    for section in sections:
        data += varint(len(section)) + section
    return bytes(data) + encode(np.concatenate([step.votes_Q for step in steps]))


def _columns(rows: Sequence[tuple[int, ...]], width: int) -> bytes:
    """Runs of equal rows: how many, then the zigzag difference of each number from the row before, at first 0."""
    data, last, place = bytearray(), (0,) * width, 0
    while place < len(rows):
        row, first = rows[place], place
        while place < len(rows) and rows[place] == row:
            place += 1
        data += varint(place - first)
        data += b"".join(varint(zigzag(new - old)) for new, old in zip(row, last, strict=True))
        last = row
    return bytes(data)


def _frame(kind: int, payload: bytes) -> bytes:
    head = struct.pack("<BI", kind, len(payload))
    return head + _CRC.pack(crc32(head)) + payload + _CRC.pack(crc32(payload))


def scan(path: Path) -> Steps:
    """Check every byte of a file but for the votes' meaning; raises `StepsError`, naming the byte offset."""
    try:
        with path.open("rb") as file:
            return _Reader(path, file, path.stat().st_size).scan()
    except OSError as error:
        raise StepsError(f"{path}: cannot be read: {error.strerror}") from error


class _Reader:
    """Reads records in order; `offset` is where the record under way starts."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.offset = file.tell()

    def scan(self) -> Steps:
        magic = self.file.read(len(MAGIC))
        if magic != MAGIC:
            self._fail(f"not a steps file of this version: it starts with {magic!r} and not with {MAGIC!r}")
        self.offset = len(MAGIC)
        header = self._decoded(_header, self._record(_HEADER))
        blocks: list[Block] = []
        done = 0
        while done < header.generations:
            begin, payload = self.offset, self._record(_BLOCK)
            block, *_ = self._decoded(_block_head, payload, header.scores)
            if block.first != done or block.stop > header.generations:
                self._fail(f"generations {block.first} .. {block.stop - 1} where {done} is next", begin)
            blocks.append(replace(block, offset=begin, bytes=self.offset - begin))
            done = block.stop
        if self.offset != self.size:
            self._fail(f"{self.size - self.offset} bytes follow the last generation")
        return Steps(self.path, header, tuple(blocks), self.size)

    def steps(self, scores: bool) -> list[Step]:
        """The steps of the block at the file's position."""
        begin, payload = self.offset, self._record(_BLOCK)
        found: list[Step] = self._decoded(_steps, payload, scores, begin=begin)
        return found

    def _record(self, wanted: int) -> bytes:
        head = self.file.read(_HEAD.size)
        if len(head) < _HEAD.size:
            self._fail("the file ends before its last generation")
        kind, length, check = _HEAD.unpack(head)
        if crc32(head[: -_CRC.size]) != check:
            self._fail("the checksum of the record's type and length is wrong")
        if kind != wanted:
            self._fail(f"a record of type {kind} where type {wanted} belongs")
        if length > self.size - self.offset - _HEAD.size - _CRC.size:
            self._fail("the file ends inside a record")
        body = self.file.read(length + _CRC.size)
        payload = body[:length]
        if _CRC.pack(crc32(payload)) != body[length:]:
            self._fail("the record's checksum is wrong")
        self.offset += _HEAD.size + len(body)
        return payload

    def _decoded(self, parse: Callable[..., Any], payload: bytes, *rest: Any, begin: int | None = None) -> Any:
        try:
            return parse(payload, *rest)
        except (MessageError, ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
            offset = self.offset - _HEAD.size - len(payload) - _CRC.size if begin is None else begin
            self._fail(f"the checksum is good but the record is not: {error}", offset)

    def _fail(self, problem: str, offset: int | None = None) -> NoReturn:
        where = self.offset if offset is None else offset
        raise StepsError(f"{self.path}, byte {where}: {problem}; make the file again or take another copy")


def _header(payload: bytes) -> StepsHeader:
    values = json.loads(payload)
    if values["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format version is {values['format_version']!r}, not {FORMAT_VERSION}")
    changes = tuple((change["generation"], change["spec"]) for change in values["changes"])
    generations = values["generations"]
    numbers = [0, *(generation for generation, _ in changes), generations]
    if any(type(number) is not int for number in numbers) or numbers != sorted(numbers):
        raise ValueError(f"its generations are {numbers}, which do not ascend")
    return StepsHeader(values["config"], changes, generations, int(values["digest"], 16), values["scores"] is True)


def _block_head(payload: bytes, scores: bool) -> tuple[Block, list[tuple[int, ...]], list[tuple[int, ...]], int]:
    """The block, its thresholds, its scores, and where its code starts."""
    first, at = read_varint(payload, _DIGEST.size)
    generations, at = read_varint(payload, at)
    units, at = read_varint(payload, at)
    if not (generations and 0 < units <= _MAX_UNITS and (generations - 1) * units < BLOCK_VOTES):
        raise ValueError(f"{generations} generations of {units} votes are no block")
    size, at = read_varint(payload, at)
    thresholds, at = _rows(payload[at : at + size], generations, 1), at + size
    table: list[tuple[int, ...]] = []
    size = 0
    if scores:
        size, at = read_varint(payload, at)
        table, at = _rows(payload[at : at + size], generations, 3), at + size
    return Block(0, len(payload), first, generations, units, len(payload) - at, size), thresholds, table, at


def _rows(data: bytes, count: int, width: int) -> list[tuple[int, ...]]:
    rows: list[tuple[int, ...]] = []
    last, at = (0,) * width, 0
    while len(rows) < count:
        times, at = read_varint(data, at)
        changes = []
        for _ in range(width):
            code, at = read_varint(data, at)
            changes.append(~(code >> 1) if code & 1 else code >> 1)
        last = tuple(old + change for old, change in zip(last, changes, strict=True))
        if not 0 < times <= count - len(rows):
            raise ValueError(f"a run of {times} rows where {count - len(rows)} are left")
        rows += [last] * times
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes too many in a table of {count} rows")
    return rows


def _steps(payload: bytes, with_scores: bool) -> list[Step]:
    block, thresholds, scores, at = _block_head(payload, with_scores)
    votes_Q = decode(payload[at:], block.generations * block.units).reshape(block.generations, block.units)
    digests = chain([_DIGEST.unpack_from(payload)[0]], [None] * (block.generations - 1))
    return [
        Step(block.first + place, thresholds[place][0], votes_Q[place], _scores(scores, place), digest)
        for place, digest in enumerate(digests)
    ]


def _scores(rows: Sequence[tuple[int, ...]], place: int) -> Scores | None:
    if not rows:
        return None
    total, least, greatest = rows[place]
    return total, least, greatest
