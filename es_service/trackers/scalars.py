"""The figures that trackers are given, by name, from a row of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

__all__ = ["scalars"]

_NAMES = {
    "commit": {
        "bits_per_byte": "loss/training",
        "bytes_per_second": "speed/bytes_per_second",
        "seconds": "speed/generation_seconds",
        "wire_bits_per_member": "wire/bits_per_member",
        "workers": "workers/count",
    },
    "update": {"moved_ratio": "weights/moved_ratio"},
    "evaluation": {"bits_per_byte": "loss/held_out"},
}
_VOTES = {"votes_plus": "votes/plus_ratio", "votes_minus": "votes/minus_ratio"}


def scalars(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(name, value) of each figure of a row; a field that is missing or no finite number is passed over."""
    found = {name: row.get(field) for field, name in _NAMES.get(row["kind"], {}).items()}
    units = row.get("units")
    if row["kind"] == "commit" and isinstance(units, int) and units > 0:
        found |= {name: row[field] / units for field, name in _VOTES.items() if isinstance(row.get(field), int)}
    for name, value in found.items():
        if isinstance(value, int | float) and isfinite(value):
            yield name, float(value)
