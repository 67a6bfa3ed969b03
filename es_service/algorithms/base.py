"""What an algorithm is to the service: scores to bytes, bytes to a record, a record to an update.

Plan, tally and journal treat the bytes as opaque. A unit is an antithetic pair (or one ternary perturbation); vote +1
means that moving along +noise improves the fitness.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from es_service.types import Int8Array, Int32Array, NoiseAddress, Ops, Part

__all__ = ["AbstractAlgorithm"]


class AbstractAlgorithm(ABC):
    """One update rule for one spec. Pure: holds no parameters and no state."""

    units: int
    """Votes of one generation."""
    exact: bool = True
    """Equal parameters give equal scores on every machine. Otherwise `agrees` says what may differ."""

    @abstractmethod
    def address(self, generation: int) -> NoiseAddress:
        """The part of the noise counter that the units of a generation share."""

    @abstractmethod
    def threshold(self, generation: int) -> int:
        """The integer K that goes into the record of this generation (int32)."""

    @abstractmethod
    def encode(self, scores_M: Int32Array) -> bytes:
        """The votes of a lease from its members' scores, (2 units,) int32, as a worker sends them."""

    @abstractmethod
    def check(self, payload: bytes, units: int) -> None:
        """Raise `MessageError` unless `payload` is what `encode` could have made of this many units."""

    def agrees(self, a: bytes, b: bytes) -> bool:
        """Whether two payloads of one lease can both be honest: equal, but for what floating point may differ by."""
        return a == b

    @abstractmethod
    def close(self, payloads: Sequence[bytes]) -> bytes:
        """The record bytes of a generation from its leases' payloads in unit order."""

    @abstractmethod
    def votes(self, record: bytes) -> Int8Array:
        """(units,) int8 votes of a record."""

    @abstractmethod
    def update(self, ops: Ops, parameters_P: Int8Array, generation: int, threshold: int, record: bytes) -> int:
        """Apply a record to the parameters in place; how many weights moved."""

    @abstractmethod
    def update_part(
        self, ops: Ops, part: Part, values_N: Int8Array, generation: int, threshold: int, record: bytes
    ) -> int:
        """What `update` does to one part, whose elements are `values_N`, making no noise but that of the part."""
