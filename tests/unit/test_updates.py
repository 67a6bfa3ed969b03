"""Updates in slices: the same bits as a whole update, and what happens when workers leave, lie or are few."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from es_service import votes
from es_service.algorithms.eggroll import Eggroll, EggrollConfig
from es_service.config import resolve
from es_service.errors import MessageError, WrongStepError
from es_service.messages import Commit, SliceResult, decode
from es_service.models import egg
from es_service.pools import HEAD
from es_service.updater import Updater
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
        update.returned(name, index, answer(index))
    assert update.step == STEP
    assert update.dispute is None
    assert update.assign(["d"]) == []


def test_one_worker_is_not_enough():
    update = SlicedUpdate(3, PARTS)
    assert len(update.assign(["a"])) == len(PARTS)
    for index in range(len(PARTS)):
        update.returned("a", index, answer(index))
    assert update.stuck
    assert update.assign(["a"]) == []


def test_two_that_differ_settle_nothing_and_no_third_is_asked():
    update = SlicedUpdate(3, PARTS[:1])
    assert set(update.assign(["a", "b"])) == {("a", 0), ("b", 0)}
    update.returned("a", 0, answer(0, lie=1))
    assert (update.dispute, update.stuck) == (None, False)
    update.returned("b", 0, answer(0))
    assert update.dispute == (0, {"a": answer(0, lie=1), "b": answer(0)})
    assert update.step is None
    assert update.assign(["c", "d"]) == []


def test_what_a_worker_made_that_is_wrong_does_not_count():
    update = SlicedUpdate(3, PARTS)
    for name, index in update.assign(["a", "b"]):
        if index or name == "a":
            update.returned(name, index, answer(index))
    update.withdraw(lambda name: name == "b")
    assert update.step is None
    again = update.assign(["c"])
    assert again == [("c", index) for index in range(len(PARTS))]
    for name, index in again:
        update.returned(name, index, answer(index))
    assert update.step == STEP
    with pytest.raises(MessageError):
        update.returned("b", 0, answer(0))


def test_what_nobody_asked_for_and_what_is_no_slice_are_refused():
    update = SlicedUpdate(3, PARTS)
    update.assign(["a", "b"])
    for worker, index, payload in (("x", 0, answer(0)), ("a", 99, answer(0)), ("a", 0, b"short")):
        with pytest.raises(MessageError):
            update.returned(worker, index, payload)
    update.returned("a", 0, answer(0))
    update.returned("a", 0, answer(0, lie=1))
    assert update.dispute is None, "a second answer does not count"


@pytest.mark.parametrize("seed", range(30))
def test_workers_leave_and_are_found_wrong(seed):
    rng = random.Random(seed)
    update, names, held = SlicedUpdate(3, PARTS), [f"w{n}" for n in range(8)], []
    turns, wrong = 0, set()
    while update.step is None:
        turns += 1
        assert turns < 1000
        held += update.assign(names)
        assert held or update.stuck
        if rng.random() < 0.1:
            gone = rng.choice(names)
            names = [name for name in names if name != gone] + [f"new-{turns}"]
            held = [(name, index) for name, index in held if name != gone]
            if rng.random() < 0.5:
                update.left(gone)
            else:
                wrong.add(gone)
                update.withdraw(wrong.__contains__)
        elif held:
            name, index = held.pop(rng.randrange(len(held)))
            update.returned(name, index, answer(index))
    assert update.step == STEP


def test_who_shares_a_slice_and_which_one_the_head_makes_too_is_drawn():
    pairs, drawn = set(), set()
    for seed in range(200):
        update = SlicedUpdate(3, PARTS, random.Random(seed))
        given = update.assign("abcd")
        pairs.add(frozenset(name for name, index in given if index == 0))
        for name, index in given:
            update.returned(name, index, answer(index))
        index, answers = update.drawn()
        assert answers == {name: answer(index) for name, given_index in given if given_index == index}
        drawn.add(index)
    assert pairs == {frozenset(pair) for pair in ("ab", "bc", "cd", "ad", "ac", "bd")}
    assert drawn == set(range(len(PARTS)))


class Sent:
    """Stands in for the pool: keeps what is sent."""

    def __init__(self):
        self.orders, self.checks, self.wrong = [], [], set()

    def broadcast(self, data):
        return data

    def send(self, worker, data, parts=(), size=0):
        message = decode(b"".join((data, *parts)))
        (self.checks if worker == HEAD else self.orders).append((worker, message))


def updater_that(slices):
    config = resolve({
        "population": 60, "seed": 5, "model": {"kind": "egg", "width": 32, "layers": 2}, "data": {"kind": "stdlib"},
        "feeding": {"kind": "members_per_sequence", "members": 4},
        "deployment": {"sliced_updates": slices},
    })  # fmt: skip
    sent = Sent()
    return Updater(config, sent, sent.send, sent.wrong.__contains__), sent


@pytest.fixture
def updater():
    return updater_that("always")


def made(updater, sent, now=0.0, idle=("a", "b", "c")):
    """Everybody answers; the commit that follows."""
    for worker, order in sent.orders:
        updater.answered(worker, SliceResult(order.run, order.generation, order.index, answer(order.index)))
    sent.orders.clear()
    return updater.take(idle, now)


def commit(generation):
    return Commit(generation, 20, bytes(votes.packed_size(30)))


def test_slices_that_take_too_long_are_not_tried_again_for_a_while(updater):
    """After 1, 2, 4, ... whole updates; a joined step forgets it."""
    updater, sent = updater
    tried = []
    for generation in range(12):
        if updater.begin(commit(generation), ["a", "b"], now=0.0):
            tried.append(generation)
            assert updater.take([], now=100.0) == commit(generation), "the votes"
    assert tried == [0, 2, 5, 10]
    sent.orders.clear()
    generation = 12
    while not updater.begin(commit(generation), ["a", "b"], now=0.0):
        generation += 1
    assert generation == 10 + 8 + 1
    assert made(updater, sent).is_step
    assert updater.begin(commit(generation + 1), ["a", "b"], now=0.0)
    assert updater.take([], now=100.0) == commit(generation + 1)
    assert not updater.begin(commit(generation + 2), ["a", "b"], now=0.0)
    assert updater.begin(commit(generation + 3), ["a", "b"], now=0.0)


def test_the_head_makes_one_slice_at_a_time_too(updater):
    updater, sent = updater
    for generation in range(3):
        assert updater.begin(commit(generation), ["a", "b"], now=0.0)
        assert made(updater, sent).is_step
    ((_, order),) = sent.checks
    assert (order.generation, order.record) == (0, commit(0).record)
    right = SliceResult(order.run, 0, order.index, answer(order.index))
    assert updater.answered(HEAD, right) == []
    assert updater.begin(commit(3), ["a", "b"], now=0.0)
    made(updater, sent)
    wrong = replace(right, generation=3, index=sent.checks[1][1].index, payload=b"other")
    with pytest.raises(WrongStepError, match=r"generation 3: (a and b|b and a) made the same wrong slice"):
        updater.answered(HEAD, wrong)


def modes(updater, sent, workers, whole, sliced, generations, between=1.0):
    """Whether each of some generations was updated in slices, where that takes `sliced` seconds, and whole `whole`."""
    now, found = 0.0, []
    for generation in range(generations):
        now += between
        found.append(updater.begin(commit(generation), workers, now))
        if found[-1]:
            assert made(updater, sent, now + sliced).is_step
            now += sliced
        else:
            updater.whole_seconds = whole
    return found


def test_slices_that_are_slower_are_not_tried_again_for_a_while():
    few = list("abc")
    assert modes(*updater_that("auto"), few, whole=0.5, sliced=0.3, generations=5) == [False, True, True, True, True]
    slower = modes(*updater_that("auto"), few, whole=0.5, sliced=0.6, generations=12)
    assert [generation for generation, sliced in enumerate(slower) if sliced] == [1, 3, 6, 11]
    updater, sent = updater_that("auto")
    assert modes(updater, sent, few, whole=0.5, sliced=0.6, generations=3) == [False, True, False]
    assert modes(updater, sent, few, whole=0.5, sliced=0.3, generations=3) == [True, True, True], "it was a hiccup"


def test_slices_are_not_tried_where_little_can_be_gained():
    few = list("abc")
    assert not any(modes(*updater_that("auto"), few, whole=0.1, sliced=0.0, generations=5))
    assert not any(modes(*updater_that("auto"), few, whole=0.5, sliced=0.0, generations=5, between=20.0))
    assert not any(modes(*updater_that("auto"), few[:1], whole=9.0, sliced=0.0, generations=5))
    assert not any(modes(*updater_that("never"), few, whole=9.0, sliced=0.0, generations=5))
    assert all(modes(*updater_that("always"), few, whole=0.1, sliced=9.0, generations=5))


def test_where_two_differ_the_votes_go_out_and_the_head_finds_who_is_wrong(updater):
    updater, sent = updater
    assert updater.begin(commit(0), ["a", "b"], now=0.0)
    for worker, order in sent.orders:
        lie = int(worker == "a" and order.index == 2)
        updater.answered(worker, SliceResult(order.run, 0, order.index, answer(order.index, lie)))
    assert updater.take([], now=0.0) == commit(0)
    ((_, order),) = sent.checks
    assert (order.generation, order.index) == (0, 2)
    assert updater.checking
    assert updater.answered(HEAD, SliceResult(order.run, 0, 2, answer(2))) == ["a"]
    assert not updater.checking


def test_what_a_worker_made_before_it_was_found_wrong_is_made_again(updater):
    updater, sent = updater
    assert updater.begin(commit(0), ["a", "b"], now=0.0)
    sent.wrong.add("a")
    assert made(updater, sent, idle=("b", "c")) is None, "its half is missing"
    assert {worker for worker, _ in sent.orders} == {"c"}
    assert made(updater, sent, idle=("b", "c")).is_step
