"""The reference backend against the recorded vectors, and against a second derivation of the spec."""

from __future__ import annotations

from math import log2
from pathlib import Path

import egg_scalar
import numpy as np
import pytest

from es_service import votes
from es_service.models import egg
from es_service.types import EggShape, Noise, NoiseAddress
from workers import golden
from workers.ops.reference import EXP2_TABLE, ReferenceOps, log_sum_exp

GOLDEN_FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
OPS = ReferenceOps()


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_golden_vectors_are_reproduced_exactly(path):
    assert golden.compare(golden.read(path), ReferenceOps()) is None


def test_there_are_golden_vectors():
    assert len(GOLDEN_FILES) >= 3


def test_log_sum_exp_equals_the_float64_formula_at_every_step():
    steps = {256, (1 << 28) - 1}
    for k in range(64, 16 * 24 + 1):
        edge = int(np.ceil(16 * 2.0 ** (k / 16)))
        steps |= {s for s in (edge - 1, edge, edge + 1) if 256 <= s < 1 << 28}
    sums = np.array(sorted(steps), np.int64)
    expected = np.array([int(16 * log2(s / 16)) for s in sums.tolist()])
    assert np.array_equal(log_sum_exp(sums), expected)
    assert log_sum_exp(sums).tolist() == [egg_scalar.log_sum_exp(s) for s in sums.tolist()]


def test_exp2_table_keeps_the_sum_below_2_28():
    assert EXP2_TABLE[0] == 16
    assert 256 * 16 <= int(EXP2_TABLE.astype(np.int64).max()) * 256 < 1 << 28


def test_exp2_table_is_the_exact_truncation():
    assert EXP2_TABLE.tolist() == [egg_scalar.exp2_entry(i) for i in range(256)]


# The spec, derived once more.


def nested(layout, parameters_P):
    return {name: view.tolist() for name, view in layout.views(parameters_P).items()}


def members(shape, layout, parameters_P, noise, pair):
    """Both members of a pair, as scalar programs; noise is looked up as specs/formats.md addresses it."""
    slots = {slot.tensor.name: slot for slot in layout.noise_slots(noise.rank)}
    factors, products = noise.factors_QF[pair].tolist(), noise.products_QV[pair].tolist()

    def factor_a(name, r, o):
        return factors[slots[name].first + r * slots[name].tensor.shape[0] + o]

    def factor_b(name, r, i):
        return factors[slots[name].second + r * slots[name].tensor.shape[1] + i]

    def product(name, j):
        return products[slots[name].first + j]

    tensors = nested(layout, parameters_P)
    arguments = (tensors, shape.width, shape.layers, shape.sigma_shift, noise.rank)
    return [egg_scalar.Egg(*arguments, sign, factor_a, factor_b, product) for sign in (1, -1)]


