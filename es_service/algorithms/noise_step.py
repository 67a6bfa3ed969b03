"""noise_step: sparse ternary perturbations, one vote each, saturating ternary steps.

Brickner, "noise_step: Training in 1.58b With No Gradient Memory" (2024); exact form in docs/noise-step.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Literal, overload

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, model_validator

from es_service import ternary, votes
from es_service.algorithms.base import AbstractAlgorithm, Past
from es_service.algorithms.density import AutomaticDensity, DensityConfig, StagedDensity, Step
from es_service.errors import DivergenceError, MessageError
from es_service.messages import LeaseResult
from es_service.types import Int8Array, Layout, NoiseAddress, Ops, Part, Perturbations, Support, UInt8Array

__all__ = ["NoiseStep", "NoiseStepConfig", "codes"]

_CHUNK = 1 << 16
"""Weights of a part that are moved at once; the counters of one take a few hundred bytes while they are made."""
_SMALLEST, _LARGEST = np.float32(2.0**-31), np.float32(2.0)

_EDGES = np.ldexp(1 + np.arange(257) % 8 / 8, np.arange(257) // 8 - 31)
_EDGES[[0, 256]] = 0, np.inf
"""Code c stands for |alignments| from edge c up to edge c + 1."""


class NoiseStepConfig(BaseModel):
    """The noise_step update rule for ternary models. `population` is the number of perturbations S of a generation."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["noise_step"] = "noise_step"
    support: Support = "exact"
    """Which weights a perturbation touches. `exact`: k each, no weight twice in a generation. `columns`: the same with
    columns of the matrices in place of weights, so one non-zero in a column. `bernoulli`: each weight by itself with
    probability k / P, as published."""
    density: DensityConfig = StagedDensity()
    """Schedule of k."""
    alignment: Literal["forward_mode", "antithetic"] = "forward_mode"
    """How a perturbation is judged: by the exact directional derivative of the loss (needs PyTorch), or by the
    difference of `objective` between its two ends, which needs no derivative."""
    objective: Literal["loss", "errors"] = "loss"
    """What is lowered: the cross-entropy, or the share of wrong predictions (ties are wrong), which has no
    useful derivative."""

    @property
    def passes(self) -> int:
        """How often the batch goes through the model for one perturbation."""
        return 1 if self.alignment == "forward_mode" else 2

    @model_validator(mode="after")
    def _errors_have_no_derivative(self) -> NoiseStepConfig:
        if self.objective == "errors" and self.alignment == "forward_mode":
            raise ValueError("objective = 'errors' has no derivative: set algorithm.alignment to 'antithetic'")
        if self.objective == "errors" and isinstance(self.density, AutomaticDensity):
            raise ValueError("density.kind: 'automatic' compares losses with alignments; it needs objective = 'loss'")
        return self


def codes(alignments_U: npt.NDArray[np.float32]) -> UInt8Array:
    """Magnitude code of each alignment: bits 20 .. 27 of float32 |a| for |a| in [2^-31, 2), below 0, above 255."""
    size_U = np.abs(alignments_U)
    bits_U = (size_U.view(np.uint32) >> 20).astype(np.uint8)
    codes_U: UInt8Array = np.where(size_U < _SMALLEST, 0, np.where(size_U < _LARGEST, bits_U, 255)).astype(np.uint8)
    return codes_U


@dataclass(frozen=True)
class _Steps(Sequence[Step]):
    """The committed generations as a density schedule sees them."""

    history: Sequence[Past]
    batch: int

    def __len__(self) -> int:
        return len(self.history)

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> list[Step]: ...
    def __getitem__(self, index: int | slice) -> Step | list[Step]:
        if isinstance(index, slice):
            return [self._step(past) for past in self.history[index]]
        return self._step(self.history[index])

    def _step(self, past: Past) -> Step:
        level = -past.score_min
        promise = past.score_sum - past.units * past.score_min
        return Step(past.threshold, level * log(2) / (16 * self.batch), level, promise)


