"""Ternary perturbations from counters: the one definition for every backend (specs/noise_step.md, section 8).

A perturbation is a sparse vector over the P weights of a model with values -1 and +1. Three rules say which weights the
S perturbations of a generation touch; k is their number of non-zeros. "Word n of (place, unit)" is word n mod 4 of
Philox4x32-10 under the run's seed with counter (n div 4, place, unit, e); stream 5 is the support, stream 6 the signs.

**pi**, a keyed permutation of [0, n): a balanced Feistel network of four rounds on the smallest even number of bits
that holds 0 .. n - 1 (at least 2), with cycle walking. A value is left << half | right; round t makes (left, right)
into (right, left ^ F_t(right)), F_t(x) = the low `half` bits of word 0 of (5 << 24 | t, unit x).

- `exact`: pi permutes the weights, n = P. Perturbation i touches weights pi(i k) .. pi(i k + k - 1). Needs S k <= P.
- `columns`: pi permutes the columns of the model, n = C: all columns of all matrices numbered through in canonical
  order; a vector is one column, as it multiplies a constant. Perturbation i has one non-zero in each of the columns
  pi(i k) .. pi(i k + k - 1). In column c of h weights it is in row floor(h w / 2^32), w = word 0 of (5 << 24 | 4,
  unit c). So no two perturbations of a generation meet in a column of a matrix. Needs S k <= C.
- `bernoulli`, as published: weight j belongs to perturbation i if word j of (5 << 24, unit i) is below
  floor(k 2^32 / P). Supports overlap, their sizes vary, and finding them takes P / 4 counters a perturbation.

The sign of weight j is bit 0 of entry j of stream 6, unit 0 (`es_service.noise`): 1 is +1, 0 is -1, in every
perturbation that touches it. With disjoint supports the inverse of pi names the one perturbation that touches a given
weight, so any slice of a step is rebuilt alone.

Suffixes: U perturbations, N non-zeros, P weights, n any number of values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from es_service import noise
from es_service.types import Int8Array, Int32Array, Int64Array, Layout, NoiseAddress, NonZeros, Perturbations, Support

__all__ = [
    "bernoulli_bound",
    "column_count",
    "half_bits",
    "inverse",
    "nonzeros",
    "permutation",
    "places",
    "sign",
    "slice_of_sums",
    "sums",
]

_ROUNDS = 4
_SUPPORT_PLACE = noise.Stream.TERNARY_SUPPORT << 24
_ROW_PLACE = _SUPPORT_PLACE | _ROUNDS


def half_bits(size: int) -> int:
    """Half of the smallest even number of bits that holds 0 .. size - 1; at least 1."""
    return max(1, -(-(size - 1).bit_length() // 2))


def bernoulli_bound(perturbations: Perturbations) -> int:
    """floor(k 2^32 / P): a weight belongs to a perturbation if its word is below this."""
    return min((perturbations.nonzeros << 32) // perturbations.layout.size, 1 << 32)


def column_count(layout: Layout) -> int:
    """C: the columns of all matrices, and one for each vector."""
    return sum(t.shape[1] if t.kind == "matrix" else 1 for t in layout.tensors)


def places(support: Support, layout: Layout) -> int:
    """n: what there is to share out among the perturbations, weights or columns."""
    return column_count(layout) if support == "columns" else layout.size


def _philox(address: NoiseAddress, block: npt.ArrayLike, place: int, unit: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    block, unit = np.broadcast_arrays(block, unit)
    counter = np.stack([block, np.full_like(block, place), unit, np.full_like(block, address.epoch)], axis=-1)
    return noise.philox4x32(counter.astype(np.uint32), (address.seed & 0xFFFFFFFF, address.seed >> 32))


def _round(address: NoiseAddress, place: int, half_n: Int64Array, bits: int) -> Int64Array:
    words: Int64Array = _philox(address, np.zeros_like(half_n), place, half_n)[..., 0].astype(np.int64)
    return words & ((1 << bits) - 1)


def _feistel(address: NoiseAddress, place: int, values_n: Int64Array, bits: int, back: bool) -> Int64Array:
    left, right = values_n >> bits, values_n & ((1 << bits) - 1)
    for number in reversed(range(_ROUNDS)) if back else range(_ROUNDS):
        if back:
            left, right = right ^ _round(address, place + number, left, bits), left
        else:
            left, right = right, left ^ _round(address, place + number, right, bits)
    return left << bits | right


def _walk(address: NoiseAddress, place: int, size: int, values_n: npt.ArrayLike, back: bool) -> Int64Array:
    bits = half_bits(size)
    result = _feistel(address, place, np.atleast_1d(np.asarray(values_n, np.int64)), bits, back)
    while (outside := result >= size).any():
        result[outside] = _feistel(address, place, result[outside], bits, back)
    return result


def permutation(address: NoiseAddress, size: int, values_n: npt.ArrayLike, place: int = _SUPPORT_PLACE) -> Int64Array:
    """The images under pi of each value in [0, size). `place` is stream << 24 | tensor index of its first round."""
    return _walk(address, place, size, values_n, back=False)


def inverse(address: NoiseAddress, size: int, values_n: npt.ArrayLike) -> Int64Array:
    """The value that pi takes to each of these."""
    return _walk(address, _SUPPORT_PLACE, size, values_n, back=True)


def sign(address: NoiseAddress, positions_n: npt.ArrayLike) -> Int8Array:
    """+1 or -1 of each weight: (n,) int8."""
    positions = np.asarray(positions_n, np.int64)
    words = _philox(address, positions // 16, noise.Stream.TERNARY_SIGN << 24, np.zeros_like(positions))
    word = np.take_along_axis(words, (positions % 16 // 4)[..., None], axis=-1)[..., 0]
    bit = word >> (8 * (positions % 4)).astype(np.uint32) & 1
    return np.where(bit == 1, 1, -1).astype(np.int8)


def _columns(layout: Layout) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Of each column: the place of its first weight, its height, and the distance of its weights."""
    firsts, heights, distances = [], [], []
    for tensor in layout.tensors:
        height, width = tensor.shape if tensor.kind == "matrix" else (tensor.size, 1)
        firsts.append(tensor.offset + np.arange(width, dtype=np.int64))
        heights.append(np.full(width, height, np.int64))
        distances.append(np.full(width, width, np.int64))
    return np.concatenate(firsts), np.concatenate(heights), np.concatenate(distances)


