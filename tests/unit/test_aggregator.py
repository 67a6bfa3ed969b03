"""The canonical parameters follow the commits, in order, in their own thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from es_service import votes
from es_service.aggregator import Aggregator, Applied, Canonical, Evaluated, HeldOut
from es_service.algorithms.eggroll import Eggroll, EggrollConfig
from es_service.messages import Commit
from es_service.models import egg
from es_service.shared import SharedParameters, read_shared
from workers.ops.reference import ReferenceOps

LAYOUT = egg.layout(16, 1)
OPS = ReferenceOps()
RULE = Eggroll(EggrollConfig(), LAYOUT, 10, seed=1)


def commit(generation):
    ballot = np.random.default_rng(generation).integers(-1, 2, 5, np.int8)
    return Commit(generation, 2, votes.pack(ballot))


@pytest.fixture
def make(tmp_path):
    made = []

    def make(after=lambda canonical: None):
        parameters_P = egg.initial_parameters(LAYOUT, 1)
        start = Canonical(0, parameters_P, OPS.digest(LAYOUT, parameters_P))
        made.append(Aggregator(RULE, LAYOUT, OPS, start, after, SharedParameters(tmp_path, LAYOUT.size)))
        return made[-1]

    yield make
    for aggregator in made:
        aggregator.close()


def test_commits_are_applied_in_order_and_told_once(make):
    aggregator = make(lambda canonical: HeldOut(canonical.generation / 2) if canonical.generation % 2 else None)
    start = aggregator.canonical
    parameters_P, kept = start.parameters_P.copy(), start.parameters_P.copy()
    for generation in range(4):
        aggregator.submit(commit(generation))
    news = aggregator.close()
    assert [item for item in news if isinstance(item, Evaluated)] == [
        Evaluated(1, HeldOut(0.5)),
        Evaluated(3, HeldOut(1.5)),
    ]
    applied = [item for item in news if isinstance(item, Applied)]
    assert [item.canonical.generation for item in applied] == [1, 2, 3, 4]
    for generation, item in enumerate(applied):
        c = commit(generation)
        assert item.moved == RULE.update(OPS, parameters_P, generation, c.threshold, c.record)
        assert np.array_equal(item.canonical.parameters_P, parameters_P)
        assert item.canonical.digest == OPS.digest(LAYOUT, parameters_P)
    assert aggregator.canonical is applied[-1].canonical
    assert np.array_equal(start.parameters_P, kept), "canonical parameters that were handed out are never written to"
    assert aggregator.take() == []
    assert aggregator.close() == []


def test_take_waits_for_the_first_and_evaluation_holds_up_nobody(make):
    gate = threading.Event()
    aggregator = make(lambda canonical: gate.wait(20) and HeldOut(2.5))
    assert aggregator.take(0.01) == []
    aggregator.submit(commit(0))
    (applied,) = aggregator.take(20)
    assert applied.canonical.generation == aggregator.canonical.generation == 1
    gate.set()
    assert aggregator.take(20) == [Evaluated(1, HeldOut(2.5))]


def test_an_error_reaches_the_reader_and_ends_the_thread(make):
    def full(canonical):
        raise OSError("disk full")

    aggregator = make(full)
    aggregator.submit(commit(0))
    aggregator.submit(commit(1))
    applied, error = aggregator.close()
    assert applied.canonical.generation == 1
    assert isinstance(error, OSError)
    assert str(error) == "disk full"


@pytest.mark.parametrize("generation", [1, 7])
def test_commits_out_of_order_are_a_bug(make, generation):
    aggregator = make()
    aggregator.submit(commit(generation))
    (error,) = aggregator.close()
    assert isinstance(error, AssertionError)
    assert aggregator.canonical.generation == 0


def test_the_newest_two_generations_can_be_read_by_others(make):
    aggregator = make()
    path, found = aggregator.shared.path, {0: aggregator.canonical.parameters_P}
    for generation in range(3):
        aggregator.submit(commit(generation))
        found[generation + 1] = aggregator.take(20)[0].canonical.parameters_P
        for g in (generation, generation + 1):
            assert np.array_equal(read_shared(path, g, LAYOUT.size), found[g])
    aggregator.close()
    assert not path.exists()
    with pytest.raises(OSError, match="No such file"):
        read_shared(path, 3, LAYOUT.size)


def test_runs_do_not_share_memory_with_each_other(tmp_path):
    first, second = (SharedParameters(tmp_path / name, 8) for name in ("a", "b"))
    first.publish(0, np.ones(8, np.int8))
    assert not read_shared(second.path, 0, 8).any()
    first.close()
    second.close()
    second.close()