class NoiseStep(AbstractAlgorithm):
    """noise_step for one model layout, number of perturbations, batch size and seed."""

    tile = 5
    largest = 1

    def __init__(self, config: NoiseStepConfig, layout: Layout, population: int, batch: int, seed: int) -> None:
        self.config = config
        self.layout = layout
        self.batch = batch
        self.seed = seed
        self.units = population

    def address(self, generation: int) -> NoiseAddress:
        """Every generation has its own noise."""
        return NoiseAddress(self.seed, generation)

    def perturbations(self, generation: int, nonzeros: int) -> Perturbations:
        """The perturbations of a generation with k non-zeros each."""
        return Perturbations(self.config.support, self.address(generation), self.layout, self.units, nonzeros)

    def threshold(self, generation: int, history: Sequence[Past]) -> int:  # noqa: ARG002 - the history has its length
        """The number of non-zeros k, which the record carries in this field."""
        return self.config.density.next(_Steps(history, self.batch))

    def encode(self, outcomes: npt.NDArray[np.float32]) -> bytes:
        """A code for each unit, then a sign bit for each (1: negative), the first in bit 0; padded with 0.

        `outcomes` (U,) float32 are alignments: by how much moving along the perturbation lowers the objective.
        """
        if not np.isfinite(outcomes).all():
            raise DivergenceError("an alignment is not a finite number; the loss overflows")
        codes_U = codes(outcomes)
        return codes_U.tobytes() + np.packbits((outcomes < 0) & (codes_U > 0), bitorder="little").tobytes()

    def check(self, payload: bytes, units: int) -> None:
        """Codes and signs of exactly this many units, no sign without a code."""
        if len(payload) != units + -(-units // 8):
            raise MessageError(f"{len(payload)} bytes cannot hold codes and signs of exactly {units} perturbations")
        codes_U, negative_U = _decode(payload)
        bits = np.unpackbits(np.frombuffer(payload, np.uint8, offset=units), bitorder="little")
        if bits[units:].any() or negative_U[codes_U == 0].any():
            raise MessageError("a sign bit is set for a perturbation that has no code")

    def agrees(self, a: LeaseResult, b: LeaseResult) -> bool:
        """Equal but for what other CPUs and other builds of PyTorch make of the same sums.

        Codes may be those of alignments that differ by `_slack`. So may the scores, on which the density depends: the
        unperturbed one by 2 and 1/4096 of it, the sum and the greatest of |alignment| by that slack and a rounding for
        each unit, and by 1/64.
        """
        if len(a.payload) != len(b.payload):
            return False
        (low_a, high_a), (low_b, high_b) = _ranges(a.payload), _ranges(b.payload)
        slack = self._slack(min(_largest(low_a, high_a), _largest(low_b, high_b)), a)
        apart_U = np.maximum(low_a - high_b, low_b - high_a)
        return bool((apart_U <= slack).all()) and _near_scores(a, b, 1 + round(slack * self._unit))

    @property
    def _unit(self) -> float:
        """Scores are in this part of a nat an example: 1/16 bit over the batch."""
        return 16 * self.batch / log(2)

    def _slack(self, largest: float, result: LeaseResult) -> float:
        """How far apart honest alignments of one lease may be; `largest` is that of the lease.

        Sums of float32 are off by a share of their largest terms, which a small sum does not show: 2^-10 of the largest
        alignment, and where losses are subtracted 2^-18 of the loss. Where errors are counted, one example more or less
        at one end. What a lie within that can do: docs/noise-step.md, "What is exact".
        """
        if self.config.objective == "errors":
            return 1 / (2 * self.batch)
        loss = -result.score_min / self._unit
        return max(largest * 2.0**-10, loss * 2.0**-18 if self.config.alignment == "antithetic" else 0.0)

    def close(self, payloads: Sequence[bytes]) -> bytes:
        """Packed votes: the sign where the code is not 0 and at least the lower median of all codes, else 0."""
        parts = [_decode(payload) for payload in payloads]
        codes_U, negative_U = (np.concatenate(column) for column in zip(*parts, strict=True))
        median = np.sort(codes_U)[(len(codes_U) - 1) // 2]
        kept_U = (codes_U >= median) & (codes_U > 0)
        return votes.pack(np.where(kept_U, np.where(negative_U, -1, 1), 0).astype(np.int8))

    def votes(self, record: bytes) -> Int8Array:
        """(units,) int8."""
        return votes.unpack(record, self.units)

    def update(self, ops: Ops, parameters_P: Int8Array, generation: int, threshold: int, record: bytes) -> int:
        """Weights := clamp(weights + clamp(sum of vote x perturbation)), clamp to -1 .. 1."""
        if threshold < 1:
            raise MessageError(f"generation {generation}: {threshold} non-zeros a perturbation; at least 1")
        return ops.ternary_step(self.perturbations(generation, threshold), self.votes(record), parameters_P)

    def update_part(
        self,
        ops: Ops,  # noqa: ARG002 - the definition itself is quick enough for a part
        part: Part,
        values_N: Int8Array,
        generation: int,
        threshold: int,
        record: bytes,
    ) -> int:
        """The same for one part: the inverse permutation names the perturbation that touches a weight."""
        perturbations, votes_U = self.perturbations(generation, threshold), self.votes(record)
        changed = 0
        for first in range(0, part.size, _CHUNK):
            some_N = values_N[first : first + _CHUNK]  # a view
            place = part.tensor.offset + part.start + first
            sums_N = ternary.slice_of_sums(perturbations, votes_U, place, len(some_N))
            moved_N = np.clip(some_N + np.clip(sums_N, -1, 1), -1, 1).astype(np.int8)
            changed += int((moved_N != some_N).sum())
            some_N[:] = moved_N
        return changed


def _near_scores(a: LeaseResult, b: LeaseResult, each: int) -> bool:
    """`each`: by how much the scores of a unit may differ."""
    units = a.lease.num_units
    gains = [(r.score_sum - units * r.score_min, r.score_max - r.score_min) for r in (a, b)]
    return abs(a.score_min - b.score_min) <= 2 + (abs(a.score_min) >> 12) and all(
        abs(x - y) <= each * units + (abs(x) >> 6) for x, y in zip(*gains, strict=True)
    )


def _ranges(payload: bytes) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Between which alignments (U,) each unit's code and sign lie."""
    codes_U, negative_U = _decode(payload)
    near_U, far_U = _EDGES[codes_U], _EDGES[codes_U.astype(np.int64) + 1]
    return np.where(negative_U, -far_U, near_U), np.where(negative_U, -near_U, far_U)


def _largest(low_U: npt.NDArray[np.float64], high_U: npt.NDArray[np.float64]) -> float:
    """What the largest |alignment| is at least."""
    return float(np.minimum(np.abs(low_U), np.abs(high_U)).max())


def _decode(payload: bytes) -> tuple[UInt8Array, npt.NDArray[np.bool_]]:
    """Codes (U,) uint8 and whether negative (U,) bool; U follows from the length."""
    units = 8 * len(payload) // 9
    bytes_B = np.frombuffer(payload, np.uint8)
    negative_U = np.unpackbits(bytes_B[units:], bitorder="little")[:units].astype(bool)
    return bytes_B[:units], negative_U
