"""Noise addressing and the quantile table: the one definition for every backend (specs/formats.md).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): key = the run seed,
counter = (block, stream << 24 | tensor index, unit, epoch). Entry n is byte n mod 4 (least significant first)
of word (n mod 16) div 4 of block n div 16. A byte becomes an int8 of N(0, 16^2) through `TABLE`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service.types import Int8Array, UInt8Array

MAX_TENSORS = 1 << 24
MAX_UNITS = 1 << 32
MAX_GENERATIONS = 1 << 32
MAX_ENTRIES = 1 << 36

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)


class Stream(IntEnum):
    """What a counter is used for."""

    INITIAL = 0
    FACTOR_A = 1
    FACTOR_B = 2
    VECTOR_U = 3
    VECTOR_V = 4
    TERNARY_SUPPORT = 5
    TERNARY_SIGN = 6
    SAMPLING = 7


# Bytes 128 .. 255, ascending, as value:count; the other half is the mirror image.
_TABLE_RUNS = (
    "0:3 1:7 2:6 3:6 4:6 5:6 6:6 7:6 8:6 9:5 10:6 11:5 12:4 13:5 14:4 15:4 16:4 17:4 18:3 19:3 20:3 21:3 22:3 "
    "23:2 24:2 25:2 26:1 27:2 28:1 29:2 30:1 31:1 32:1 34:1 35:1 37:1 40:1 48:1"
)


def _table() -> Int8Array:
    runs = (pair.split(":") for pair in _TABLE_RUNS.split())
    upper = np.array([int(value) for value, count in runs for _ in range(int(count))], np.int8)
    return np.concatenate([-upper[::-1], upper])


TABLE: Int8Array = _table()
"""(256,) int8: T[b], the rounded mean of 16 Z over bin b of 256 equal-probability bins of N(0, 1)."""
TABLE.setflags(write=False)


def philox4x32(counter: npt.NDArray[np.uint32], key: tuple[int, int]) -> npt.NDArray[np.uint32]:
    """Philox4x32-10 of counters (..., 4) uint32 under a key of two 32-bit words; shape and dtype are kept."""
    words: list[Any] = [counter[..., i].astype(np.uint64) for i in range(4)]
    key0, key1 = key
    for _ in range(10):
        product0, product1 = words[0] * _M0, words[2] * _M1
        words = [
            (product1 >> _32) ^ words[1] ^ np.uint64(key0),
            product1 & _LOW,
            (product0 >> _32) ^ words[3] ^ np.uint64(key1),
            product0 & _LOW,
        ]
        key0, key1 = (key0 + _W0) & 0xFFFFFFFF, (key1 + _W1) & 0xFFFFFFFF
    return np.stack(words, axis=-1).astype(np.uint32)


def uniform_bytes(
    seed: int, epoch: int, stream: Stream, tensor: int, units_Q: npt.ArrayLike, size: int, first: int = 0
) -> UInt8Array:
    """Bytes `first` .. `first + size - 1` of one stream of one tensor: (Q, size) uint8, one row a unit."""
    units = np.atleast_1d(np.asarray(units_Q, np.uint32))
    first_block, end_block = first // 16, -(-(first + size) // 16)
    counter = np.empty((len(units), end_block - first_block, 4), np.uint32)
    counter[..., 0] = np.arange(first_block, end_block, dtype=np.uint64).astype(np.uint32)
    counter[..., 1] = int(stream) << 24 | tensor
    counter[..., 2] = units[:, None]
    counter[..., 3] = epoch
    words = philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32))
    skip = first - 16 * first_block
    return words.astype("<u4").view(np.uint8).reshape(len(units), -1)[:, skip : skip + size]


def entries(
    seed: int, epoch: int, stream: Stream, tensor: int, units_Q: npt.ArrayLike, size: int, first: int = 0
) -> Int8Array:
    """The same as int8 values of N(0, 16^2) through `TABLE`: (Q, size) int8."""
    return TABLE[uniform_bytes(seed, epoch, stream, tensor, units_Q, size, first)]
