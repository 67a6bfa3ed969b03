"""Writes cases with their answers, from the reference backend, for kernel_test.cpp (which reads in this order)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt

from es_service.models import egg
from es_service.types import EggShape, Layout, NoiseAddress
from workers.ops.reference import ReferenceOps

# width, layers, sigma_shift, rank, units, row bytes, burn-in
CASES = (
    (16, 1, 4, 1, 3, 4, 0),
    (48, 2, 0, 2, 19, 5, 2),
    (64, 1, 4, 1, 37, 4, 1),
    (80, 1, 2, 4, 5, 3, 0),
    (256, 1, 4, 1, 6, 3, 0),
)


def tensor_table(layout: Layout, rank: int) -> npt.NDArray[np.int64]:
    """(tensors, 6): out (0 for a vector), in, offset, first, second, index."""
    rows = []
    for slot in layout.noise_slots(rank):
        out_size, in_size = slot.tensor.shape if slot.tensor.kind == "matrix" else (0, slot.tensor.size)
        rows.append((out_size, in_size, slot.tensor.offset, slot.first, slot.second, slot.tensor.index))
    return np.array(rows, np.int64)


def case(width: int, layers: int, sigma_shift: int, rank: int, units: int, row_bytes: int, burn_in: int) -> list[bytes]:
    """One case as little-endian pieces."""
    rng = np.random.default_rng(width)
    ops, layout, num_rows = ReferenceOps(), egg.layout(width, layers), 3
    seed, epoch, first_unit, threshold = 0x0123456789ABCDEF + width, 5, 2**31, 40_000
    sign_noise = units % 2 == 0
    factors, products = layout.noise_sizes(rank)
    parameters = np.clip(egg.initial_parameters(layout, seed) + rng.integers(-9, 10, layout.size), -127, 127).astype(
        np.int8
    )
    noise = ops.noise(layout, rank, NoiseAddress(seed, epoch), first_unit, units)
    rows = rng.integers(0, 256, (num_rows, row_bytes), np.uint8)
    rows[0, 1] = 0
    row_of_pair = rng.integers(0, num_rows, units).astype(np.int32)
    state_in = rng.integers(-127, 128, (2 * units, layers, width)).astype(np.int8)
    model = ops.prepare(EggShape(width, layers, sigma_shift), parameters)

    state_out, eval_state = state_in.copy(), np.zeros((num_rows, layers, width), np.int8)
    scores = ops.member_scores(model, noise, rows, row_of_pair, burn_in, state_out)
    eval_scores = ops.scores(model, rows, burn_in, eval_state)
    tokens = (np.arange(2 * units) * 37 % 256).astype(np.uint8)
    logits = ops.logits(model, tokens, state_in.copy(), noise)
    votes = rng.integers(-1, 2, units).astype(np.int8)
    sums, updated = np.zeros(layout.size, np.int32), parameters.copy()
    ops.accumulate(layout, noise, votes, sign_noise, sums)
    moved = ops.apply(updated, sums, threshold)

    sizes = [width, layers, sigma_shift, rank, units, num_rows, row_bytes, burn_in, seed, epoch, first_unit, sign_noise]
    sizes += [threshold, len(layout.tensors), layout.size, factors, products, moved]
    digest = np.uint64(ops.digest(layout, parameters))
    arrays = [np.array(sizes, np.int64), tensor_table(layout, rank), digest, parameters]
    arrays += [noise.factors_QF, noise.products_QV, rows, row_of_pair, state_in, state_out, scores]
    arrays += [eval_state, eval_scores, logits, votes, sums, updated]
    return [array.tobytes() for array in arrays]


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(b"".join(piece for sizes in CASES for piece in case(*sizes)))
