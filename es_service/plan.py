"""The cut of a generation into leases. It depends on the config only, never on which workers exist."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Plan"]

_LARGEST_DEFAULT = 8_240


@dataclass(frozen=True, slots=True)
class Plan:
    """`units` cut into leases of `lease_units`; only the last may be smaller."""

    units: int
    lease_units: int

    @classmethod
    def of(
        cls, units: int, lease_units: int = 0, workers: int = 0, wave: int = 0, tile: int = 80, spare: int = 0
    ) -> Plan:
        """With lease_units = 0, multiples of `tile`, so many that each of `workers` (0: unknown) gets some.

        One worker gets two leases, so that it has work while the head takes in a result; several get four each, so that
        none waits long for the slowest. With a `wave`, the units that fill one worker's device once: leases of a wave,
        as smaller ones leave a part of the device idle, unless that would leave workers without any
        but the `spare` ones, which are for leases that two evaluate.
        """
        if not lease_units and wave:
            share = -(-units // (workers - min(spare, workers - 1))) if workers else units
            lease_units = max(5, min(wave // 5, -(-share // 5)) * 5)
        if not lease_units:
            leases = 2 if workers == 1 else 4 * max(1, workers)
            wanted = min(_LARGEST_DEFAULT, -(-units // leases))
            lease_units = -(-wanted // tile) * tile
        return cls(units, min(lease_units, -(-units // 5) * 5))

    def __len__(self) -> int:
        """Number of leases."""
        return -(-self.units // self.lease_units)

    def range(self, index: int) -> tuple[int, int]:
        """(first unit, number of units) of lease `index`."""
        if not 0 <= index < len(self):
            raise IndexError(f"lease {index} of {len(self)}")
        first = index * self.lease_units
        return first, min(self.lease_units, self.units - first)

    def index_of(self, first_unit: int, num_units: int) -> int | None:
        """The lease of this range; None if there is none."""
        index = first_unit // self.lease_units
        return index if 0 <= index < len(self) and self.range(index) == (first_unit, num_units) else None
