"""Ternary perturbations: known values of the definition, its laws on random shapes, and slices against the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es_service import noise, ternary
from es_service.types import Layout, NoiseAddress, Perturbations, TensorSpec

ADDRESS = NoiseAddress(0x1234_5678_9ABC_DEF0, 77)


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    tensors, offset = [], 0
    for index, shape in enumerate(shapes):
        kind = "matrix" if len(shape) == 2 else "vector"
        tensors.append(TensorSpec(f"t{index}", shape, kind, index, offset))
        offset += tensors[-1].size
    return Layout(tuple(tensors))


@st.composite
def perturbations(draw) -> Perturbations:
    shape = st.tuples(st.integers(1, 9)) | st.tuples(st.integers(1, 9), st.integers(1, 9))
    layout = layout_of(*draw(st.lists(shape, min_size=1, max_size=4)))
    support = draw(st.sampled_from(["bernoulli", "exact", "columns"]))
    address = NoiseAddress(draw(st.integers(0, (1 << 64) - 1)), draw(st.integers(0, (1 << 32) - 1)))
    room = ternary.column_count(layout) if support == "columns" else layout.size
    nonzeros = draw(st.integers(1, room))
    return Perturbations(support, address, layout, draw(st.integers(1, room // nonzeros)), nonzeros)


def words(p: Perturbations, place: int, unit: int, block: int = 0) -> list[int]:
    counter = np.array([block, place, unit, p.address.epoch], np.uint32)
    return noise.philox4x32(counter, (p.address.seed & 0xFFFFFFFF, p.address.seed >> 32)).tolist()


def pi(p: Perturbations, size: int, value: int) -> int:
    """The permutation with plain integers, a second time."""
    half = 1
    while size > 1 << 2 * half:
        half += 1
    while True:
        left, right = divmod(value, 1 << half)
        for number in range(4):
            left, right = right, left ^ words(p, 5 << 24 | number, right)[0] % (1 << half)
        value = left << half | right
        if value < size:
            return value


def slow(p: Perturbations) -> list[dict[int, int]]:
    """Every perturbation as {weight: sign}, entry by entry from the definition."""
    columns = []
    for tensor in p.layout.tensors:
        height, width = tensor.shape if tensor.kind == "matrix" else (tensor.size, 1)
        columns += [[tensor.offset + r * width + c for r in range(height)] for c in range(width)]
    signs = noise.uniform_bytes(p.address.seed, p.address.epoch, noise.Stream.TERNARY_SIGN, 0, 0, p.layout.size)[0]
    result = []
    for unit in range(p.units):
        if p.support == "bernoulli":
            bound = (p.nonzeros << 32) // p.layout.size
            touched = [j for j in range(p.layout.size) if words(p, 5 << 24, unit, j // 4)[j % 4] < bound]
        else:
            images = range(unit * p.nonzeros, (unit + 1) * p.nonzeros)
            touched = [pi(p, len(columns) if p.support == "columns" else p.layout.size, n) for n in images]
        if p.support == "columns":
            touched = [columns[c][words(p, 5 << 24 | 4, c)[0] * len(columns[c]) >> 32] for c in touched]
        result.append({j: 1 if signs[j] & 1 else -1 for j in touched})
    return result


def as_dicts(found) -> list[dict[int, int]]:
    edges = found.starts_U1.tolist()
    pairs = list(zip(found.positions_N.tolist(), found.signs_N.tolist(), strict=True))
    return [dict(pairs[a:b]) for a, b in itertools.pairwise(edges)]


@given(perturbations(), st.data())
@settings(max_examples=30)
def test_non_zeros_are_those_of_the_definition(p, data):
    expected = slow(p)
    assert as_dicts(ternary.nonzeros(p, 0, p.units)) == expected
    first = data.draw(st.integers(0, p.units - 1))
    units = data.draw(st.integers(1, p.units - first))
    assert as_dicts(ternary.nonzeros(p, first, units)) == expected[first : first + units]


@given(perturbations(), st.data())
@settings(max_examples=30)
def test_sums_and_every_slice_of_them(p, data):
    votes_U = np.array(data.draw(st.lists(st.integers(-1, 1), min_size=p.units, max_size=p.units)), np.int8)
    expected = np.zeros(p.layout.size, np.int32)
    for vote, touched in zip(votes_U.tolist(), slow(p), strict=True):
        for place, sign in touched.items():
            expected[place] += vote * sign
    sums_P = ternary.sums(p, votes_U)
    assert np.array_equal(sums_P, expected)
    first = data.draw(st.integers(0, p.layout.size - 1))
    count = data.draw(st.integers(1, p.layout.size - first))
    assert np.array_equal(ternary.slice_of_sums(p, votes_U, first, count), expected[first : first + count])


@pytest.mark.parametrize("size", [1, 2, 5, 64, 100, 1000])
def test_pi_is_a_permutation_and_its_inverse_undoes_it(size):
    positions = ternary.permutation(ADDRESS, size, np.arange(size))
    assert sorted(positions.tolist()) == list(range(size))
    assert np.array_equal(np.arange(size), ternary.inverse(ADDRESS, size, positions))


@given(perturbations())
@settings(max_examples=30)
def test_no_two_perturbations_share_a_weight_or_a_column(p):
    if p.support == "bernoulli":
        return
    found = ternary.nonzeros(p, 0, p.units)
    assert np.array_equal(found.starts_U1, np.arange(p.units + 1) * p.nonzeros)
    used = found.positions_N
    if p.support == "columns":
        used = np.array([ternary._column_of(p.layout, position) for position in used[:, None]])
    assert len(np.unique(used)) == p.units * p.nonzeros


def test_bernoulli_has_the_density_that_it_says():
    p = Perturbations("bernoulli", ADDRESS, layout_of((100, 300)), 40, 300)
    sizes = np.diff(ternary.nonzeros(p, 0, 40).starts_U1)
    assert abs(sizes.mean() - 300) < 15
    assert sizes.std() > 5
    everything = Perturbations("bernoulli", ADDRESS, layout_of((3, 5)), 1, 15)
    assert len(ternary.nonzeros(everything, 0, 1).positions_N) == 15


def test_rows_of_columns_are_uniform():
    p = Perturbations("columns", ADDRESS, layout_of((4, 8000)), 8000, 1)
    rows = np.bincount(ternary.nonzeros(p, 0, 8000).positions_N // 8000, minlength=4)
    assert abs(rows - 2000).max() < 200


def test_another_generation_has_another_permutation_and_other_signs():
    layout = layout_of((10, 100))
    first, second = (
        ternary.nonzeros(Perturbations("exact", NoiseAddress(ADDRESS.seed, e), layout, 1000, 1), 0, 1000)
        for e in (1, 2)
    )
    assert (first.positions_N == second.positions_N).sum() < 20
    assert abs(int((first.signs_N == second.signs_N).sum()) - 500) < 100


def test_known_answers():
    """Fixed for ever: a change of any of these is another format."""
    layout = layout_of((7, 5), (7,), (3, 7))
    expected = {
        "exact": ([0, 2, 4, 6], [21, 23, 40, 36, 17, 4], [-1, 1, -1, 1, -1, -1]),
        "columns": ([0, 2, 4, 6], [2, 47, 24, 52, 55, 30], [1, -1, 1, -1, 1, 1]),
        "bernoulli": ([0, 2, 3, 5], [26, 53, 61, 20, 38], [1, -1, 1, 1, -1]),
    }
    for support, arrays in expected.items():
        found = ternary.nonzeros(Perturbations(support, ADDRESS, layout, 3, 2), 0, 3)
        assert (found.starts_U1.tolist(), found.positions_N.tolist(), found.signs_N.tolist()) == arrays
