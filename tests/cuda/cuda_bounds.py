"""Every kernel once on shapes with ragged ends, each array an allocation of its own: run under AddressSanitizer."""

import numpy as np

from es_service.models import egg
from es_service.types import EggShape, Layout, Noise, NoiseAddress, Perturbations, TensorSpec
from workers.ops.cuda import _launch
from workers.ops.cuda.emulated import EmulatedDevice, EmulatedOps
from workers.ops.cuda.ternary import TernaryKernels
from workers.ops.reference import ReferenceOps


def run() -> None:
    for tile, (width, layers, rank, pairs) in zip(
        _launch.TILES, [(16, 1, 1, 9), (48, 1, 3, 7), (144, 1, 1, 3), (64, 2, 2, 9)], strict=True
    ):
        _forward_and_update(tile, width, layers, rank, pairs)
    kernels, tensors = TernaryKernels(EmulatedDevice()), (TensorSpec("w", (3, 11), "matrix", 0, 0),)
    layout = Layout((*tensors, TensorSpec("v", (4,), "vector", 1, 33)))
    for support in ("exact", "columns", "bernoulli"):
        p = Perturbations(support, NoiseAddress(5, 6), layout, 3, 4)
        votes, weights = np.array([1, -1, 0], np.int8), np.zeros(37, np.int8)
        kernels.step(p, votes, weights)
        if support != "bernoulli":
            kernels.nonzeros(p, 1, 2)
            kernels.slice_of_sums(p, votes, 1, 36)
    print("all within bounds")


def _forward_and_update(tile: int, width: int, layers: int, rank: int, pairs: int) -> None:
    rng = np.random.default_rng(width)
    ops, reference = EmulatedOps(1, EmulatedDevice(1, multiprocessors=1)), ReferenceOps()
    _launch.TILES = (tile,)
    layout, address = egg.layout(width, layers), NoiseAddress(width, rank)
    parameters_P = rng.integers(-128, 128, layout.size, dtype=np.int8)
    lazy = ops.noise(layout, rank, address, 0, pairs)
    recorded = Noise(rank, np.array(lazy.factors_QF), np.array(lazy.products_QV))
    rows, row_of_pair = rng.integers(0, 256, (2, 3), dtype=np.uint8), np.ones(pairs, np.int32)
    shape, sums = EggShape(width, layers, 4), np.zeros(layout.size, np.int32)
    model = ops.prepare(shape, parameters_P)
    expected = reference.member_scores(reference.prepare(shape, parameters_P), recorded, rows, row_of_pair, 0)
    votes = np.ones(pairs, np.int8)
    for noise in (lazy, recorded):
        assert np.array_equal(expected, ops.member_scores(model, noise, rows, row_of_pair, 0))
        ops.accumulate(layout, noise, votes, False, sums)
    ops.scores(model, rows, 1)
    ops.logits(model, rows[:, 0].copy(), np.zeros((2, layers, width), np.int8))
    ops.apply(parameters_P, sums, 100)
    ops.update(layout, rank, address, votes, True, 1, parameters_P)
    ops.digest(layout, parameters_P)
