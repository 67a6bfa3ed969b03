"""EGG: tensors and initial values (specs/egg.md; Sarkar et al. 2025, arXiv 2511.16652)."""

from __future__ import annotations

import numpy as np

from es_service import noise
from es_service.types import Int8Array, Layout, Part, TensorKind, TensorSpec

VOCABULARY = 256
FRACTION_BITS = 4
ONE = 1 << FRACTION_BITS
"""The int8 value that stands for 1.0."""


def layout(width: int, layers: int) -> Layout:
    """Tensors in canonical order: `emb`, each layer's ten, `ln_out`, `head`."""
    square: tuple[int, ...] = (width, width)
    layer: list[tuple[str, tuple[int, ...], TensorKind]] = [
        ("ln1", (width,), "vector"),
        ("att.Wf", square, "matrix"),
        ("att.Uf", square, "matrix"),
        ("att.bf", (width,), "vector"),
        ("att.Wh", square, "matrix"),
        ("att.Uh", square, "matrix"),
        ("att.bh", (width,), "vector"),
        ("ln2", (width,), "vector"),
        ("mlp.0", (4 * width, width), "matrix"),
        ("mlp.1", (width, 4 * width), "matrix"),
    ]
    entries: list[tuple[str, tuple[int, ...], TensorKind]] = [("emb", (VOCABULARY, width), "matrix")]
    entries += [(f"blocks.{n}.{name}", shape, kind) for n in range(layers) for name, shape, kind in layer]
    entries += [("ln_out", (width,), "vector"), ("head", (VOCABULARY, width), "matrix")]
    tensors, offset = [], 0
    for index, (name, shape, kind) in enumerate(entries):
        tensors.append(TensorSpec(name, shape, kind, index, offset))
        offset += tensors[-1].size
    return Layout(tuple(tensors))


def initial_parameters(layout: Layout, seed: int) -> Int8Array:
    """Flat (P,) int8 initial values: matrices from stream 0 of the seed, norms ONE, biases 0."""
    return np.concatenate([initial_part(Part(t, 0, t.shape[0]), seed) for t in layout.tensors])


def initial_part(part: Part, seed: int) -> Int8Array:
    """The same for some rows of a tensor alone: (part.size,) int8."""
    tensor, values_N = part.tensor, np.zeros(part.size, np.int8)
    if tensor.kind == "matrix":
        values_N[:] = noise.entries(seed, 0, noise.Stream.INITIAL, tensor.index, 0, part.size, part.start)[0]
    elif "ln" in tensor.name:
        values_N[:] = ONE
    return values_N
