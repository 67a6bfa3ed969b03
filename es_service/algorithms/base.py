"""What an algorithm is to the service: scores to bytes, bytes to a record, a record to an update.

Plan, tally and journal treat the bytes as opaque. A unit is an antithetic pair (or one ternary perturbation); vote +1
means that moving along +noise improves the fitness.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from es_service.messages import LeaseResult
from es_service.slots import equal
from es_service.types import Int8Array, Layout, NoiseAddress, Ops, Part

__all__ = ["AbstractAlgorithm", "Past"]


@dataclass(frozen=True, slots=True)
class Past:
    """What the journal has of one committed generation, as far as a later one may depend on it."""

    units: int
    threshold: int
    score_sum: int
    score_min: int
    score_max: int


class AbstractAlgorithm(ABC):
    """One update rule for one spec. Pure: holds no parameters and no state."""

    units: int
    """Votes of one generation."""
    tile: int = 80
    """Default leases are multiples of this many units: of 5 votes to a byte and of 16 pairs, a tile of the kernels."""

    largest: int = 127
    """Updates keep every weight in -largest .. largest."""

    @abstractmethod
    def address(self, generation: int) -> NoiseAddress:
        """The part of the noise counter that the units of a generation share."""

    @abstractmethod
    def threshold(self, generation: int, history: Sequence[Past]) -> int:
        """The integer K that goes into the record of this generation (int32), which workers are told beforehand.

        `history` holds all generations before it, in order.
        """

    @abstractmethod
    def encode(self, outcomes: npt.NDArray[Any]) -> bytes:
        """What a worker sends of a lease, from what its task has found out about it: see the algorithm."""

    @abstractmethod
    def check(self, payload: bytes, units: int) -> None:
        """Raise `MessageError` unless `payload` is what `encode` could have made of this many units."""

    def agrees(self, a: LeaseResult, b: LeaseResult) -> bool:
        """Whether two results of one lease can both be honest: equal, but for what floating point may differ by."""
        return equal(a, b)

    @abstractmethod
    def close(self, payloads: Sequence[bytes]) -> bytes:
        """The record bytes of a generation from its leases' payloads in unit order."""

    @abstractmethod
    def votes(self, record: bytes) -> Int8Array:
        """(units,) int8 votes of a record."""

    @abstractmethod
    def update(self, ops: Ops, parameters_P: Int8Array, generation: int, threshold: int, record: bytes) -> int:
        """Apply a record to the parameters in place; how many weights moved."""

    def of_tensors(self, layout: Layout) -> AbstractAlgorithm | None:  # noqa: ARG002
        """The same rule for a model of some of the tensors, whose updates must not depend on the others; None: no such.

        `layout` keeps their indices, and so their noise.
        """
        return None

    @abstractmethod
    def update_part(
        self, ops: Ops, part: Part, values_N: Int8Array, generation: int, threshold: int, record: bytes
    ) -> int:
        """What `update` does to one part, whose elements are `values_N`, making no noise but that of the part."""
