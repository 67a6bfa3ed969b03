"""Evaluation rows and baselines, against plain-Python counts."""

from __future__ import annotations

import gzip
import math
import sys
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.data import Corpus, baselines, evaluation_rows
from es_service.data.baselines import SMOOTHING
from es_service.errors import DataError
from es_service.types import UInt8Array


def words(size: int, seed: int) -> UInt8Array:
    return np.random.default_rng(seed).choice(np.frombuffer(b"\0aabcc  ", np.uint8), size)


@given(st.integers(2, 600), st.integers(1, 40), st.integers(1, 30))
def test_rows_are_even_disjoint_in_targets_and_as_many_as_fit(size: int, rows: int, segment_bytes: int) -> None:
    position = np.arange(size).astype(np.uint16)  # positions instead of text, to see where rows come from
    held_out = position.view(np.uint8)[: 2 * size : 2]
    if size - 1 < segment_bytes:
        with pytest.raises(DataError, match=rf"held-out split has {size} bytes and one row takes {segment_bytes + 1}"):
            evaluation_rows(held_out, rows=rows, segment_bytes=segment_bytes)
        return
    cut = evaluation_rows(held_out, rows=rows, segment_bytes=segment_bytes)
    count = min(rows, (size - 1) // segment_bytes)
    assert cut.shape == (count, segment_bytes + 1)
    assert cut.dtype == np.uint8
    stride = (size - 1) // count
    assert stride >= segment_bytes
    for row in range(count):
        expected = [(row * stride + column) % 256 for column in range(segment_bytes + 1)]
        assert cut[row].tolist() == expected


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluation_rows(words(100, 0), rows=0, segment_bytes=10)


def test_ngrams_equal_a_plain_count() -> None:
    train, held_out = words(3000, 1), words(700, 2)
    rows = evaluation_rows(held_out, rows=8, segment_bytes=20)
    pairs = Counter(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    order0, context = Counter(train[1:].tolist()), Counter(train[:-1].tolist())
    bits0 = bits1 = 0.0
    for row in rows.tolist():
        for previous, byte in pairwise(row):
            bits0 -= math.log2((order0[byte] + SMOOTHING) / (len(train) - 1 + 256 * SMOOTHING))
            bits1 -= math.log2((pairs[previous, byte] + SMOOTHING) / (context[previous] + 256 * SMOOTHING))
    found = baselines(Corpus.of(train, held_out, "words"), rows)
    assert found.unigram == pytest.approx(bits0 / 160)
    assert found.bigram == pytest.approx(bits1 / 160)
    assert found.gzip == 8 * len(gzip.compress(held_out.tobytes(), 9)) / 700


def test_without_rows_every_held_out_byte_but_the_first_is_scored() -> None:
    corpus = Corpus.of(words(3000, 3), words(301, 4), "words")
    whole = baselines(corpus)
    as_rows = baselines(corpus, corpus.held_out[None])
    assert whole == as_rows


def test_a_byte_that_training_never_saw_has_a_finite_cost() -> None:
    corpus = Corpus.of(np.frombuffer(b"\0aaaa", np.uint8), np.frombuffer(b"\0zz", np.uint8), "unseen")
    found = baselines(corpus)
    assert 8 < found.unigram < 16
    assert math.isfinite(found.bigram)


def test_counts_do_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = Corpus.of(words(1000, 5), words(200, 6), "words")
    whole = baselines(corpus)
    monkeypatch.setattr(sys.modules["es_service.data.baselines"], "CHUNK", 7)
    found = baselines(corpus)
    assert (found.unigram, found.bigram) == (whole.unigram, whole.bigram)
