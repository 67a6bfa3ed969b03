"""A corpus from the head, for nodes that cannot build it themselves: other files, another Python, no network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from es_service.data.cache import Cache, default_cache_dir
from es_service.data.config import DataConfig
from es_service.data.corpus import Corpus
from es_service.data.load import load_corpus
from es_service.errors import DataError
from es_service.types import UInt8Array

__all__ = ["PIECE_BYTES", "load_or_fetch", "piece"]

PIECE_BYTES = 8 << 20
"""Bytes of one answer of the head."""

Read = Callable[[bool, int], bytes]
"""(held out?, offset) -> the next bytes of that split, at most `PIECE_BYTES`; empty at its end."""


def piece(corpus: Corpus, held_out: bool, offset: int) -> bytes:
    """What the head answers."""
    split: UInt8Array = corpus.held_out if held_out else corpus.train
    return split[max(0, offset) : max(0, offset) + PIECE_BYTES].tobytes()


def load_or_fetch(config: DataConfig, read: Read, cache_dir: Path | None = None) -> Corpus:
    """The corpus of a config with its content hash: cached, built here, or else fetched once into the cache.

    Raises `DataError` if what arrived has another hash.
    """
    try:
        return load_corpus(config, cache_dir)
    except DataError:
        if config.content_hash is None:
            raise
    cache = Cache((cache_dir or default_cache_dir()).absolute())
    with cache.lock(f"fetch-{config.content_hash}"):
        return cache.open(config.content_hash) or _fetch(config.content_hash, read, cache)


def _fetch(wanted: str, read: Read, cache: Cache) -> Corpus:
    with cache.writer(f"fetch-{wanted}", None) as writer:
        for held_out in (False, True):
            offset = 0
            while data := read(held_out, offset):
                writer.add_raw(data[:PIECE_BYTES], held_out)
                offset += len(data)
        corpus = cache.store(writer, "fetched from the head")
    if corpus.content_hash != wanted:
        raise DataError(f"data.content_hash: the run began with {wanted} and the head sent {corpus.content_hash}")
    return corpus
