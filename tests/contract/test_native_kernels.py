"""Every instruction set that this CPU has against the reference backend: all kernels, bit for bit."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from es_service.models import egg
from es_service.types import EggShape, Layout, Noise, NoiseAddress, TensorSpec
from workers.ops.native import NativeOps, detect
from workers.ops.reference import ReferenceOps

ISAS = [isa for isa, present in detect().items() if present]
REFERENCE = ReferenceOps()

pytestmark = pytest.mark.parametrize("isa", ISAS)


class Sizes(NamedTuple):
    """One forward pass. `loud` noise is near +-127, so that products of rank r overflow int32."""

    width: int
    layers: int = 1
    rank: int = 1
    pairs: int = 3
    scored: int = 2
    burn_in: int = 0
    sigma_shift: int = 4
    threads: int = 1
    start_at_zero: bool = False
    loud: bool = False


@st.composite
def sizes(draw) -> Sizes:
    """Widths up to 1024; the wider the model, the fewer members and bytes (the reference has to follow)."""
    width = 16 * draw(st.one_of(st.integers(1, 8), st.integers(9, 24), st.integers(25, 64)))
    small, wide = width <= 128, width > 384
    return Sizes(
        width,
        layers=draw(st.integers(1, 3 if small else 1)),
        rank=draw(st.integers(1, 4)),
        pairs=draw(st.integers(1, 40 if small else 3 if wide else 18)),
        scored=draw(st.integers(1, 4 if small else 1)),
        burn_in=draw(st.integers(0, 2 if small else 1)),
        sigma_shift=draw(st.integers(0, 8)),
        threads=draw(st.integers(1, 3)),
        start_at_zero=draw(st.booleans()),
        loud=draw(st.booleans()),
    )


def make_noise(rng, layout: Layout, rank: int, units: int, loud: bool) -> Noise:
    factors, products = layout.noise_sizes(rank)
    least = 120 if loud else 0
    magnitude = rng.integers(least, 128, (units, factors))
    factors_QF = (magnitude * rng.choice([-1, 1], (units, 1) if loud else (units, factors))).astype(np.int8)
    products_QV = rng.integers(-127 * 127, 127 * 127 + 1, (units, products)).astype(np.int16)
    return Noise(rank, factors_QF, products_QV)


def make_rows(rng, count: int, length: int):
    rows = rng.integers(0, 256, (count, length), np.uint8)
    rows[rng.random(rows.shape) < 0.1] = 0
    return rows


@settings(max_examples=20)
@example(Sizes(1024, rank=4, pairs=2, scored=1, loud=True))
@example(Sizes(256, pairs=35, threads=2))
@example(Sizes(16, layers=2, pairs=70, scored=5, burn_in=3, threads=3))
@given(sizes())
def test_forward_equals_the_reference(isa, case):
    rng = np.random.default_rng([case.width, case.pairs])
    ops, layout, shape = NativeOps(case.threads, isa), egg.layout(*case[:2]), EggShape(*case[:2], case.sigma_shift)
    parameters = rng.integers(-40, 41, layout.size).astype(np.int8)
    noise = make_noise(rng, layout, case.rank, case.pairs, case.loud)
    rows = make_rows(rng, max(1, case.pairs // 2), case.burn_in + case.scored + 1)
    row_of_pair = rng.integers(0, len(rows), case.pairs).astype(np.int32)
    tokens = rng.integers(0, 256, 2 * case.pairs, np.uint8)
    results = []
    for backend in (REFERENCE, ops):
        rng = np.random.default_rng(1)
        model = backend.prepare(shape, parameters)
        state, row_state = (
            None if case.start_at_zero else rng.integers(-127, 128, (count, *case[1::-1])).astype(np.int8)
            for count in (2 * case.pairs, len(rows))
        )
        scores = backend.member_scores(model, noise, rows, row_of_pair, case.burn_in, state)
        row_scores = backend.scores(model, rows, case.burn_in, row_state)
        stepped = rng.integers(-127, 128, (2 * case.pairs, *case[1::-1])).astype(np.int8)
        noisy = backend.logits(model, tokens, stepped, noise)
        plain = backend.logits(model, tokens, stepped)
        results.append((scores, state, row_scores, row_state, noisy, plain, stepped))
    for expected, got in zip(*results, strict=True):
        assert np.array_equal(expected, got)


@settings(max_examples=12)
@given(
    width=st.integers(1, 12),
    rank=st.integers(1, 4),
    units=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    first=st.integers(0, 2**32 - 8),
)
def test_noise_equals_the_reference(isa, width, rank, units, seed, epoch, first):
    layout, address = egg.layout(16 * width, 1), NoiseAddress(seed, epoch)
    expected = REFERENCE.noise(layout, rank, address, first, units)
    got = NativeOps(2, isa).noise(layout, rank, address, first, units)
    assert got.rank == rank
    assert np.array_equal(expected.factors_QF, got.factors_QF)
    assert np.array_equal(expected.products_QV, got.products_QV)
    assert (got.factors_QF.dtype, got.products_QV.dtype) == (np.int8, np.int16)


def odd_layout() -> Layout:
    """Sizes that no EGG model has: nothing is a multiple of a vector."""
    tensors, offset = [], 0
    for index, shape in enumerate(((5, 3), (7,), (33, 65), (1,), (64, 1))):
        tensors.append(TensorSpec(f"t{index}", shape, "matrix" if len(shape) == 2 else "vector", index, offset))
        offset += tensors[-1].size
    return Layout(tuple(tensors))


@settings(max_examples=15)
@example(width=0, rank=2, units=700, sign_noise=False, loud=True, abstain=False)
@example(width=16, rank=1, units=1100, sign_noise=False, loud=True, abstain=False)
@given(
    width=st.sampled_from((0, 16, 48, 64, 80)),
    rank=st.integers(1, 4),
    units=st.integers(1, 300),
    sign_noise=st.booleans(),
    loud=st.booleans(),
    abstain=st.booleans(),
)
def test_update_equals_the_reference(isa, width, rank, units, sign_noise, loud, abstain):
    rng = np.random.default_rng(units)
    layout = egg.layout(width, 1) if width else odd_layout()
    noise = make_noise(rng, layout, rank, units, loud)
    votes = (np.zeros(units) if abstain else rng.integers(-1, 2, units)).astype(np.int8)
    parameters = rng.integers(-127, 128, layout.size).astype(np.int8)
    start = rng.integers(-(2**31), 2**31, layout.size).astype(np.int32)  # wraps
    results = []
    for backend in (REFERENCE, NativeOps(2, isa)):
        sums = start.copy()
        backend.accumulate(layout, noise, votes, sign_noise, sums)
        results.append((sums, backend.digest(layout, parameters)))
    assert np.array_equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@pytest.mark.parametrize("threshold", [0, 1, 15, 16, 17, 4096, 16 * (2**31 - 1), 2**35, 2**35 + 1, 2**61])
@pytest.mark.parametrize("count", [1, 15, 16, 1000, 300_001])
def test_apply_equals_the_reference(isa, threshold, count):
    rng = np.random.default_rng(count)
    sums = rng.integers(-300, 301, count).astype(np.int32)
    edges = [0, 1, -1, 256, -256, 2**31 - 1, -(2**31)]
    sums[: len(edges)] = edges[:count]
    parameters = rng.choice(np.array([-128, -127, -126, 0, 126, 127], np.int8), count)
    expected, got = parameters.copy(), parameters.copy()
    moved = REFERENCE.apply(expected, sums, threshold)
    assert moved == NativeOps(3, isa).apply(got, sums, threshold)
    assert np.array_equal(expected, got)


@pytest.mark.parametrize("members", [True, False])
def test_threads_and_leases_do_not_change_a_bit(isa, members):
    """A pair's scores depend neither on the threads nor on which pairs run beside it."""
    layout, shape, pairs = egg.layout(32, 2), EggShape(32, 2, 4), 45
    parameters = egg.initial_parameters(layout, 5)
    rows = make_rows(np.random.default_rng(3), pairs, 9)
    scores = []
    for threads, cuts in ((1, [0, pairs]), (4, [0, pairs]), (2, [0, 1, 17, 18, pairs])):
        ops = NativeOps(threads, isa)
        model = ops.prepare(shape, parameters)
        parts = []
        for first, end in pairwise(cuts):
            if members:
                noise = ops.noise(layout, 2, NoiseAddress(9, 1), first, end - first)
                parts.append(ops.member_scores(model, noise, rows, np.arange(first, end, dtype=np.int32), 2))
            else:
                parts.append(ops.scores(model, rows[first:end], 2))
        scores.append(np.concatenate(parts))
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])
