"""Packing of votes, five to a byte (specs/formats.md, Votes).

Digit 0, 1, 2 stands for vote 0, +1, -1; byte = sum over k of digit_k 3^k, the first vote in k = 0; the last byte is
padded with digit 0. Ternary weights are packed in the same way. Suffix: Q votes.
"""

from __future__ import annotations

import numpy as np

from es_service.errors import MessageError
from es_service.types import Int8Array, Int32Array

__all__ = [
    "VOTES_PER_BYTE", "check", "from_scores", "pack", "pack_2bit", "packed_size", "unpack", "unpack_2bit",
]  # fmt: skip

VOTES_PER_BYTE = 5
_WEIGHTS = np.array([1, 3, 9, 27, 81], np.uint8)
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)
_END = 3**VOTES_PER_BYTE


def _table() -> Int8Array:
    digits = np.arange(256)[:, None] // _WEIGHTS % 3
    return np.where(digits == 2, -1, digits).astype(np.int8)


_TABLE: Int8Array = _table()
"""(256, 5) int8: the votes in each byte; rows from 243 on are never read."""
_TABLE.setflags(write=False)


def from_scores(scores_M: Int32Array) -> Int8Array:
    """sign(score(2q) - score(2q + 1)): (M / 2,) int8 from (M,) int32."""
    wide = scores_M.astype(np.int64)
    signs_Q: Int8Array = np.sign(wide[0::2] - wide[1::2]).astype(np.int8)
    return signs_Q


def packed_size(count: int) -> int:
    """Bytes that `count` votes take."""
    return -(-count // VOTES_PER_BYTE)


def pack(votes_Q: Int8Array) -> bytes:
    """Pack votes (Q,) int8 in {-1, 0, +1} into `packed_size(Q)` bytes; raise `MessageError` on anything else."""
    _check(votes_Q)
    digits = np.zeros((packed_size(votes_Q.size), VOTES_PER_BYTE), np.uint8)
    digits.reshape(-1)[: votes_Q.size] = votes_Q % 3
    packed: bytes = (digits @ _WEIGHTS).tobytes()
    return packed


def pack_2bit(votes_Q: Int8Array) -> bytes:
    """The same digits in two bits each, the first in the lowest bits of a byte, padded with 0.

    For exported ternary weights (`es_service.packing`): they are read with shifts alone, and any weight by itself.
    """
    _check(votes_Q)
    digits = np.zeros((-(-votes_Q.size // 4), 4), np.uint8)
    digits.reshape(-1)[: votes_Q.size] = votes_Q % 3
    packed: bytes = (digits << _SHIFTS).sum(axis=1, dtype=np.uint8).tobytes()
    return packed


def unpack_2bit(packed: bytes, count: int) -> Int8Array:
    """The `count` votes in `packed`, (count,) int8; raises `MessageError` unless `pack_2bit` could have made it."""
    if count < 0 or len(packed) != -(-count // 4):
        raise MessageError(f"{len(packed)} bytes cannot hold exactly {count} votes of two bits")
    digits = (np.frombuffer(packed, np.uint8)[:, None] >> _SHIFTS & 3).reshape(-1)
    if (digits == 3).any() or digits[count:].any():
        raise MessageError("two bits of the packed votes are 3, or the padding is not zero")
    return np.where(digits == 2, -1, digits).astype(np.int8)[:count]


def _check(votes_Q: Int8Array) -> None:
    if votes_Q.dtype != np.int8 or votes_Q.ndim != 1:
        raise MessageError(f"votes are {votes_Q.dtype} of shape {votes_Q.shape}: give int8 of shape (Q,)")
    if votes_Q.size and (votes_Q.min() < -1 or votes_Q.max() > 1):
        raise MessageError("votes must be -1, 0 or +1")


def check(packed: bytes, count: int) -> None:
    """Raise `MessageError` unless `pack` could have made these bytes from `count` votes."""
    if count < 0 or len(packed) != packed_size(count):
        raise MessageError(f"{len(packed)} bytes cannot hold exactly {count} votes, which take {packed_size(count)}")
    bytes_B = np.frombuffer(packed, np.uint8)
    if count and bytes_B.max() >= _END:
        raise MessageError(f"byte {int(np.argmax(bytes_B >= _END))} of the packed votes is {_END} or more")
    if count and _TABLE[packed[-1]][count - VOTES_PER_BYTE * (len(packed) - 1) :].any():
        raise MessageError(f"the padding after {count} packed votes is not zero")


def unpack(packed: bytes, count: int) -> Int8Array:
    """Return the `count` votes in `packed`, (count,) int8; raise `MessageError` unless `pack` could have made it."""
    check(packed, count)
    return _TABLE[np.frombuffer(packed, np.uint8)].reshape(-1)[:count]
