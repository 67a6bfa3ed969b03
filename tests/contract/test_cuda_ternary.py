"""Ternary perturbations: the definition's properties, and the kernels against the definition."""

import numpy as np
import pytest

from es_service.errors import BackendError
from es_service.types import NoiseAddress
from workers.ops.cuda import ternary_reference as reference
from workers.ops.cuda.emulated import EmulatedDevice
from workers.ops.cuda.ternary import TernaryKernels

ADDRESS = NoiseAddress(0x1234_5678_9ABC_DEF0, 77)
SIZES = [1, 2, 5, 64, 100, 1000]


@pytest.fixture(scope="module")
def kernels():
    return TernaryKernels(EmulatedDevice(2))


@pytest.mark.parametrize("size", SIZES)
def test_pi_is_a_permutation_and_its_inverse_undoes_it(size):
    positions = reference.permutation(ADDRESS, size, np.arange(size))
    assert sorted(positions.tolist()) == list(range(size))
    assert np.array_equal(np.arange(size), reference.inverse(ADDRESS, size, positions))


@pytest.mark.parametrize("size", SIZES)
def test_supports_are_disjoint_and_equal_on_the_device(size, kernels):
    positions, signs = kernels.support(ADDRESS, size, 0, size)
    expected = reference.support(ADDRESS, size, 0, size)
    assert np.array_equal(expected[0], positions)
    assert np.array_equal(expected[1], signs)


def test_another_generation_has_another_permutation_and_other_signs():
    other = NoiseAddress(ADDRESS.seed, ADDRESS.epoch + 1)
    first, second = reference.support(ADDRESS, 1000, 0, 1000), reference.support(other, 1000, 0, 1000)
    assert (first[0] == second[0]).sum() < 20
    assert abs(int((first[1] == second[1]).sum()) - 500) < 100


def votes_and_weights(units, size):
    rng = np.random.default_rng(size)
    return rng.integers(-1, 2, units).astype(np.int8), rng.integers(-1, 2, size).astype(np.int8)


@pytest.mark.parametrize(("size", "units", "nonzeros"), [(100, 9, 11), (1000, 7, 1), (5, 5, 1)])
def test_step_equals_the_definition_and_its_slices(size, units, nonzeros, kernels):
    votes, weights = votes_and_weights(units, size)
    expected, got = weights.copy(), weights.copy()
    reference.step(ADDRESS, expected, votes, nonzeros)
    kernels.step(ADDRESS, got, votes, nonzeros)
    assert np.array_equal(expected, got)
    parts = [
        kernels.slice_of_step(ADDRESS, size, votes, nonzeros, first, min(37, size - first))
        for first in range(0, size, 37)
    ]
    assert np.array_equal(np.clip(weights + np.concatenate(parts), -1, 1), expected)
    assert np.array_equal(parts[0], reference.slice_of_step(ADDRESS, size, votes, nonzeros, 0, min(37, size)))


@pytest.mark.parametrize("density", [0.0, 0.01, 0.5])
def test_bernoulli_step(density, kernels):
    votes, weights = votes_and_weights(12, 203)
    sums = reference.bernoulli_sums(ADDRESS, 203, votes, density)
    got = weights.copy()
    assert np.array_equal(sums, kernels.bernoulli_step(ADDRESS, got, votes, density))
    assert np.array_equal(np.clip(weights + np.clip(sums, -1, 1), -1, 1), got)


def test_more_non_zeros_than_weights_are_refused(kernels):
    votes, weights = votes_and_weights(4, 10)
    with pytest.raises(BackendError, match="do not fit"):
        kernels.step(ADDRESS, weights, votes, 3)
    with pytest.raises(BackendError, match="non-zeros"):
        kernels.support(ADDRESS, 10, 8, 3)
