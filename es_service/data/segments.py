"""Which bytes each pair reads in each generation (specs/egg.md, Data). Pure: the config and the bytes decide.

S rows that are needed, W bytes in a row, Q pairs of a lease.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from es_service.data.feeding import MembersPerSequenceConfig, RowsConfig, SequencesPerGenerationConfig, divisors
from es_service.errors import ConfigError
from es_service.types import Int32Array, UInt8Array

__all__ = ["SegmentRows", "Segments", "check_feeding"]


class SegmentRows(NamedTuple):
    """Text of one pass of one lease, as `Ops.member_scores` takes it.

    rows_SW: (S, burn_in_used + T + 1) uint8, C-contiguous: the columns c - burn_in_used .. c + T.
    row_of_pair_Q: (Q,) int32, the row that each pair of the lease reads.
    burn_in_used: positions that are run and not scored; shorter than the config's in the first columns of a row.
    """

    rows_SW: UInt8Array
    row_of_pair_Q: Int32Array
    burn_in_used: int


@dataclass(frozen=True, eq=False)
class Segments:
    """The training bytes cut into rows and segments for a population.

    train: (size,) uint8. segment_bytes is T, burn_in counts bytes. Raises ConfigError naming the field if the
    sizes do not go together.
    """

    train: UInt8Array
    population: int
    segment_bytes: int
    burn_in: int
    feeding: RowsConfig

    def __post_init__(self) -> None:
        self.validate()

    @property
    def num_rows(self) -> int:
        """Rows n_seq that the training bytes are cut into."""
        return self.feeding.num_rows(self.population)

    @property
    def num_segments(self) -> int:
        """Segments n_seg in a row: generation g reads segment g mod n_seg."""
        return (self.train.size - self.num_rows) // (self.segment_bytes * self.num_rows)

    @property
    def passes(self) -> int:
        """Rows R that each pair scores in a generation; the scores are added before the sign."""
        return self.feeding.passes(self.population)

    def validate(self) -> None:
        """Raise ConfigError naming the field, with the sizes that would fit."""
        if self.segment_bytes < 1:
            raise ConfigError(f"segment.bytes: {self.segment_bytes} must be at least 1")
        if self.burn_in < 0:
            raise ConfigError(f"segment.burn_in: {self.burn_in} must be at least 0")
        check_feeding(self.feeding, self.population)
        if self.num_segments < 1:
            raise ConfigError(_too_small(self.train.size, self.population, self.segment_bytes, self.feeding))

    def rows_for(self, generation: int, first_pair: int, num_pairs: int, pass_index: int = 0) -> SegmentRows:
        """What pairs first_pair .. first_pair + num_pairs - 1 read in one pass; only the rows that they need.

        Raises ValueError if the generation, the pairs or the pass do not exist.
        """
        pairs = self.population // 2
        if generation < 0 or not 0 <= pass_index < self.passes:
            raise ValueError(f"no generation {generation} with pass {pass_index} (of {self.passes})")
        if first_pair < 0 or num_pairs < 1 or first_pair + num_pairs > pairs:
            raise ValueError(f"no {num_pairs} pairs from {first_pair} (of {pairs})")
        pair_Q = np.arange(first_pair, first_pair + num_pairs)
        row_Q = pair_Q // self._pairs_per_row + pass_index * pairs
        first_row, last_row = int(row_Q[0]), int(row_Q[-1])
        column = generation % self.num_segments * self.segment_bytes
        burn_in = self._burn_in(generation)
        rows_SW = self._grid[first_row : last_row + 1, column - burn_in : column + self.segment_bytes + 1]
        return SegmentRows(
            np.array(rows_SW, np.uint8, order="C"),
            (row_Q - first_row).astype(np.int32),
            burn_in,
        )

    def bytes_read(self, generation: int) -> int:
        """Bytes that all members together run through the model in a generation, burn-in included."""
        return self.population * self.passes * (self._burn_in(generation) + self.segment_bytes)

    def _burn_in(self, generation: int) -> int:
        """The first segment has nothing before it."""
        return min(self.burn_in, generation % self.num_segments * self.segment_bytes)

    @property
    def _pairs_per_row(self) -> int:
        return max(1, self.population // 2 // self.num_rows)

    @cached_property
    def _grid(self) -> UInt8Array:
        """(n_seq, n_seg T + 1) uint8, a view: the next row begins right after the last byte of a row."""
        width = self.num_segments * self.segment_bytes + 1
        return self.train[: self.num_rows * width].reshape(self.num_rows, width)


def check_feeding(feeding: RowsConfig, population: int) -> None:
    """Raise ConfigError, naming the field and values that would do, unless the feeding suits the population."""
    feeding.check(population)


def _too_small(size: int, population: int, segment_bytes: int, feeding: RowsConfig) -> str:
    """Why a training split is too small, and every single change that would help."""
    rows = feeding.num_rows(population)
    fits = [f"at least {rows * (segment_bytes + 1)} training bytes"]
    if size // rows > 1:
        fits.append(f"segment.bytes of at most {size // rows - 1}")
    max_rows = size // (segment_bytes + 1)
    if max_rows:
        fits.append(_fewer_rows(max_rows, population, feeding))
    return (
        f"segment.bytes: {rows} rows of {segment_bytes} + 1 bytes do not fit into the {size} bytes of the training "
        f"split; use {', or '.join(fits)}"
    )


def _fewer_rows(max_rows: int, population: int, feeding: RowsConfig) -> str:
    match feeding:
        case MembersPerSequenceConfig():
            members = next(m for m in divisors(population) if m % 2 == 0 and population // m <= max_rows)
            return f"feeding.members of at least {members}"
        case SequencesPerGenerationConfig():
            pairs = population // 2
            sequences = max_rows // pairs * pairs or max(b for b in divisors(pairs) if b <= max_rows)
            return f"feeding.sequences of at most {sequences}"
