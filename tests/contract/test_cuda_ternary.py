"""The kernels of ternary perturbations against their definition, `es_service.ternary`: every result equal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es_service import ternary
from es_service.errors import BackendError
from es_service.types import Layout, NoiseAddress, Perturbations, TensorSpec
from workers.ops.cuda.emulated import EmulatedDevice
from workers.ops.cuda.ternary import TernaryKernels

KERNELS = TernaryKernels(EmulatedDevice(1))
ADDRESS = NoiseAddress(0x1234_5678_9ABC_DEF0, 77)


def layout_of(*shapes):
    tensors, offset = [], 0
    for index, shape in enumerate(shapes):
        tensors.append(TensorSpec(f"t{index}", shape, "matrix" if len(shape) == 2 else "vector", index, offset))
        offset += tensors[-1].size
    return Layout(tuple(tensors))


@st.composite
def perturbations(draw, supports=("exact", "columns")):
    shape = st.tuples(st.integers(1, 40)) | st.tuples(st.integers(1, 12), st.integers(1, 30))
    layout = layout_of(*draw(st.lists(shape, min_size=1, max_size=5)))
    support = draw(st.sampled_from(supports))
    address = NoiseAddress(draw(st.integers(0, (1 << 64) - 1)), draw(st.integers(0, (1 << 32) - 1)))
    room = ternary.column_count(layout) if support == "columns" else layout.size
    nonzeros = draw(st.integers(1, room))
    return Perturbations(support, address, layout, draw(st.integers(1, room // nonzeros)), nonzeros)


def votes_and_weights(p):
    rng = np.random.default_rng(p.layout.size)
    return rng.integers(-1, 2, p.units).astype(np.int8), rng.integers(-1, 2, p.layout.size).astype(np.int8)


@given(perturbations(), st.data())
@settings(max_examples=40, deadline=None)
def test_nonzeros_of_disjoint_supports(p, data):
    first = data.draw(st.integers(0, p.units - 1))
    units = data.draw(st.integers(1, p.units - first))
    expected, got = ternary.nonzeros(p, first, units), KERNELS.nonzeros(p, first, units)
    for name in ("starts_U1", "positions_N", "signs_N"):
        assert np.array_equal(getattr(expected, name), getattr(got, name)), name
        assert getattr(expected, name).dtype == getattr(got, name).dtype


@given(perturbations(("exact", "columns", "bernoulli")))
@settings(max_examples=40, deadline=None)
def test_step_is_the_clamped_sum(p):
    votes_U, weights_P = votes_and_weights(p)
    expected = np.clip(weights_P + np.clip(ternary.sums(p, votes_U), -1, 1), -1, 1)
    KERNELS.step(p, votes_U, weights_P)
    assert np.array_equal(expected, weights_P)


@given(perturbations(), st.data())
@settings(max_examples=40, deadline=None)
def test_slices_are_rebuilt_alone(p, data):
    votes_U, _ = votes_and_weights(p)
    first = data.draw(st.integers(0, p.layout.size - 1))
    count = data.draw(st.integers(1, p.layout.size - first))
    expected = ternary.slice_of_sums(p, votes_U, first, count)
    assert np.array_equal(expected, KERNELS.slice_of_sums(p, votes_U, first, count))
    assert np.array_equal(expected, ternary.sums(p, votes_U)[first : first + count])


@pytest.mark.parametrize("support", ["exact", "columns", "bernoulli"])
def test_a_step_without_votes_changes_nothing(support):
    p = Perturbations(support, ADDRESS, layout_of((4, 9), (5,)), 2, 3)
    _, weights_P = votes_and_weights(p)
    before = weights_P.copy()
    KERNELS.step(p, np.zeros(2, np.int8), weights_P)
    assert np.array_equal(before, weights_P)


def test_bernoulli_of_every_weight():
    """floor(k 2^32 / P) is 2^32 for k = P, one more than 32 bits hold."""
    p = Perturbations("bernoulli", ADDRESS, layout_of((7, 9)), 1, 63)
    weights_P, expected = np.zeros(63, np.int8), ternary.sums(p, np.ones(1, np.int8))
    KERNELS.step(p, np.ones(1, np.int8), weights_P)
    assert np.array_equal(expected, weights_P)
    assert (weights_P != 0).all()


def test_slices_that_there_are_not_are_refused():
    exact = Perturbations("exact", ADDRESS, layout_of((2, 5)), 2, 3)
    dense = Perturbations("bernoulli", ADDRESS, layout_of((2, 5)), 2, 3)
    for p, first, count in ((exact, 8, 3), (exact, -1, 3), (exact, 0, 0), (dense, 0, 3)):
        with pytest.raises(BackendError, match=r"of 10 \("):
            KERNELS.slice_of_sums(p, np.ones(2, np.int8), first, count)
