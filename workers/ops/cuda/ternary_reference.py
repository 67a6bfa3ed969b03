"""Ternary perturbations rebuilt from counters: the definition, in NumPy (specs/noise_step.md section 8).

Where the specification is silent: a value is left << half_bits | right, a round makes (left, right) into
(right, left ^ F(right)), and sign bit 1 is +1, 0 is -1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from es_service import noise
from es_service.types import Int8Array, Int32Array, NoiseAddress

__all__ = ["bernoulli_sums", "half_bits", "inverse", "permutation", "sign", "slice_of_step", "step", "support"]

Int64Array = npt.NDArray[np.int64]
_ROUNDS = 4


def half_bits(size: int) -> int:
    """Half of the smallest even number of bits that holds 0 .. size - 1; at least 1."""
    return max(1, -(-(size - 1).bit_length() // 2))


def _philox(address: NoiseAddress, block: npt.ArrayLike, place: int, unit: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    block, unit = np.broadcast_arrays(block, unit)
    counter = np.stack([block, np.full_like(block, place), unit, np.full_like(block, address.epoch)], axis=-1)
    return noise.philox4x32(counter.astype(np.uint32), (address.seed & 0xFFFFFFFF, address.seed >> 32))


def _round(address: NoiseAddress, number: int, half_n: Int64Array, bits: int) -> Int64Array:
    place = noise.Stream.TERNARY_SUPPORT << 24 | number
    words: Int64Array = _philox(address, np.zeros_like(half_n), place, half_n)[..., 0].astype(np.int64)
    return words & ((1 << bits) - 1)


def _feistel(address: NoiseAddress, values_n: Int64Array, bits: int, back: bool) -> Int64Array:
    left, right = values_n >> bits, values_n & ((1 << bits) - 1)
    for number in reversed(range(_ROUNDS)) if back else range(_ROUNDS):
        if back:
            left, right = right ^ _round(address, number, left, bits), left
        else:
            left, right = right, left ^ _round(address, number, right, bits)
    return left << bits | right


def _walk(address: NoiseAddress, size: int, values_n: npt.ArrayLike, back: bool) -> Int64Array:
    bits = half_bits(size)
    result = _feistel(address, np.atleast_1d(np.asarray(values_n, np.int64)), bits, back)
    while (outside := result >= size).any():
        result[outside] = _feistel(address, result[outside], bits, back)
    return result


def permutation(address: NoiseAddress, size: int, values_n: npt.ArrayLike) -> Int64Array:
    """The images under pi of each value in [0, size)."""
    return _walk(address, size, values_n, back=False)


def inverse(address: NoiseAddress, size: int, values_n: npt.ArrayLike) -> Int64Array:
    """The value that pi takes to each of these."""
    return _walk(address, size, values_n, back=True)


def sign(address: NoiseAddress, positions_n: npt.ArrayLike) -> Int8Array:
    """+1 or -1 of each weight."""
    positions = np.asarray(positions_n, np.int64)
    words = _philox(address, positions // 16, noise.Stream.TERNARY_SIGN << 24, np.zeros_like(positions))
    word = np.take_along_axis(words, (positions % 16 // 4)[..., None], axis=-1)[..., 0]
    bit = word >> (8 * (positions % 4)).astype(np.uint32) & 1
    return np.where(bit == 1, 1, -1).astype(np.int8)


def support(address: NoiseAddress, size: int, first: int, count: int) -> tuple[Int64Array, Int8Array]:
    """Positions pi(first) .. pi(first + count - 1) and their signs: perturbation i of k non-zeros is first = i k."""
    positions = permutation(address, size, np.arange(first, first + count))
    return positions, sign(address, positions)


def step(address: NoiseAddress, weights_P: Int8Array, votes_U: Int8Array, nonzeros: int) -> None:
    """In place, weights := clamp_T(weights + sum_i vote_i perturbation_i)."""
    positions, signs = support(address, len(weights_P), 0, len(votes_U) * nonzeros)
    moved = weights_P[positions] + np.repeat(votes_U, nonzeros) * signs
    weights_P[positions] = np.clip(moved, -1, 1)


def slice_of_step(
    address: NoiseAddress, size: int, votes_U: Int8Array, nonzeros: int, first: int, count: int
) -> Int8Array:
    """sum_i vote_i perturbation_i at weights first .. first + count - 1, from those weights alone."""
    places = np.arange(first, first + count)
    units = inverse(address, size, places) // nonzeros
    votes = np.where(units < len(votes_U), votes_U[np.minimum(units, len(votes_U) - 1)], 0)
    return (votes * sign(address, places)).astype(np.int8)


def bernoulli_sums(address: NoiseAddress, size: int, votes_U: Int8Array, density: float) -> Int32Array:
    """sum_i vote_i perturbation_i where each weight is in perturbation i with this probability. Dense to make."""
    places, below = np.arange(size), int(density * (1 << 32))
    sums_P = np.zeros(size, np.int32)
    for unit, vote in enumerate(votes_U):
        words = _philox(address, places // 4, noise.Stream.TERNARY_SUPPORT << 24, np.full_like(places, unit))
        chosen = np.take_along_axis(words, (places % 4)[:, None], axis=1)[:, 0] < below
        sums_P += int(vote) * chosen
    signed: Int32Array = sums_P * sign(address, places)
    return signed
