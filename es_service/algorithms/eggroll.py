"""Integer EGGROLL: rank-r perturbations, one sign vote a pair, thresholded +-1 steps.

Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652; exact form in specs/egg.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isqrt
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from es_service import noise as addressing
from es_service import votes
from es_service.algorithms.base import AbstractAlgorithm, Past
from es_service.errors import MessageError
from es_service.noise import Stream
from es_service.types import Int8Array, Int32Array, Layout, Noise, NoiseAddress, Ops, Part

__all__ = ["Eggroll", "EggrollConfig", "threshold"]

_CHUNK_BYTES = 32 << 20
"""Noise held at once while a part of an update is summed."""
_PHILOX_BYTES = 16
"""Memory that NumPy needs for a byte of noise."""


class EggrollConfig(BaseModel):
    """The EGGROLL update rule. The defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    kind: Literal["eggroll"] = "eggroll"
    rank: int = Field(1, ge=1, le=64)
    """Rank r of the perturbation of every matrix."""
    sigma_shift: int = Field(4, ge=0, le=16)
    """Perturbations are divided by 2^(4 + sigma_shift): smaller is louder."""
    alpha: float = Field(4.0, gt=0, le=32)
    """Above 1: the share of weights that may move starts at 1 and decays as 1 / ((2^alpha - 1) g / decay + 1).
    Up to 1: a constant share."""
    decay: float = Field(1000.0, gt=0)
    """Generations after which that share has fallen to 2^-alpha."""
    sign_noise: bool = False
    """Use only the signs of the noise in the update."""
    noise_reuse: int = Field(1, ge=0)
    """Generations that share one noise; 0: all of them."""


def threshold(config: EggrollConfig, generation: int) -> int:
    """K_g = trunc(16 Phi^-1(1 - alpha_g / 2)) in float64; it is recorded, so replay never computes it."""
    share = config.alpha
    if config.alpha > 1:
        share = 1 / ((2**config.alpha - 1) * generation / config.decay + 1)
    return int(16 * NormalDist().inv_cdf(1 - share / 2))


class Eggroll(AbstractAlgorithm):
    """EGGROLL for one model layout, population and seed."""

    def __init__(self, config: EggrollConfig, layout: Layout, population: int, seed: int) -> None:
        self.config = config
        self.layout = layout
        self.seed = seed
        self.units = population // 2

    def address(self, generation: int) -> NoiseAddress:
        """Epoch e = generation div noise_reuse."""
        reuse = self.config.noise_reuse
        return NoiseAddress(self.seed, generation // reuse if reuse else 0)

    def threshold(self, generation: int, history: Sequence[Past]) -> int:  # noqa: ARG002 - the generation suffices
        """K of this generation."""
        return threshold(self.config, generation)

    def encode(self, outcomes: Int32Array) -> bytes:
        """Packed votes, from the scores (2 units,) int32 of the members."""
        return votes.pack(votes.from_scores(outcomes))

    def check(self, payload: bytes, units: int) -> None:
        """Packed votes of exactly this many pairs."""
        votes.check(payload, units)

    def close(self, payloads: Sequence[bytes]) -> bytes:
        """Lease payloads join as they are; only the last may end within a byte."""
        return b"".join(payloads)

    def votes(self, record: bytes) -> Int8Array:
        """(units,) int8."""
        return votes.unpack(record, self.units)

    def update(self, ops: Ops, parameters_P: Int8Array, generation: int, threshold: int, record: bytes) -> int:
        """Sum the noise of all pairs by their votes, then move every weight that passes the threshold."""
        return ops.update(
            self.layout,
            self.config.rank,
            self.address(generation),
            self.votes(record),
            self.config.sign_noise,
            self._least(generation, threshold),
            parameters_P,
        )

    def of_tensors(self, layout: Layout) -> Eggroll:
        """Tensors do not depend on each other."""
        return Eggroll(self.config, layout, 2 * self.units, self.seed)

    def update_part(
        self, ops: Ops, part: Part, values_N: Int8Array, generation: int, threshold: int, record: bytes
    ) -> int:
        """The same for one part, as a model of its own; a pair that voted 0 moves nothing, so its noise is not made."""
        votes_Q = self.votes(record)
        voted_K = np.flatnonzero(votes_Q)
        layout = Layout((replace(part.tensor, shape=part.shape, offset=0),))
        chunk = max(1, _CHUNK_BYTES // (_PHILOX_BYTES * sum(layout.noise_sizes(self.config.rank))))
        sums_N = np.zeros(part.size, np.int32)
        for first in range(0, len(voted_K), chunk):
            units_K = voted_K[first : first + chunk]
            noise = _noise_of_part(part, self.config.rank, self.address(generation), units_K)
            ops.accumulate(layout, noise, votes_Q[units_K], self.config.sign_noise, sums_N)
        return ops.apply(values_N, sums_N, self._least(generation, threshold))

    def _least(self, generation: int, threshold: int) -> int:
        """The least 16 |Z| with which a weight moves."""
        if threshold < 0:
            raise MessageError(f"generation {generation}: threshold {threshold} is negative")
        return threshold * isqrt(self.units) * (1 if self.config.sign_noise else 256)


def _noise_of_part(part: Part, rank: int, address: NoiseAddress, units_K: npt.NDArray[np.integer[Any]]) -> Noise:
    """The noise of some rows of a tensor, laid out as that of a tensor with these rows only (specs/formats.md)."""
    tensor, rows = part.tensor, part.stop - part.first

    def entries(stream: Stream, size: int, first: int) -> Int8Array:
        return addressing.entries(address.seed, address.epoch, stream, tensor.index, units_K, size, first)

    if tensor.kind == "vector":
        u_KN, v_KN = (entries(stream, rows, part.first) for stream in (Stream.VECTOR_U, Stream.VECTOR_V))
        return Noise(rank, np.empty((len(units_K), 0), np.int8), u_KN.astype(np.int16) * v_KN)
    out_size, in_size = tensor.shape
    a = [entries(Stream.FACTOR_A, rows, r * out_size + part.first) for r in range(rank)]
    b_KI = entries(Stream.FACTOR_B, rank * in_size, 0)
    return Noise(rank, np.concatenate([*a, b_KI], axis=1), np.empty((len(units_K), 0), np.int16))
