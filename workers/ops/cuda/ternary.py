"""Ternary perturbations on the device; the definition is `ternary_reference`. Arrays are NumPy arrays on the host."""

from __future__ import annotations

import numpy as np

from es_service.errors import BackendError
from es_service.types import Int8Array, Int32Array, NoiseAddress
from workers.ops.base import check
from workers.ops.cuda._device import AbstractDevice
from workers.ops.cuda._launch import address_key, blocks
from workers.ops.cuda.ternary_reference import Int64Array, half_bits

__all__ = ["TernaryKernels"]

_THREADS = 128


class TernaryKernels:
    """Launchers of ternary.cu on one device."""

    def __init__(self, device: AbstractDevice) -> None:
        self.device = device

    def support(self, address: NoiseAddress, size: int, first: int, count: int) -> tuple[Int64Array, Int8Array]:
        """Positions and signs of non-zeros first .. first + count - 1 (perturbation i of k starts at i k)."""
        if first < 0 or count < 1 or first + count > size:
            raise BackendError(f"non-zeros {first} + {count} of {size} weights")
        positions, signs = self.device.empty((count,), np.int64), self.device.empty((count,), np.int8)
        grid = (blocks(count, _THREADS), 1)
        self.device.launch("ternary_support", grid, 0, positions, signs, first, count, *_permutation(address, size))
        return self.device.download(positions), self.device.download(signs)

    def step(self, address: NoiseAddress, weights_P: Int8Array, votes_U: Int8Array, nonzeros: int) -> None:
        """Add every voted perturbation to the weights, saturating at -1 and 1; in place."""
        size, units = len(weights_P), len(votes_U)
        check("weights", weights_P, np.int8, (size,))
        _check_votes(votes_U, nonzeros, size)
        weights, votes = self.device.upload(weights_P), self.device.upload(votes_U)
        grid = (blocks(units * nonzeros, _THREADS), 1)
        self.device.launch("ternary_step", grid, 0, weights, votes, units, nonzeros, *_permutation(address, size))
        weights_P[:] = self.device.download(weights)

    def slice_of_step(
        self, address: NoiseAddress, size: int, votes_U: Int8Array, nonzeros: int, first: int, count: int
    ) -> Int8Array:
        """What `step` adds to weights first .. first + count - 1, from those weights alone: (count,) int8."""
        _check_votes(votes_U, nonzeros, size)
        if first < 0 or count < 1 or first + count > size:
            raise BackendError(f"weights {first} + {count} of {size}")
        result, votes = self.device.empty((count,), np.int8), self.device.upload(votes_U)
        numbers = (first, count, len(votes_U), nonzeros, *_permutation(address, size))
        self.device.launch("ternary_slice", (blocks(count, _THREADS), 1), 0, result, votes, *numbers)
        return self.device.download(result)

    def bernoulli_step(
        self, address: NoiseAddress, weights_P: Int8Array, votes_U: Int8Array, density: float
    ) -> Int32Array:
        """The same for Bernoulli supports; weights change in place, the sums (size,) int32 are returned."""
        size, below = len(weights_P), int(density * (1 << 32))
        check("weights", weights_P, np.int8, (size,))
        _check_votes(votes_U, 0, size)
        if not 0 <= below < 1 << 32:
            raise BackendError(f"density {density} is outside 0 .. 1")
        active_K = np.flatnonzero(votes_U).astype(np.int32)
        sums, weights = self.device.zeros((size,), np.int32), self.device.upload(weights_P)
        if len(active_K):
            voters = (self.device.upload(active_K), self.device.upload(votes_U[active_K]))
            numbers = (len(active_K), size, below, *address_key(address))
            grid = (blocks(-(-size // 4), _THREADS), 1)
            self.device.launch("ternary_bernoulli", grid, 0, sums, *voters, *numbers)
        self.device.launch("ternary_apply", (blocks(size, 256), 1), 0, weights, sums, size)
        weights_P[:] = self.device.download(weights)
        return self.device.download(sums)


def _permutation(address: NoiseAddress, size: int) -> tuple[int, ...]:
    return size, half_bits(size), *address_key(address)


def _check_votes(votes_U: Int8Array, nonzeros: int, size: int) -> None:
    check("votes", votes_U, np.int8, (len(votes_U),))
    if not len(votes_U) or votes_U.min() < -1 or votes_U.max() > 1:
        raise BackendError("votes must be -1, 0 or +1, one or more")
    if nonzeros < 0 or len(votes_U) * nonzeros > size:
        raise BackendError(f"{len(votes_U)} perturbations of {nonzeros} non-zeros do not fit {size} weights")
