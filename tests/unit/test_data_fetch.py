"""A node that cannot build the corpus gets it from the head, checked by its hash."""

import numpy as np
import pytest

from es_service.data import Corpus, FilesDataConfig, load_or_fetch, piece
from es_service.data import fetch as fetching
from es_service.errors import DataError


@pytest.fixture
def corpus():
    rng = np.random.default_rng(5)
    return Corpus.of(*(rng.integers(0, 256, size, np.uint8) for size in (10_001, 777)), name="random")


def config_of(corpus, tmp_path):
    return FilesDataConfig(paths=(tmp_path / "nowhere",), content_hash=corpus.content_hash)


def test_pieces_join_to_the_corpus_and_are_cached(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "PIECE_BYTES", 1000)
    asked = []

    def read(held_out, offset):
        asked.append((held_out, offset))
        return piece(corpus, held_out, offset)

    fetched = load_or_fetch(config_of(corpus, tmp_path), read, tmp_path / "cache")
    assert fetched.content_hash == corpus.content_hash
    assert fetched.train.tobytes() == corpus.train.tobytes()
    assert fetched.held_out.tobytes() == corpus.held_out.tobytes()
    assert len(asked) == 11 + 1 + 1 + 1
    again = load_or_fetch(config_of(corpus, tmp_path), lambda *_: pytest.fail("not cached"), tmp_path / "cache")
    assert again.train.tobytes() == corpus.train.tobytes()


def test_other_bytes_are_refused(corpus, tmp_path):
    def flipped(held_out, offset):
        data = bytearray(piece(corpus, held_out, offset))
        if data and not held_out:
            data[17] ^= 1
        return bytes(data)

    with pytest.raises(DataError, match="the head sent"):
        load_or_fetch(config_of(corpus, tmp_path), flipped, tmp_path / "cache")


def test_without_a_hash_nothing_is_fetched(tmp_path):
    with pytest.raises(DataError, match=r"data\.paths"):
        load_or_fetch(FilesDataConfig(paths=(tmp_path / "nowhere",)), lambda *_: pytest.fail("asked"), tmp_path)
