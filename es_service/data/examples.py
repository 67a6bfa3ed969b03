"""Examples for networks that learn from batches: which ones a generation sees, and their inputs and targets.

Pure: the config and the bytes decide. Suffixes: B examples, I inputs (features, or bytes of context).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service import noise, ternary
from es_service.errors import DataError
from es_service.types import Int64Array, NoiseAddress, UInt8Array

__all__ = ["Examples", "ImageExamples", "TextExamples", "batch_indices", "windows_of_rows"]

_ORDER_PLACE = noise.Stream.SAMPLING << 24 | 1
"""First of the four rounds of the permutation of an epoch; sampling of text has tensor index 0 of this stream."""

IntArray = npt.NDArray[np.integer[Any]]


def batch_indices(seed: int, generation: int, batch: int, count: int) -> Int64Array:
    """The (batch,) examples of a generation: the next ones in an endless sequence of shuffled passes over all.

    Place t = generation batch + j is place t mod count of pass t div count. A pass is the keyed permutation of
    [0, count) of `es_service.ternary`, with stream 7, tensor indices 1 .. 4, e = number of the pass.
    """
    first = generation * batch
    indices = np.empty(batch, np.int64)
    done = 0
    while done < batch:
        number, place = divmod(first + done, count)
        size = min(batch - done, count - place)
        values = np.arange(place, place + size)
        indices[done : done + size] = ternary.permutation(NoiseAddress(seed, number), count, values, _ORDER_PLACE)
        done += size
    return indices


@dataclass(frozen=True, eq=False)
class ImageExamples:
    """Images of one split, `records` (N, features + 1) uint8 with the label at the end."""

    records: UInt8Array

    @classmethod
    def of(cls, split: UInt8Array, features: int, classes: int) -> ImageExamples:
        """From a split of a corpus, in which each image is a byte 0, its features and its label."""
        size = features + 2
        if split.size % size or not split.size:
            raise DataError(
                f"data.max_bytes: {split.size} bytes are not a whole number of images of {size} bytes; leave it out"
            )
        records = split.reshape(-1, size)
        if records[:, 0].any() or records[:, -1].max() >= classes:
            raise DataError(f"data: this corpus does not hold images with labels below {classes}")
        return cls(records[:, 1:])

    def __len__(self) -> int:
        return len(self.records)

    def take(self, indices_B: IntArray) -> tuple[UInt8Array, UInt8Array]:
        """Inputs (B, features) and labels (B,)."""
        rows = np.ascontiguousarray(self.records[indices_B])
        return rows[:, :-1], rows[:, -1]


@dataclass(frozen=True, eq=False)
class TextExamples:
    """Bytes and the `context` bytes before each; before the first byte there are bytes 0."""

    split: UInt8Array
    context: int

    def __len__(self) -> int:
        return self.split.size - 1

    def take(self, indices_B: IntArray) -> tuple[UInt8Array, UInt8Array]:
        """Inputs (B, context) and the bytes after them (B,): example i predicts byte i + 1."""
        places_BC = indices_B[:, None] + np.arange(1 - self.context, 1)
        inputs_BC = np.where(places_BC >= 0, self.split[np.maximum(places_BC, 0)], 0).astype(np.uint8)
        return inputs_BC, np.ascontiguousarray(self.split[indices_B + 1])


Examples = ImageExamples | TextExamples


def windows_of_rows(rows_SW: UInt8Array, context: int) -> tuple[UInt8Array, UInt8Array]:
    """Inputs (S (W - 1), context) and targets of every byte of rows but the first; before a row there are bytes 0."""
    padded = np.pad(rows_SW, ((0, 0), (context - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, context, axis=1)[:, :-1]
    return np.ascontiguousarray(windows).reshape(-1, context), np.ascontiguousarray(rows_SW[:, 1:]).reshape(-1)
