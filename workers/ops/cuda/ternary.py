"""Ternary perturbations on the device; the definition is `es_service.ternary`. Arrays are NumPy arrays on the host."""

from __future__ import annotations

from typing import Any

import numpy as np

from es_service import ternary
from es_service.errors import BackendError
from es_service.types import Int8Array, Int64Array, Layout, NonZeros, Perturbations
from workers.ops.cuda._device import AbstractDevice
from workers.ops.cuda._launch import address_key, blocks

__all__ = ["TernaryKernels"]

_THREADS = 128


class TernaryKernels:
    """Launchers of ternary.cu on one device. Votes are (units,) int8; shapes are checked by whoever calls."""

    def __init__(self, device: AbstractDevice) -> None:
        self.device = device

    def nonzeros(self, p: Perturbations, first_unit: int, num_units: int) -> NonZeros:
        """Those of some perturbations with disjoint supports: `exact` or `columns`."""
        first, count = first_unit * p.nonzeros, num_units * p.nonzeros
        positions, signs = self.device.empty((count,), np.int64), self.device.empty((count,), np.int8)
        grid = (blocks(count, _THREADS), 1)
        self.device.launch("ternary_support", grid, 0, positions, signs, first, count, *self._places(p))
        starts_U1 = np.arange(num_units + 1, dtype=np.int64) * p.nonzeros
        return NonZeros(starts_U1, self.device.download(positions), self.device.download(signs))

    def step(self, p: Perturbations, votes_U: Int8Array, weights_P: Int8Array) -> None:
        """Weights := clamp(weights + clamp(sum of vote x perturbation)), in place, for every kind of support."""
        weights = self.device.upload(weights_P)
        if p.support == "bernoulli":
            self._bernoulli_step(p, votes_U, weights)
        else:
            grid, votes = (blocks(p.units * p.nonzeros, _THREADS), 1), self.device.upload(votes_U)
            self.device.launch("ternary_step", grid, 0, weights, votes, p.units, p.nonzeros, *self._places(p))
        weights_P[:] = self.device.download(weights)

    def slice_of_sums(self, p: Perturbations, votes_U: Int8Array, first: int, count: int) -> Int8Array:
        """What `step` adds to weights first .. first + count - 1, from those weights alone; disjoint supports."""
        if p.support == "bernoulli" or first < 0 or count < 1 or first + count > p.layout.size:
            raise BackendError(f"weights {first} + {count} of {p.layout.size} ({p.support})")
        result, votes = self.device.empty((count,), np.int8), self.device.upload(votes_U)
        numbers = (first, count, p.units, p.nonzeros)
        self.device.launch("ternary_slice", (blocks(count, _THREADS), 1), 0, result, votes, *numbers, *self._places(p))
        return self.device.download(result)

    def _bernoulli_step(self, p: Perturbations, votes_U: Int8Array, weights: Any) -> None:
        size, active_K = p.layout.size, np.flatnonzero(votes_U).astype(np.int32)
        sums = self.device.zeros((size,), np.int32)
        if len(active_K):
            voters = (self.device.upload(active_K), self.device.upload(votes_U[active_K]))
            numbers = (len(active_K), size, ternary.bernoulli_bound(p), *address_key(p.address))
            grid = (blocks(-(-size // 4), _THREADS), 1)
            self.device.launch("ternary_bernoulli", grid, 0, sums, *voters, *numbers)
        self.device.launch("ternary_apply", (blocks(size, 256), 1), 0, weights, sums, size)

    def _places(self, p: Perturbations) -> tuple[Any, ...]:
        """What pi permutes, as the kernels take it."""
        size, tensors = p.layout.size, None
        count = 0
        if p.support == "columns":
            table = column_table(p.layout)
            size, count, tensors = ternary.column_count(p.layout), len(table), self.device.upload(table)
        return tensors, count, size, ternary.half_bits(size), *address_key(p.address)


def column_table(layout: Layout) -> Int64Array:
    """(tensors, 4) int64: first weight, rows, columns, columns of the tensors before."""
    table_T4 = np.empty((len(layout.tensors), 4), np.int64)
    before = 0
    for row, tensor in zip(table_T4, layout.tensors, strict=True):
        height, width = tensor.shape if tensor.kind == "matrix" else (tensor.size, 1)
        row[:] = tensor.offset, height, width, before
        before += width
    return table_T4
