"""The canonical parameters follow the commits, in order, in their own thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from es_service import votes
from es_service.aggregator import Aggregator, Canonical
from es_service.algorithms.eggroll import Eggroll, EggrollConfig
from es_service.messages import Commit
from es_service.models import egg
from workers.ops.reference import ReferenceOps

LAYOUT = egg.layout(16, 1)
OPS = ReferenceOps()
RULE = Eggroll(EggrollConfig(), LAYOUT, 10, seed=1)


def commit(generation):
    ballot = np.random.default_rng(generation).integers(-1, 2, 5, np.int8)
    return Commit(generation, 2, votes.pack(ballot))


def make(after=lambda canonical: None):
    parameters_P = egg.initial_parameters(LAYOUT, 1)
    return Aggregator(RULE, LAYOUT, OPS, Canonical(0, parameters_P, OPS.digest(LAYOUT, parameters_P)), after)


def test_commits_are_applied_in_order_and_handed_out_once():
    aggregator = make(lambda canonical: canonical.generation / 2)
    start = aggregator.canonical
    parameters_P, kept = start.parameters_P.copy(), start.parameters_P.copy()
    for generation in range(4):
        aggregator.submit(commit(generation))
    applied = aggregator.close()
    assert [a.canonical.generation for a in applied] == [1, 2, 3, 4]
    assert [a.bits_per_byte for a in applied] == [0.5, 1.0, 1.5, 2.0]
    for generation, a in enumerate(applied):
        c = commit(generation)
        assert a.moved == RULE.update(OPS, parameters_P, generation, c.threshold, c.record)
        assert np.array_equal(a.canonical.parameters_P, parameters_P)
        assert a.canonical.digest == OPS.digest(LAYOUT, parameters_P)
        assert a.error is None
    assert aggregator.canonical is applied[-1].canonical
    assert np.array_equal(start.parameters_P, kept), "canonical parameters that were handed out are never written to"
    assert aggregator.take() == []
    assert aggregator.close() == []


def test_take_waits_for_the_first():
    gate = threading.Event()
    aggregator = make(lambda canonical: gate.wait(10) and None)
    assert aggregator.take(0.01) == []
    aggregator.submit(commit(0))
    assert aggregator.take(0.01) == []
    assert aggregator.canonical.generation <= 1
    gate.set()
    assert [a.canonical.generation for a in aggregator.take(10)] == [1]
    aggregator.close()


def test_an_error_reaches_the_reader_and_ends_the_thread():
    def full(canonical):
        raise OSError("disk full")

    aggregator = make(full)
    aggregator.submit(commit(0))
    aggregator.submit(commit(1))
    (applied,) = aggregator.close()
    assert isinstance(applied.error, OSError)
    assert str(applied.error) == "disk full"


@pytest.mark.parametrize("generation", [1, 7])
def test_commits_out_of_order_are_a_bug(generation):
    aggregator = make()
    aggregator.submit(commit(generation))
    (applied,) = aggregator.close()
    assert isinstance(applied.error, AssertionError)
    assert aggregator.canonical.generation == 0
