"""Integer EGGROLL: rank-r perturbations, one sign vote a pair, thresholded +-1 steps.

Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652; exact form in specs/egg.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from statistics import NormalDist
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from es_service import votes
from es_service.algorithms.base import AbstractAlgorithm
from es_service.errors import MessageError
from es_service.types import Int8Array, Int32Array, Layout, NoiseAddress, Ops

__all__ = ["Eggroll", "EggrollConfig", "threshold"]

_CHUNK_BYTES = 32 << 20
"""Noise held at once while an update is summed."""


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

    def threshold(self, generation: int) -> int:
        """K of this generation."""
        return threshold(self.config, generation)

    def encode(self, scores_M: Int32Array) -> bytes:
        """Packed votes."""
        return votes.pack(votes.from_scores(scores_M))

    def check(self, payload: bytes, units: int) -> None:
        """Packed votes of exactly this many pairs."""
        votes.unpack(payload, units)

    def close(self, payloads: Sequence[bytes]) -> bytes:
        """Lease payloads join as they are; only the last may end within a byte."""
        return b"".join(payloads)

    def votes(self, record: bytes) -> Int8Array:
        """(units,) int8."""
        return votes.unpack(record, self.units)

    def update(self, ops: Ops, parameters_P: Int8Array, generation: int, threshold: int, record: bytes) -> int:
        """Sum the noise of all pairs by their votes, then move every weight that passes the threshold."""
        votes_Q = self.votes(record)
        sums_P = np.zeros(self.layout.size, np.int32)
        factors, products = self.layout.noise_sizes(self.config.rank)
        chunk = self.units if ops.lazy_noise else max(1, _CHUNK_BYTES // (factors + 2 * products))
        for first in range(0, self.units, chunk):
            part_Q = votes_Q[first : first + chunk]
            noise = ops.noise(self.layout, self.config.rank, self.address(generation), first, len(part_Q))
            ops.accumulate(self.layout, noise, part_Q, self.config.sign_noise, sums_P)
        if threshold < 0:
            raise MessageError(f"generation {generation}: threshold {threshold} is negative")
        scale = 1 if self.config.sign_noise else 256
        return ops.apply(parameters_P, sums_P, threshold * isqrt(self.units) * scale)
