"""A corpus: two splits of bytes and the hash that identifies them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from es_service.types import UInt8Array

CHUNK = 1 << 24
"""Bytes handled at a time where an array may be larger than memory."""

FORMAT = "es-service corpus 1"
"""Rules by which documents become bytes; a change of them is another corpus."""


@dataclass(frozen=True, slots=True, eq=False)
class Corpus:
    """Text as bytes: for each document a byte 0, then its UTF-8 bytes.

    train, held_out: (size,) uint8, C-contiguous, perhaps memory-mapped and read-only.
    content_hash: 64 hex digits over both splits. name: what a person calls it; not part of the hash.
    """

    train: UInt8Array
    held_out: UInt8Array
    content_hash: str
    name: str

    @classmethod
    def of(cls, train: UInt8Array, held_out: UInt8Array, name: str) -> Corpus:
        """A corpus in memory; computes its hash."""
        digests = [split_digest(np.ascontiguousarray(split)) for split in (train, held_out)]
        return cls(train, held_out, content_hash((train.size, digests[0]), (held_out.size, digests[1])), name)


def split_digest(split: UInt8Array) -> bytes:
    """SHA-256 of the bytes of one split: 32 bytes."""
    digest = hashlib.sha256()
    for start in range(0, split.size, CHUNK):
        digest.update(split[start : start + CHUNK].data)
    return digest.digest()


def content_hash(train: tuple[int, bytes], held_out: tuple[int, bytes]) -> str:
    """SHA-256, in hex, of a label and of (size as u64 little-endian, SHA-256) of each split, training first."""
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    for size, split in (train, held_out):
        digest.update(size.to_bytes(8, "little") + split)
    return digest.hexdigest()
