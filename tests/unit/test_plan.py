"""The cut of a generation into leases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.plan import Plan
from es_service.problem import plan_of


@given(st.integers(1, 100_000), st.integers(0, 400))
def test_leases_cover_every_unit_once_in_order(units, fives):
    plan = Plan.of(units, 5 * fives)
    at = 0
    for index in range(len(plan)):
        first, count = plan.range(index)
        assert first == at
        assert count > 0
        at += count
        if index < len(plan) - 1:
            assert count % 5 == 0, "payloads join without repacking"
    assert at == units


@pytest.mark.parametrize(
    ("units", "lease_units", "leases"),
    [(320, 0, 4), (2048, 0, 4), (131_072, 0, 16), (1, 0, 1), (81, 0, 2), (81, 80, 2), (23, 5, 5), (20, 1000, 1)],
)
def test_number_of_leases(units, lease_units, leases):
    assert len(Plan.of(units, lease_units)) == leases


def test_default_leases_are_whole_tiles_of_at_most_8192():
    for units in (7, 1000, 2048, 33_333, 1 << 19):
        plan = Plan.of(units)
        assert plan.lease_units % 80 == 0 or len(plan) == 1
        assert plan.lease_units <= 8_240


@pytest.mark.parametrize("index", [-1, 4, 1000])
def test_a_lease_outside_the_plan_is_an_error(index):
    with pytest.raises(IndexError, match=f"lease {index} of 4"):
        Plan.of(20, 5).range(index)


@pytest.mark.parametrize(
    ("units", "workers", "leases", "lease_units"),
    [(1 << 17, 1024, 1009, 130), (1 << 23, 1024, 1024, 8195), (1 << 23, 1000, 1000, 8390), (1 << 23, 64, 994, 8445),
     (1 << 17, 0, 16, 8445), (1 << 17, 1, 16, 8445), (3, 8, 1, 5)],
)  # fmt: skip
def test_gpus_get_leases_of_one_wave_or_an_equal_share(units, workers, leases, lease_units):
    plan = Plan.of(units, workers=workers, wave=8448)
    assert (len(plan), plan.lease_units) == (leases, lease_units)


def test_the_pool_says_what_a_wave_is(tiny_config):
    """Else an H100 is taken for a worker with a GPU, and no wave for one without; a given size goes before both."""
    gpu = {"deployment__worker": {"num_gpus": 1}, "population": 40_000}
    assert plan_of(tiny_config(**gpu, deployment__lease_pairs=0), 3456).lease_units == 3455
    assert plan_of(tiny_config(**gpu, deployment__lease_pairs=0)).lease_units == 8445
    assert plan_of(tiny_config(**gpu, deployment__lease_pairs=15), 3456).lease_units == 15
    assert plan_of(tiny_config(population=40_000, deployment__lease_pairs=0)).lease_units < 8445
