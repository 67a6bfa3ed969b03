"""Updates in slices: the same bits as a whole update, and what happens when workers leave, lie or are few."""

from __future__ import annotations

import random

import numpy as np
import pytest

from es_service import votes
from es_service.algorithms.eggroll import Eggroll, EggrollConfig
from es_service.errors import MessageError
from es_service.messages import Commit
from es_service.models import egg
from es_service.updates import SlicedUpdate, apply_commit, slices
from workers import ops as backends

LAYOUT = egg.layout(32, 2)
PARTS = slices(LAYOUT)


def test_slices_hold_every_tensor_once_and_none_is_larger_than_the_largest_tensor():
    for layout in (LAYOUT, egg.layout(16, 1), egg.layout(256, 6)):
        parts = slices(layout)
        found = sorted((t.index, t.name, t.shape) for part in parts for t in part.tensors)
        assert found == [(t.index, t.name, t.shape) for t in layout.tensors]
        largest = max(t.size for t in layout.tensors)
        assert all(part.size <= largest for part in parts)
        assert len(parts) <= 1 + 2 * layout.size // largest
    assert len(parts) == 19


@pytest.mark.parametrize("backend", [name for name in backends.BACKENDS if not backends.why_not(name)])
@pytest.mark.parametrize("config", [{}, {"rank": 2}, {"sign_noise": True}])
def test_slices_join_to_the_whole_update(backend, config):
    ops, rng = backends.resolve(backend, 1)[0], np.random.default_rng(3)
    algorithm = Eggroll(EggrollConfig(**config), LAYOUT, 60, seed=5)
    record = votes.pack(rng.integers(-1, 2, 30).astype(np.int8))
    start_P = rng.choice(np.array([-127, -126, 0, 5, 126, 127], np.int8), LAYOUT.size)
    whole_P, joined_P, payloads = start_P.copy(), start_P.copy(), []
    moved = apply_commit(algorithm, ops, LAYOUT, whole_P, Commit(7, 20, record))
    for part in PARTS:
        moves = np.zeros(part.size, np.int8)
        algorithm.of_tensors(part).update(ops, moves, 7, 20, record)
        payloads.append(votes.pack(moves))
    step = Commit(7, 20, b"".join(payloads), is_step=True)
    assert apply_commit(algorithm, ops, LAYOUT, joined_P, step) == moved
    assert 0 < moved < LAYOUT.size
    np.testing.assert_array_equal(joined_P, whole_P)
    for wrong in (step.record[:-1], step.record + b"\0"):
        with pytest.raises(MessageError):
            apply_commit(algorithm, ops, LAYOUT, joined_P, Commit(7, 20, wrong, is_step=True))


def answer(index, lie=0):
    moves = np.zeros(PARTS[index].size, np.int8)
    moves[index], moves[-1] = 1, lie
    return votes.pack(moves)


STEP = b"".join(answer(index) for index in range(len(PARTS)))


def test_two_workers_that_agree_make_a_slice():
    update = SlicedUpdate(3, PARTS)
    given = update.assign(["a", "b", "c"])
    assert len(given) == len(set(given)) == 2 * len(PARTS)
    counts = [sum(name == worker for name, _ in given) for worker in "abc"]
    assert max(counts) - min(counts) <= 2, "shared out evenly"
    for name, index in given:
        assert update.step is None
        assert update.returned(name, index, answer(index)) == []
    assert update.step == STEP
    assert update.assign(["d"]) == []


def test_one_worker_is_not_enough():
    update = SlicedUpdate(3, PARTS)
    assert len(update.assign(["a"])) == len(PARTS)
    for index in range(len(PARTS)):
        update.returned("a", index, answer(index))
    assert update.stuck
    assert update.assign(["a"]) == []


def test_a_liar_is_outvoted_and_named():
    update = SlicedUpdate(3, PARTS[:1])
    assert update.assign(["a", "b"]) == [("a", 0), ("b", 0)]
    assert update.returned("a", 0, answer(0, lie=1)) == []
    assert not update.stuck
    assert update.returned("b", 0, answer(0)) == []
    assert update.stuck
    assert update.assign(["a", "b", "c", "d"]) == [("c", 0)], "not those who have answered"
    assert update.returned("c", 0, answer(0)) == ["a"]
    assert update.step == answer(0)


def test_what_nobody_asked_for_and_what_is_no_slice_are_refused():
    update = SlicedUpdate(3, PARTS)
    update.assign(["a", "b"])
    for worker, index, payload in (("x", 0, answer(0)), ("a", 99, answer(0)), ("a", 0, b"short")):
        with pytest.raises(MessageError):
            update.returned(worker, index, payload)
    update.returned("a", 0, answer(0))
    assert update.returned("a", 0, answer(0, lie=1)) == [], "a second answer does not count"


@pytest.mark.parametrize("seed", range(30))
def test_workers_leave_and_lie(seed):
    """Liars agree with nobody, not even with each other."""
    rng = random.Random(seed)
    update, names, held = SlicedUpdate(3, PARTS), [f"w{n}" for n in range(8)], []
    liars, blamed, turns = set(rng.sample(names, 2)), set(), 0
    while update.step is None:
        turns += 1
        assert turns < 1000
        held += update.assign(names)
        assert held or update.stuck
        if rng.random() < 0.1:
            gone = rng.choice(names)
            names = [name for name in names if name != gone] + [f"new-{turns}"]
            update.left(gone)
            held = [(name, index) for name, index in held if name != gone]
        elif held:
            name, index = held.pop(rng.randrange(len(held)))
            blamed.update(update.returned(name, index, answer(index, lie=-1 if name == max(liars) else name in liars)))
    assert update.step == STEP
    assert blamed <= liars
