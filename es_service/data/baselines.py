"""What simple models need for the same held-out bytes, in bits per byte: lines to compare a loss curve with."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from es_service.data.corpus import CHUNK, Corpus
from es_service.types import UInt8Array

SMOOTHING = 0.01
"""Added to every count, so that a byte or pair that training never saw has a finite cost."""


@dataclass(frozen=True, slots=True)
class Baselines:
    """Bits per byte of the held-out text.

    unigram, bigram: cross-entropy of models of order 0 and 1, counted on the training split.
    gzip: the whole held-out split compressed at level 9; it never saw the training split.
    """

    unigram: float
    bigram: float
    gzip: float


def baselines(corpus: Corpus, rows: UInt8Array | None = None) -> Baselines:
    """Baselines of a corpus.

    rows: (R, T + 1) uint8 of `evaluation_rows`; the n-grams then score these targets, each after its true previous
    byte. None scores every held-out byte but the first. gzip always takes the whole split, not the short rows.
    """
    held_out = corpus.held_out if rows is None else rows
    return Baselines(*_cross_entropies(_pair_counts(corpus.train), _pair_counts(held_out)), _gzip_bits(corpus.held_out))


def _pair_counts(data: UInt8Array) -> npt.NDArray[np.int64]:
    """(256, 256) int64: how often each byte follows each byte along the last axis of (size,) or (R, W) uint8."""
    counts = np.zeros(65536, np.int64)
    for start in range(0, data.shape[-1] - 1, CHUNK):
        part = data[..., start : start + CHUNK + 1].astype(np.uint16)
        counts += np.bincount((part[..., :-1] << 8 | part[..., 1:]).ravel(), minlength=65536)
    return counts.reshape(256, 256)


def _cross_entropies(train: npt.NDArray[np.int64], scored: npt.NDArray[np.int64]) -> tuple[float, float]:
    """(order 0, order 1) in bits per byte of the scored pairs, from pair counts (256, 256) of both."""
    smooth = train + SMOOTHING
    order1 = np.log2(smooth / smooth.sum(axis=1, keepdims=True))
    smooth = train.sum(axis=0) + SMOOTHING
    order0 = np.log2(smooth / smooth.sum())
    total = scored.sum()
    return float(-(scored.sum(axis=0) * order0).sum() / total), float(-(scored * order1).sum() / total)


def _gzip_bits(data: UInt8Array) -> float:
    """Bits per byte of a gzip file at level 9, its header of 18 bytes included."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits=31)
    size = sum(len(packer.compress(data[start : start + CHUNK].data)) for start in range(0, data.size, CHUNK))
    return 8 * (size + len(packer.flush())) / data.size
