"""The rows of held-out text that a model is evaluated on."""

from __future__ import annotations

import numpy as np

from es_service.errors import DataError
from es_service.types import UInt8Array


def evaluation_rows(held_out: UInt8Array, rows: int = 1024, segment_bytes: int = 100) -> UInt8Array:
    """Rows of held-out bytes at even distances: (rows, segment_bytes + 1) uint8, inputs [:-1], targets [1:].

    Row i begins at byte i ((size - 1) div rows), so no byte is a target twice. Where the held-out bytes are too few
    for that, there are as many rows as fit: (size - 1) div segment_bytes. Raises DataError if not even one does.
    """
    if rows < 1 or segment_bytes < 1:
        raise ValueError(f"rows and segment_bytes must be at least 1, not {rows} and {segment_bytes}")
    rows = min(rows, (held_out.size - 1) // segment_bytes)
    if rows < 1:
        raise DataError(
            f"data.held_out_percent: the held-out split has {held_out.size} bytes and one row takes "
            f"{segment_bytes + 1}; hold out more documents or use shorter segments (segment.bytes)"
        )
    start_R = np.arange(rows) * ((held_out.size - 1) // rows)
    rows_RW: UInt8Array = held_out[start_R[:, None] + np.arange(segment_bytes + 1)]
    return rows_RW
