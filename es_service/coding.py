"""Entropy coding of votes: a static range coder in integers only (rANS; Duda 2013, arXiv 1311.2540).

The symbols are bytes of five votes (`votes.pack`): 243 of them, so one step of the coder moves five votes. Their
frequencies follow from the counts of the three digits, which stand before the code, so that coder and decoder need no
other table. Exact bytes: docs/steps.md. Suffix: Q votes.
"""

from __future__ import annotations

from array import array

import numpy as np

from es_service import votes
from es_service.errors import MessageError
from es_service.types import Int8Array

__all__ = ["decode", "encode", "entropy_bits", "read_varint", "varint", "zigzag"]

_SYMBOLS = 3**votes.VOTES_PER_BYTE
_SCALE = 20
"""Frequencies of the symbols add up to 2^20."""
_LOW = 1 << 32
"""The state lies in 2^32 .. 2^48 - 1 and is moved 16 bits at a time."""
_WORD = 16
_STATE_BYTES = 6
_DIGITS = np.arange(_SYMBOLS)[:, None] // 3 ** np.arange(votes.VOTES_PER_BYTE) % 3


def encode(votes_Q: Int8Array) -> bytes:
    """Votes (Q,) int8 in {-1, 0, +1}, Q > 0, as bytes that with Q give them back; equal votes give equal bytes."""
    packed = votes.pack(votes_Q)
    counts = _counts(packed)
    frequencies = _frequencies(counts)
    starts = _starts(frequencies)
    limits = [frequency << (48 - _SCALE) for frequency in frequencies]
    words, state = array("H"), _LOW
    for symbol in reversed(packed):
        while state >= limits[symbol]:
            words.append(state & 0xFFFF)
            state >>= _WORD
        quotient, rest = divmod(state, frequencies[symbol])
        state = (quotient << _SCALE) + rest + starts[symbol]
    words.reverse()
    body = np.frombuffer(words, np.uint16).astype("<u2").tobytes()
    return varint(counts[1]) + varint(counts[2]) + state.to_bytes(_STATE_BYTES, "little") + body


def decode(data: bytes, count: int) -> Int8Array:
    """The `count` votes of `data`, (count,) int8; raises `MessageError` unless `encode` could have made it."""
    plus, offset = read_varint(data, 0)
    minus, offset = read_varint(data, offset)
    size = votes.packed_size(count)
    counts = [votes.VOTES_PER_BYTE * size - plus - minus, plus, minus]
    head, body = data[offset : offset + _STATE_BYTES], data[offset + _STATE_BYTES :]
    state = int.from_bytes(head, "little")
    whole = len(head) == _STATE_BYTES and len(body) % 2 == 0
    if count < 1 or counts[0] < 0 or not whole or not _LOW <= state < _LOW << _WORD:
        raise MessageError(f"{len(data)} bytes are no code of {count} votes: counts {counts}, state {state:#x}")
    packed, state, left = _symbols(_frequencies(counts), state, np.frombuffer(body, "<u2").tolist(), size)
    if state != _LOW or left:
        raise MessageError(f"the code of {count} votes ends in state {state:#x} with {left} words left")
    if _counts(packed) != counts:
        raise MessageError(f"the code of {count} votes says {counts} and holds {_counts(packed)} of each digit")
    return votes.unpack(packed, count)


def _counts(packed: bytes) -> list[int]:
    """How often each digit occurs, padding included."""
    counts: list[int] = np.bincount(_DIGITS[np.frombuffer(packed, np.uint8)].reshape(-1), minlength=3).tolist()
    return counts


def _symbols(frequencies: list[int], state: int, words: list[int], size: int) -> tuple[bytes, int, int]:
    """The packed bytes, the state after them, and how many words were not used."""
    starts = _starts(frequencies)
    symbol_of = np.repeat(np.arange(_SYMBOLS, dtype=np.uint8), frequencies).tobytes()
    packed, mask = bytearray(size), (1 << _SCALE) - 1
    words.reverse()
    for place in range(size):
        slot = state & mask
        symbol = packed[place] = symbol_of[slot]
        state = frequencies[symbol] * (state >> _SCALE) + slot - starts[symbol]
        while state < _LOW:
            if not words:
                raise MessageError(f"the code ends before byte {place + 1} of {size} packed votes")
            state = state << _WORD | words.pop()
    return bytes(packed), state, len(words)


def _frequencies(counts: list[int]) -> list[int]:
    """Of each symbol: the product of its digits' shares, at least 1 if it can occur, with sum 2^20."""
    total = sum(counts) ** votes.VOTES_PER_BYTE
    spread = (1 << _SCALE) - _SYMBOLS
    weights = [1] * _SYMBOLS
    for symbol, digits in enumerate(_DIGITS.tolist()):
        for digit in digits:
            weights[symbol] *= counts[digit]
    frequencies = [weight * spread // total + (weight > 0) for weight in weights]
    frequencies[frequencies.index(max(frequencies))] += (1 << _SCALE) - sum(frequencies)
    return frequencies


def _starts(frequencies: list[int]) -> list[int]:
    starts, end = [], 0
    for frequency in frequencies:
        starts.append(end)
        end += frequency
    return starts


def entropy_bits(counts: tuple[int, int, int]) -> float:
    """Bits a vote that no code without memory goes below, for these counts of votes; 0 for no votes."""
    shares = np.array(counts, np.float64) / max(1, sum(counts))
    seen = shares[shares > 0]
    return float(-(seen * np.log2(seen)).sum()) + 0.0


def zigzag(value: int) -> int:
    """0, -1, 1, -2, 2, ... as 0, 1, 2, 3, 4, ..."""
    return value << 1 if value >= 0 else ~(value << 1)


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits to a byte, the least significant first; the high bit says that more follow."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """The integer at `offset` and the offset behind it; raises `MessageError` unless `varint` made it, up to 2^70."""
    value = 0
    for place in range(10):
        if offset + place >= len(data):
            break
        byte = data[offset + place]
        value |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            if place and not byte:
                raise MessageError(f"the number at byte {offset} has a needless zero")
            return value, offset + place + 1
    raise MessageError(f"the number at byte {offset} does not end")