def _in_columns(address: NoiseAddress, layout: Layout, columns_n: Int64Array) -> Int64Array:
    """The weight of each column that a perturbation of that column touches."""
    firsts, heights, distances = (values[columns_n] for values in _columns(layout))
    words = _philox(address, np.zeros_like(columns_n), _ROW_PLACE, columns_n)[:, 0].astype(np.int64)
    return firsts + (words * heights >> 32) * distances


def _column_of(layout: Layout, positions_n: Int64Array) -> Int64Array:
    """The column that each weight is in."""
    offsets = np.array([tensor.offset for tensor in layout.tensors])
    widths = np.array([tensor.shape[1] if tensor.kind == "matrix" else 1 for tensor in layout.tensors])
    before = np.concatenate([[0], np.cumsum(widths)[:-1]])
    tensor_n = np.searchsorted(offsets, positions_n, side="right") - 1
    column_n: Int64Array = before[tensor_n] + (positions_n - offsets[tensor_n]) % widths[tensor_n]
    return column_n


def _chosen(perturbations: Perturbations, unit: int, first: int, count: int) -> npt.NDArray[np.bool_]:
    """Whether each of `count` weights belongs to a Bernoulli perturbation."""
    blocks = np.arange(first // 4, -(-(first + count) // 4))
    words = _philox(perturbations.address, blocks, _SUPPORT_PLACE, np.full_like(blocks, unit))
    below: npt.NDArray[np.bool_] = words.reshape(-1)[first % 4 :][:count] < bernoulli_bound(perturbations)
    return below


def nonzeros(perturbations: Perturbations, first: int, units: int) -> NonZeros:
    """The non-zeros of perturbations first .. first + units - 1."""
    p = perturbations
    if p.support == "bernoulli":
        parts = [np.flatnonzero(_chosen(p, unit, 0, p.layout.size)) for unit in range(first, first + units)]
        starts_U1 = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        positions_N = np.concatenate([*parts, np.empty(0, np.int64)]).astype(np.int64)
    else:
        starts_U1 = np.arange(units + 1, dtype=np.int64) * p.nonzeros
        positions_N = permutation(
            p.address, places(p.support, p.layout), np.arange(units * p.nonzeros) + first * p.nonzeros
        )
        if p.support == "columns":
            positions_N = _in_columns(p.address, p.layout, positions_N)
    return NonZeros(starts_U1, positions_N, sign(p.address, positions_N))


def sums(perturbations: Perturbations, votes_U: Int8Array) -> Int32Array:
    """sum_i vote_i perturbation_i: (P,) int32, from the perturbations that have a vote."""
    sums_P = np.zeros(perturbations.layout.size, np.int32)
    for unit in np.flatnonzero(votes_U).tolist():
        found = nonzeros(perturbations, unit, 1)
        sums_P[found.positions_N] += votes_U[unit] * found.signs_N.astype(np.int32)
    return sums_P


def slice_of_sums(perturbations: Perturbations, votes_U: Int8Array, first: int, count: int) -> Int32Array:
    """`sums` of weights first .. first + count - 1, from what those weights need: (count,) int32."""
    p, places_n = perturbations, np.arange(first, first + count, dtype=np.int64)
    if p.support == "bernoulli":
        voted_n = np.zeros(count, np.int32)
        for unit in np.flatnonzero(votes_U).tolist():
            voted_n += int(votes_U[unit]) * _chosen(p, unit, first, count)
    else:
        column_n = _column_of(p.layout, places_n) if p.support == "columns" else places_n
        unit_n = inverse(p.address, places(p.support, p.layout), column_n) // p.nonzeros
        voted_n = np.where(unit_n < p.units, votes_U[np.minimum(unit_n, p.units - 1)], 0).astype(np.int32)
        if p.support == "columns":
            voted_n *= _in_columns(p.address, p.layout, column_n) == places_n
    slice_n: Int32Array = voted_n * sign(p.address, places_n).astype(np.int32)
    return slice_n
