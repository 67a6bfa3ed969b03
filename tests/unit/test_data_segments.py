"""Segments against a naive implementation of specs/egg.md, Data, that walks member by member and byte by byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.data import FeedingConfig, MembersPerSequenceConfig, Segments, SequencesPerGenerationConfig
from es_service.errors import ConfigError
from es_service.types import UInt8Array

MEMBERS = MembersPerSequenceConfig
SEQUENCES = SequencesPerGenerationConfig


def text(size: int) -> UInt8Array:
    return np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)


def naive_rows_of_member(feeding: FeedingConfig, population: int, member: int) -> list[int]:
    """Rows that a member scores, in order of passes, from the sentences of the spec."""
    if isinstance(feeding, MEMBERS):
        group = feeding.members
        return [row for row in range(population // group) if row * group <= member <= row * group + group - 1]
    pair, pairs, sequences = member // 2, population // 2, feeding.sequences
    if sequences <= pairs:
        share = population // (2 * sequences)
        return [row for row in range(sequences) if row * share <= pair <= (row + 1) * share - 1]
    return [pair + k * pairs for k in range(sequences // pairs)]


def naive_text_of_member(
    segments: Segments, train: bytes, num_rows: int, generation: int, member: int
) -> list[tuple[list[int], int]]:
    """For each pass: the bytes that a member reads, and how many of them are burn-in."""
    num_segments = (len(train) - num_rows) // (segments.segment_bytes * num_rows)
    length = num_segments * segments.segment_bytes + 1
    grid = [list(train[row * length : (row + 1) * length]) for row in range(num_rows)]
    column = (generation % num_segments) * segments.segment_bytes
    first = max(0, column - segments.burn_in)
    rows = naive_rows_of_member(segments.feeding, segments.population, member)
    return [(grid[row][first : column + segments.segment_bytes + 1], column - first) for row in rows]


@st.composite
def cases(draw: st.DrawFn) -> tuple[Segments, int, int, int]:
    pairs = draw(st.sampled_from([1, 2, 3, 4, 6, 10, 12]))
    feeding: FeedingConfig
    if draw(st.booleans()):
        shares = [m for m in range(2, 2 * pairs + 1, 2) if 2 * pairs % m == 0]
        feeding = MEMBERS(members=draw(st.sampled_from(shares)))
        rows = 2 * pairs // feeding.members
    else:
        counts = [b for b in range(1, pairs + 1) if pairs % b == 0] + [2 * pairs, 3 * pairs]
        feeding = SEQUENCES(sequences=draw(st.sampled_from(counts)))
        rows = feeding.sequences
    segment_bytes, burn_in = draw(st.integers(1, 9)), draw(st.integers(0, 20))
    size = rows * (segment_bytes + 1) + draw(st.integers(0, 200))
    segments = Segments(text(size), 2 * pairs, segment_bytes, burn_in, feeding)
    first = draw(st.integers(0, pairs - 1))
    return segments, draw(st.integers(0, 50)), first, draw(st.integers(1, pairs - first))


@given(cases())
def test_rows_are_those_of_the_spec(case: tuple[Segments, int, int, int]) -> None:
    segments, generation, first, count = case
    for index in range(segments.passes):
        rows_SW, row_of_pair_Q, burn_in_used = segments.rows_for(generation, first, count, index)
        assert rows_SW.dtype == np.uint8
        assert rows_SW.flags.c_contiguous
        assert rows_SW.shape[1] == burn_in_used + segments.segment_bytes + 1
        assert (row_of_pair_Q.dtype, row_of_pair_Q.shape) == (np.int32, (count,))
        assert set(row_of_pair_Q.tolist()) == set(range(len(rows_SW)))  # all rows that are needed and no other
        for pair, row in zip(range(first, first + count), row_of_pair_Q, strict=True):
            for member in (2 * pair, 2 * pair + 1):
                expected = naive_text_of_member(
                    segments, segments.train.tobytes(), segments.num_rows, generation, member
                )
                assert len(expected) == segments.passes
                assert (rows_SW[row].tolist(), burn_in_used) == expected[index]


@given(cases())
def test_any_split_into_leases_reads_the_same_text(case: tuple[Segments, int, int, int]) -> None:
    segments, generation, first, count = case
    for index in range(segments.passes):
        whole = segments.rows_for(generation, 0, segments.population // 2, index)
        part = segments.rows_for(generation, first, count, index)
        np.testing.assert_array_equal(
            part.rows_SW[part.row_of_pair_Q], whole.rows_SW[whole.row_of_pair_Q[first : first + count]]
        )


def test_a_worked_example() -> None:
    # size 23, 2 rows, T = 4: n_seg = (23 - 2) div 8 = 2, rows of 9 bytes begin at 0 and 9; the last 5 are unused.
    segments = Segments(np.arange(23, dtype=np.uint8), 8, 4, 3, MEMBERS(members=4))
    assert (segments.num_rows, segments.num_segments, segments.passes) == (2, 2, 1)
    rows, row_of_pair, burn_in = segments.rows_for(0, 0, 4)
    assert rows.tolist() == [[0, 1, 2, 3, 4], [9, 10, 11, 12, 13]]
    assert (row_of_pair.tolist(), burn_in) == ([0, 0, 1, 1], 0)
    rows, row_of_pair, burn_in = segments.rows_for(3, 2, 2)
    assert rows.tolist() == [[10, 11, 12, 13, 14, 15, 16, 17]]
    assert (row_of_pair.tolist(), burn_in) == ([0, 0], 3)


def test_generations_cycle_and_every_target_is_read_once_a_cycle() -> None:
    train = np.arange(2 * 41, dtype=np.uint8)
    segments = Segments(train, 4, 10, 0, SEQUENCES(sequences=2))
    targets = np.concatenate([segments.rows_for(g, 0, 2).rows_SW[:, 1:] for g in range(segments.num_segments)], axis=1)
    np.testing.assert_array_equal(targets, train.reshape(2, 41)[:, 1:])
    np.testing.assert_array_equal(segments.rows_for(4, 0, 2).rows_SW, segments.rows_for(0, 0, 2).rows_SW)


def test_rows_are_copies_of_a_read_only_corpus() -> None:
    train = text(100)
    train.setflags(write=False)
    rows = Segments(train, 4, 10, 0, SEQUENCES(sequences=1)).rows_for(0, 0, 2).rows_SW
    assert rows.flags.writeable
    assert not np.shares_memory(rows, train)


@pytest.mark.parametrize(
    ("size", "population", "segment_bytes", "burn_in", "feeding", "message"),
    [
        (500, 8, 0, 0, MEMBERS(members=2), r"segment\.bytes: 0"),
        (500, 8, 10, -1, MEMBERS(members=2), r"segment\.burn_in: -1"),
        (500, 7, 10, 0, MEMBERS(members=2), r"population: 7"),
        (500, 8, 10, 0, MEMBERS(members=6), r"feeding\.members: 6"),
        (
            43,
            8,
            10,
            0,
            MEMBERS(members=2),
            r"44 training bytes, or segment\.bytes of at most 9, or .*members of at least 4",
        ),
        (43, 8, 10, 0, SEQUENCES(sequences=4), r"44 training bytes.* at most 9, or feeding\.sequences of at most 2"),
        (120, 8, 10, 0, SEQUENCES(sequences=16), r"176 training bytes.* at most 6, or feeding\.sequences of at most 8"),
        (5, 8, 10, 0, SEQUENCES(sequences=4), r"segment\.bytes: .* 5 bytes .* use at least 44 training bytes$"),
        (0, 8, 10, 0, SEQUENCES(sequences=1), r"segment\.bytes: .* use at least 11 training bytes$"),
    ],
)
def test_sizes_that_do_not_fit(
    size: int, population: int, segment_bytes: int, burn_in: int, feeding: FeedingConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Segments(text(size), population, segment_bytes, burn_in, feeding)


@given(cases())
def test_every_remedy_for_a_small_corpus_is_exact(case: tuple[Segments, int, int, int]) -> None:
    segments = case[0]
    needed = segments.num_rows * (segments.segment_bytes + 1)
    rest = (segments.population, segments.segment_bytes, segments.burn_in, segments.feeding)
    assert Segments(segments.train[:needed], *rest).num_segments == 1
    with pytest.raises(ConfigError, match=f"at least {needed} training bytes"):
        Segments(segments.train[: needed - 1], *rest)


@pytest.mark.parametrize(
    ("generation", "first", "count", "index"),
    [(-1, 0, 1, 0), (0, -1, 1, 0), (0, 0, 0, 0), (0, 3, 2, 0), (0, 0, 1, 2), (0, 0, 1, -1)],
)
def test_rows_that_do_not_exist(generation: int, first: int, count: int, index: int) -> None:
    segments = Segments(text(200), 8, 10, 0, SEQUENCES(sequences=8))
    with pytest.raises(ValueError, match="no "):
        segments.rows_for(generation, first, count, index)
