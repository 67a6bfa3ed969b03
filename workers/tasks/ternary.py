"""Alignments of ternary perturbations for noise_step: how much moving along each lowers the objective.

Float results are the same bits for one PyTorch build and CPU type, whatever the number of workers and threads and the
cut into leases: every chunk has the same shape, starts at a fixed unit, and runs on one thread.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from math import log

import numpy as np
import numpy.typing as npt

from es_service.algorithms.noise_step import NoiseStep
from es_service.config import RunConfig
from es_service.data.examples import batch_indices
from es_service.problem import algorithm_of, batch_of, examples_of, net_of
from es_service.types import Int8Array, NonZeros, Ops, UInt8Array
from workers.tasks.base import Outcome
from workers.tasks.ternary_torch import Judge

__all__ = ["CHUNK", "TernaryTask"]

CHUNK = 5
"""Perturbations that are judged at once; leases are multiples of it."""


class TernaryTask:
    """Judges the perturbations of one run on its training batches."""

    wave_pairs = 0

    def __init__(self, config: RunConfig, train: UInt8Array, ops: Ops) -> None:
        algorithm = algorithm_of(config)
        assert isinstance(algorithm, NoiseStep)
        self.ops = ops
        self.algorithm = algorithm
        self.batch = batch_of(config)
        self.examples = examples_of(config, train)
        self.judge = Judge(net_of(config), algorithm.config.objective, CHUNK)
        self._pool = ThreadPoolExecutor(ops.threads, initializer=self.judge.use_one_thread)
        self._parameters_P = np.empty(0, np.int8)
        self._ready: int | None = None
        self._loss = 0.0

    def prepare(self, parameters_P: Int8Array) -> None:
        """Take the parameters on which the next units are judged."""
        self._parameters_P = parameters_P.copy()
        self._ready = None

    def evaluate(self, generation: int, threshold: int, first_unit: int, num_units: int) -> Outcome:
        """Alignments (num_units,) float32.

        The score of a unit is that of its better end, to first order: the score of the unperturbed model on the batch
        plus |alignment|. The lowest score is that of the unperturbed model.
        """
        self._look_at(generation)
        perturbations = self.algorithm.perturbations(generation, threshold)
        found = self.ops.ternary_nonzeros(perturbations, first_unit, num_units)
        chunks = [_part(found, first, min(first + CHUNK, num_units)) for first in range(0, num_units, CHUNK)]
        how = self.judge.derivatives if self._is_forward_mode else self.judge.differences
        parts = self._pool.map(how, chunks)
        alignments_U = np.concatenate(list(parts))[:num_units]
        return self._outcome(alignments_U)

    @property
    def _is_forward_mode(self) -> bool:
        return self.algorithm.config.alignment == "forward_mode"

    def _look_at(self, generation: int) -> None:
        """Take the batch of a generation and the loss on it."""
        if self._ready == generation:
            return
        indices = batch_indices(self.algorithm.seed, generation, self.batch, len(self.examples))
        inputs_BI, targets_B = self.examples.take(indices)
        self._loss = self._pool.submit(self.judge.look_at, self._parameters_P, inputs_BI, targets_B).result()
        if self._is_forward_mode:
            self._pool.submit(self.judge.prepare_derivatives).result()
        self._ready = generation

    def _outcome(self, alignments_U: npt.NDArray[np.float32]) -> Outcome:
        unit = 16 * self.batch / log(2)  # from nats an example
        score = -round(self._loss * unit)
        gains_U = np.rint(np.abs(alignments_U).astype(np.float64) * unit).astype(np.int64)
        total = score * len(gains_U) + int(gains_U.sum())
        examples = len(alignments_U) * self.batch * self.algorithm.config.passes
        return Outcome(alignments_U, total, score, score + int(gains_U.max()), examples)


def _part(found: NonZeros, first: int, end: int) -> NonZeros:
    edges = found.starts_U1[first : end + 1]
    part = slice(int(edges[0]), int(edges[-1]))
    return NonZeros(edges - edges[0], found.positions_N[part], found.signs_N[part])
