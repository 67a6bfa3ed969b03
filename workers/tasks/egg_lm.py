"""Fitness of EGG as a language model: the summed integer score of a segment of text (specs/egg.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from es_service.config import RunConfig
from es_service.data.segments import Segments
from es_service.problem import algorithm_of, eggroll_of, layout_of, rows_of, shape_of
from es_service.types import Int8Array, Int32Array, Ops, UInt8Array
from workers.tasks.base import Outcome

__all__ = ["EggLanguageModel"]

_CHUNK_BYTES = 64 << 20
"""Noise of a lease held at once."""


class EggLanguageModel:
    """Scores members of one run on its training text. Holds a prepared snapshot of one generation's parameters."""

    def __init__(self, config: RunConfig, train: UInt8Array, ops: Ops) -> None:
        self.ops = ops
        self.layout = layout_of(config)
        self.shape = shape_of(config)
        self.rank = eggroll_of(config).rank
        self.algorithm = algorithm_of(config)
        segment = config.segment
        self.segments = Segments(train, config.population, segment.bytes, segment.burn_in, rows_of(config))
        factors, products = self.layout.noise_sizes(self.rank)
        held = max(16, _CHUNK_BYTES // (factors + 2 * products))
        self._chunk_pairs = config.population if ops.lazy_noise else held
        self._model: Any = None
        self.wave_pairs = ops.wave_pairs(self.shape, self.rank)

    def prepare(self, parameters_P: Int8Array) -> None:
        """Take the parameters on which the next scores are made."""
        self._model = self.ops.prepare(self.shape, parameters_P)

    def evaluate(self, generation: int, threshold: int, first_unit: int, num_units: int) -> Outcome:  # noqa: ARG002
        """Scores (2 num_units,) int32 of a lease's members; they do not depend on the threshold."""
        scores_M, model_bytes = self.scores(generation, first_unit, num_units)
        sums = (int(scores_M.sum(dtype=np.int64)), int(scores_M.min()), int(scores_M.max()))
        return Outcome(scores_M, *sums, model_bytes)

    def scores(self, generation: int, first_pair: int, num_pairs: int) -> tuple[Int32Array, int]:
        """(2 num_pairs,) int32 scores in 1/16 bit of a lease's members, and the bytes run through the model."""
        parts, model_bytes = [], 0
        end = first_pair + num_pairs
        for first in range(first_pair, end, self._chunk_pairs):
            scores_M, counted = self._chunk(generation, first, min(self._chunk_pairs, end - first))
            parts.append(scores_M)
            model_bytes += counted
        return np.concatenate(parts), model_bytes

    def _chunk(self, generation: int, first: int, pairs: int) -> tuple[Int32Array, int]:
        noise = self.ops.noise(self.layout, self.rank, self.algorithm.address(generation), first, pairs)
        scores_M = np.zeros(2 * pairs, np.int32)
        model_bytes = 0
        for index in range(self.segments.passes):
            rows_SW, row_of_pair_Q, burn_in = self.segments.rows_for(generation, first, pairs, index)
            scores_M += self.ops.member_scores(self._model, noise, rows_SW, row_of_pair_Q, burn_in)
            model_bytes += 2 * pairs * (rows_SW.shape[1] - 1)
        return scores_M, model_bytes
