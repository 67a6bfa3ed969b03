"""Writes cases with their answers, from the reference backend, for ternary_test.cpp (which reads in this order)."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from es_service.types import Layout, NoiseAddress, Perturbations, Support, TensorSpec
from workers.ops.native import _SUPPORTS, _ternary_call
from workers.ops.reference import ReferenceOps

Shapes = tuple[tuple[int, ...], ...]
ALL: tuple[Support, ...] = ("exact", "columns", "bernoulli")
# Shapes of the tensors, k, supports. The kernels cut their work into pieces of 4,096 weights, or non-zeros.
CASES: tuple[tuple[Shapes, int, tuple[Support, ...]], ...] = (
    (((1, 1),), 1, ALL),
    (((5, 7), (5,), (11, 5), (11,)), 1, ALL),
    (((70, 90), (70,), (3, 70)), 2, ALL),
    (((2, 5000),), 1, ("exact", "columns")),
)


def layout_of(shapes: Shapes) -> Layout:
    """Tensors one after the other."""
    tensors, offset = [], 0
    for index, shape in enumerate(shapes):
        kind = "matrix" if len(shape) == 2 else "vector"
        tensors.append(TensorSpec(f"t{index}", shape, kind, index, offset))
        offset += tensors[-1].size
    return Layout(tuple(tensors))


def case(layout: Layout, nonzeros: int, support: Support) -> list[bytes]:
    """One case as little-endian pieces."""
    rng, ops = np.random.default_rng(layout.size), ReferenceOps()
    columns = sum(t.shape[1] if t.kind == "matrix" else 1 for t in layout.tensors)
    units = columns // nonzeros
    p = Perturbations(support, NoiseAddress(0x0123456789ABCDEF, 2**32 - 1), layout, units, nonzeros)
    numbers, table, seed, epoch = _ternary_call(p)
    first = units // 3
    found = ops.ternary_nonzeros(p, first, units - first)
    votes = rng.integers(-1, 2, units).astype(np.int8)
    votes[0] = 1
    weights = rng.integers(-1, 2, layout.size).astype(np.int8)
    moved = weights.copy()
    ops.ternary_step(p, votes, moved)
    sizes = [_SUPPORTS[support], *numbers[1:].tolist(), seed, epoch, first, len(found.starts_U1) - 1]
    sizes += [len(layout.tensors), len(found.positions_N)]
    head = [np.array(sizes, np.int64), table, found.starts_U1, found.positions_N, found.signs_N]
    return [array.tobytes() for array in (*head, votes, weights, moved)]


if __name__ == "__main__":
    cases = [case(layout_of(shapes), k, support) for shapes, k, supports in CASES for support in supports]
    Path(sys.argv[1]).write_bytes(b"".join(piece for pieces in cases for piece in pieces))