@pytest.mark.parametrize(("rank", "layers", "shift", "burn_in"), [(1, 2, 4, 0), (2, 1, 0, 1), (3, 1, 2, 2)])
def test_scores_states_and_update_follow_the_spec(rank, layers, shift, burn_in):
    shape, layout, pairs = EggShape(16, layers, shift), egg.layout(16, layers), 2
    rng = np.random.default_rng(rank)
    parameters_P = egg.initial_parameters(layout, 5) + rng.integers(-8, 9, layout.size, np.int8)
    noise = OPS.noise(layout, rank, NoiseAddress(7, 3), 11, pairs)
    rows = rng.integers(1, 256, (pairs, 5), np.uint8)
    rows[0, 2] = 0
    state = np.zeros((2 * pairs, layers, 16), np.int8)
    model = OPS.prepare(shape, parameters_P)
    scores = OPS.member_scores(model, noise, rows, np.arange(pairs, dtype=np.int32), burn_in, state)
    scalars = [m for pair in range(pairs) for m in members(shape, layout, parameters_P, noise, pair)]
    expected = [m.score(rows[i // 2].tolist(), burn_in) for i, m in enumerate(scalars)]
    assert scores.tolist() == expected
    assert state.tolist() == [m.state for m in scalars]
    plain = egg_scalar.Egg(nested(layout, parameters_P), 16, layers, shift)
    assert OPS.scores(model, rows[:1], burn_in).tolist() == [plain.score(rows[0].tolist(), burn_in)]


def extreme_noise(layout, rank, pairs):
    factors, products = layout.noise_sizes(rank)
    return Noise(rank, np.full((pairs, factors), 127, np.int8), np.full((pairs, products), 16129, np.int16))


def test_accumulators_wrap_modulo_2_32():
    """Rank 40 and saturated activations: the sum over r of (x . B)(A) passes 2^31."""
    shape, layout = EggShape(16, 1, 0), egg.layout(16, 1)
    parameters_P = np.full(layout.size, 100, np.int8)
    noise = extreme_noise(layout, 40, 1)
    rows = np.array([[65, 66, 67]], np.uint8)
    scores = OPS.member_scores(OPS.prepare(shape, parameters_P), noise, rows, np.zeros(1, np.int32), 0)
    scalars = members(shape, layout, parameters_P, noise, 0)
    assert scores.tolist() == [m.score(rows[0].tolist(), 0) for m in scalars]
    assert all(m.wrapped for m in scalars), "this case no longer overflows"


@pytest.mark.parametrize("sign_noise", [False, True])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_sums_follow_the_spec(rank, sign_noise):
    layout, pairs = egg.layout(16, 1), 5
    noise = OPS.noise(layout, rank, NoiseAddress(1, 2), 0, pairs)
    votes_Q = np.array([1, -1, 0, 1, 1], np.int8)
    sums_P = np.zeros(layout.size, np.int32)
    OPS.accumulate(layout, noise, votes_Q, sign_noise, sums_P)
    got = layout.views(sums_P)

    def s(v):
        return (v > 0) - (v < 0) if sign_noise else v

    f, p = noise.factors_QF.tolist(), noise.products_QV.tolist()
    for slot in layout.noise_slots(rank):
        name, shape = slot.tensor.name, slot.tensor.shape
        if slot.tensor.kind == "vector":
            expected = [sum(int(v) * s(p[q][slot.first + j]) for q, v in enumerate(votes_Q)) for j in range(shape[0])]
            assert got[name].tolist() == expected, name
            continue
        for o, i in ((0, 0), (shape[0] - 1, shape[1] - 1), (3, 7)):
            expected = sum(
                int(v) * s(f[q][slot.first + r * shape[0] + o]) * s(f[q][slot.second + r * shape[1] + i])
                for q, v in enumerate(votes_Q)
                for r in range(rank)
            )
            assert got[name][o, i] == expected, (name, o, i)


@pytest.mark.parametrize("k", [0, 1, 13])
@pytest.mark.parametrize("sign_noise", [False, True])
def test_the_update_rule_at_its_edges(k, sign_noise):
    """Equality moves; with K = 0 all move and Z = 0 counts as -1; saturation holds at +-127."""
    pairs, scale = 2048, 1 if sign_noise else 256
    threshold = k * 45 * scale
    edge = -(-threshold // 16)
    zs = sorted({0, 1, -1, edge, edge - 1, -edge, -edge + 1, threshold, -threshold, 2**31 - 1, -(2**31)})
    weights = [-127, -126, 0, 126, 127]
    parameters_P = np.array([w for w in weights for _ in zs], np.int8)
    sums_P = np.array(zs * len(weights), np.int64).astype(np.int32)
    both = zip(parameters_P.tolist(), sums_P.tolist(), strict=True)
    expected = [egg_scalar.moved(w, z, k, pairs, sign_noise) for w, z in both]
    count = OPS.apply(parameters_P, sums_P, threshold)
    assert parameters_P.tolist() == expected
    assert count == sum(16 * abs(z) >= threshold for z in sums_P.tolist())
    if k == 0:
        assert count == len(expected)


def test_votes_are_antisymmetric_and_do_not_overflow():
    scores = np.array([5, 3, 3, 5, 4, 4, 2**31 - 1, -(2**31), -(2**31), 2**31 - 1], np.int32)
    assert votes.from_scores(scores).tolist() == [1, -1, 0, 1, -1]
    exchanged = scores.reshape(-1, 2)[:, ::-1].reshape(-1)
    assert np.array_equal(votes.from_scores(exchanged), -votes.from_scores(scores))
