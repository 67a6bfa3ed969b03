"""The state machine of a run: examples, a hypothesis machine and a random walk against the toy world."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from machine_world import CHARACTERS, SECRET, World, random_step, random_world

from es_service.events import (
    Aggregated,
    Assign,
    Close,
    Committed,
    Fell,
    Finish,
    Joined,
    Left,
    Notice,
    Pause,
    Returned,
    SendRestore,
    Stop,
    Tick,
)  # fmt: skip
from es_service.generation import Machine, Policy
from es_service.messages import Lease, LeaseResult
from es_service.plan import Plan

RIGHT, WRONG = 7, 9


def lease(generation, index, attempt=0):
    return Lease(generation, 5 * index, 5, attempt)


def result(generation, index, digest=RIGHT, payload=b"v", attempt=0, seconds=1.0):
    return LeaseResult(0, lease(generation, index, attempt), 0, 0, 0, digest, 0, seconds, payload)


def machine(leases=2, generation=0, **policy):
    plan = Plan.of(5 * leases, 5)
    return Machine(lambda _: plan, Policy(**({"goal": 10} | policy)), generation, generation, RIGHT)


def feed(machine, *events):
    """The commands of the last event."""
    commands = []
    for event in events:
        commands = machine.handle(event)
    return commands


# One generation.


def test_a_joiner_is_restored_before_it_is_given_leases():
    assert machine().handle(Joined("a")) == [SendRestore("a"), Assign("a", lease(0, 0)), Assign("a", lease(0, 1))]


def test_leases_go_to_the_worker_with_the_fewest():
    m = machine(leases=3, depth=2)
    feed(m, Joined("a"))
    assert feed(m, Joined("b")) == [SendRestore("b"), Assign("b", lease(0, 2))]


def test_the_last_result_closes_with_all_results_in_unit_order():
    m = machine(leases=3, depth=3)
    late, early, middle = (result(0, i) for i in (2, 0, 1))
    assert feed(m, Joined("a"), Returned("a", late)) == []
    assert feed(m, Returned("a", early)) == []
    assert feed(m, Returned("a", middle)) == [Close(0, (early, middle, late))]
    assert feed(m, Committed(0)) == [Assign("a", lease(1, i)) for i in range(3)]


def test_nothing_is_given_out_between_close_and_commit():
    m = machine(leases=1)
    feed(m, Joined("a"), Returned("a", result(0, 0)))
    assert feed(m, Joined("b")) == [SendRestore("b")]
    assert feed(m, Tick(1.0)) == []
    assert feed(m, Aggregated(0, RIGHT)) == []


def test_the_goal_ends_the_run():
    m = machine(leases=1, goal=1)
    assert feed(m, Joined("a"), Returned("a", result(0, 0)), Committed(0)) == [Finish(1, "goal")]
    assert feed(m, Joined("b")) == []


def test_stop_ends_an_open_generation_at_once_and_a_closing_one_at_its_commit():
    assert feed(machine(), Joined("a"), Stop("enough")) == [Finish(0, "enough")]
    m = machine(leases=1)
    assert feed(m, Joined("a"), Returned("a", result(0, 0)), Stop("enough")) == []
    assert feed(m, Committed(0)) == [Finish(1, "enough")]


def test_a_commit_that_was_not_asked_for_is_a_bug_of_the_shell():
    with pytest.raises(AssertionError, match="commit of generation 0, while 0 is open"):
        machine().handle(Committed(0))


# Late, twice, out of order.


def test_a_second_result_is_compared_and_dropped():
    m = machine()
    feed(m, Joined("a"), Returned("a", result(0, 0)))
    assert feed(m, Returned("b", result(0, 0))) == [Notice("duplicate", "b", 0, "lease 0")]
    assert feed(m, Returned("b", result(0, 0, payload=b"w"))) == [Notice("mismatch", "b", 0, "lease 0")]
    (close,) = feed(m, Returned("a", result(0, 1)))
    assert close.results[0].payload == b"v"


def test_a_result_of_an_older_generation_is_late_and_frees_its_worker():
    m = machine(leases=1, depth=1)
    feed(m, Joined("a"), Joined("b"), Returned("b", result(0, 0)), Committed(0))
    assert feed(m, Joined("c")) == [SendRestore("c")]  # b has the lease of generation 1
    feed(m, Left("b"))
    assert m.in_flight == 2  # a still works on generation 0
    assert feed(m, Returned("a", result(0, 0))) == [Notice("late", "a", 0)]
    assert m.in_flight == 1


def test_a_result_for_a_lease_that_was_taken_back_counts_and_ends_the_search():
    m = machine(leases=1)
    feed(m, Joined("a"), Left("a"))
    assert feed(m, Returned("a", result(0, 0))) == [Close(0, (result(0, 0),))]
    assert feed(m, Committed(0), Joined("b")) == [SendRestore("b"), Assign("b", lease(1, 0))]


# Loss.


def test_leases_of_a_worker_that_left_go_to_others():
    m = machine(depth=2)
    feed(m, Joined("a"), Joined("b"))
    assert feed(m, Left("a")) == [Assign("b", lease(0, 0, 1)), Assign("b", lease(0, 1, 1))]


def test_a_lease_with_another_holder_is_not_given_out_again_when_one_leaves():
    m = machine(leases=1)
    feed(m, Tick(0.0), Joined("a"), Joined("b"), Tick(601.0))
    assert feed(m, Left("a")) == []
    assert feed(m, Joined("c")) == [SendRestore("c")]
    assert feed(m, Left("b")) == [Assign("c", lease(0, 0, 2))]


def test_a_name_that_joins_again_gives_its_leases_back():
    m = machine(leases=1)
    feed(m, Joined("a"))
    assert feed(m, Joined("a")) == [SendRestore("a"), Assign("a", lease(0, 0, 1))]


def test_a_worker_that_is_behind_is_restored_and_its_lease_given_out_again():
    m = machine(leases=1)
    feed(m, Joined("a"))
    fell = Fell("a", lease(0, 0), "behind")
    assert feed(m, fell) == [Notice("fell", "a", 0, "behind"), SendRestore("a"), Assign("a", lease(0, 0, 1))]
    feed(m, Joined("b"))
    assert feed(m, fell)[-1] == Assign("b", lease(0, 0, 2)), "the one that fell is the last choice"


def test_a_worker_that_fell_and_recovered_is_chosen_again():
    m = machine(leases=1, depth=1)
    feed(m, Joined("a"), Joined("b"), Fell("a", lease(0, 0), ""))  # now b has it
    feed(m, Returned("a", result(0, 0)), Committed(0), Aggregated(1, RIGHT))
    assert m.in_flight == 2  # b is busy with the old one, so a has the new one
    feed(m, Returned("a", result(1, 0)), Returned("b", result(0, 0)))
    assert feed(m, Committed(1)) == [Assign("a", lease(2, 0))]


@pytest.mark.parametrize(
    "bad", [Lease(0, 0, 4, 0), Lease(0, 1, 5, 0), Lease(0, 10, 5, 0), Lease(0, 5000, 5, 0), Lease(1, 0, 5, 0)]
)
def test_an_answer_to_no_lease_costs_a_worker_all_it_holds(bad):
    for answer in (
        Returned("a", LeaseResult(0, bad, 0, 0, 0, RIGHT, 0, 1.0, b"")),
        Fell("a", bad, "behind"),
        Fell("a", None, "not a message"),
    ):
        m = machine()
        feed(m, Joined("a"))
        notice, restore, *assigned = m.handle(answer)
        assert (notice.kind, restore) == ("malformed", SendRestore("a"))
        assert assigned == [Assign("a", lease(0, 0, 1)), Assign("a", lease(0, 1, 1))]


def test_a_malformed_answer_of_a_worker_that_left_does_not_bring_it_back():
    m = machine()
    assert feed(m, Joined("a"), Left("a"), Fell("a", None, "noise")) == [Notice("malformed", "a", 0, "noise")]
    assert m.roster.workers == {}


@pytest.mark.parametrize("answer", [Fell("a", None, "noise"), Fell("a", lease(0, 0), "behind")])
def test_a_worker_whose_answers_are_no_results_is_out_after_three_times_its_depth(answer):
    m = machine(depth=2)
    feed(m, Joined("a"), Joined("b"), *[answer] * 5)
    feed(m, Returned("a", result(0, 0)))
    assert all(SendRestore("a") in feed(m, answer) for _ in range(5)), "its result was one"
    notice = feed(m, answer)[1]
    assert (notice.kind, notice.worker) == ("quarantined", "a")
    assert notice.detail.startswith(f"6 answers in a row were of no use, the last: {answer.reason}; committed")
    assert {c.worker for c in feed(m, answer) if isinstance(c, SendRestore | Assign)} <= {"b"}


# Stragglers.


def test_an_overdue_lease_is_also_given_to_an_idle_worker():
    m = machine(leases=1)
    feed(m, Tick(100.0), Joined("a"), Joined("b"))
    assert feed(m, Tick(700.0)) == []
    assert feed(m, Tick(700.1)) == [Notice("hedged", "a", 0, "lease 0"), Assign("b", lease(0, 0, 1))]
    assert feed(m, Tick(710.0)) == []


def test_the_deadline_follows_the_median_time_that_leases_were_held():
    m = machine(leases=4, depth=4, hedge_factor=3.0, hedge_floor=1.0)
    feed(m, Tick(0.0), Joined("a"), Tick(2.0))
    for index in range(3):
        feed(m, Returned("a", result(0, index)))
    feed(m, Joined("b"))
    assert feed(m, Tick(6.0)) == []
    assert feed(m, Tick(6.1)) == [Notice("hedged", "a", 0, "lease 3"), Assign("b", lease(0, 3, 1))]


def test_a_clock_that_starts_late_makes_nothing_overdue():
    m = machine(leases=1)
    feed(m, Joined("a"), Joined("b"))
    assert feed(m, Tick(1e9)) == []
    assert feed(m, Tick(1e9 + 601)) == [Notice("hedged", "a", 0, "lease 0"), Assign("b", lease(0, 0, 1))]


def test_when_every_holder_is_silent_a_third_worker_gets_the_lease():
    m = machine(leases=1)
    feed(m, Tick(0.0), Joined("a"), Joined("b"), Tick(601.0), Joined("c"))
    assert feed(m, Tick(1000.0)) == []
    assert feed(m, Tick(1202.0))[-1] == Assign("c", lease(0, 0, 2))


def test_nobody_idle_nothing_hedged():
    m = machine(leases=2, depth=1)
    feed(m, Tick(0.0), Joined("a"), Joined("b"))
    assert feed(m, Tick(5000.0)) == []


def test_a_hedge_prefers_a_worker_without_faults():
    m = machine(leases=1)
    feed(m, Tick(0.0), Joined("a"), Joined("b"), Joined("c"), Fell("c", lease(0, 0), ""))
    assert feed(m, Tick(601.0))[-1] == Assign("b", lease(0, 0, 1))


# The aggregator.


def test_no_leases_beyond_max_lag():
    m = machine(leases=2, depth=1, max_lag=1)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0, 0)), Returned("b", result(0, 1)))
    assert feed(m, Committed(0)) == [Assign("a", lease(1, 0)), Assign("b", lease(1, 1))]
    assert feed(m, Returned("a", result(1, 0)), Returned("b", result(1, 1)), Committed(1)) == []
    assert feed(m, Tick(1e6)) == []
    assert feed(m, Aggregated(1, RIGHT)) == [Assign("a", lease(2, 0)), Assign("b", lease(2, 1))]


def test_a_lonely_worker_away_from_the_head_closes_nothing_that_the_aggregator_has_not_confirmed():
    m = machine(leases=1)
    feed(m, Joined("a"), Returned("a", result(0, 0)), Committed(0))
    assert feed(m, Returned("a", result(1, 0))) == []
    assert feed(m, Aggregated(1, RIGHT)) == [Close(1, (result(1, 0),))]
    feed(m, Committed(1))
    assert feed(m, Returned("a", result(2, 0, WRONG))) == []
    assert feed(m, Aggregated(2, RIGHT)) == [
        Notice("diverged", "a", 2, "lease 0"), SendRestore("a"), Assign("a", lease(2, 0, 1))
    ]  # fmt: skip


def test_a_worker_that_shares_the_canonical_parameters_waits_for_them():
    m = machine(leases=2, max_lag=2, depth=1)
    feed(m, Joined("a"), Joined("s", shares=True), Returned("a", result(0, 0)), Returned("s", result(0, 1)))
    assert feed(m, Committed(0)) == [Assign("a", lease(1, 0))]
    assert feed(m, Tick(0.0), Tick(1e4)) == []
    assert feed(m, Aggregated(1, RIGHT)) == [Assign("s", lease(1, 1))]


def test_a_worker_that_shares_goes_on_sharing_after_a_fault():
    m = machine(leases=1, depth=1)
    feed(m, Joined("s", shares=True), Fell("s", None, "noise"), Returned("s", result(0, 0)))
    assert feed(m, Committed(0)) == []
    assert feed(m, Aggregated(1, RIGHT)) == [Assign("s", lease(1, 0))]


def test_a_diverged_result_does_not_count_and_its_replica_is_rebuilt():
    m = machine(leases=1)
    feed(m, Joined("a"), Joined("b"))
    commands = feed(m, Returned("a", result(0, 0, WRONG)))
    assert commands == [Notice("diverged", "a", 0, "lease 0"), SendRestore("a"), Assign("b", lease(0, 0, 1))]
    assert feed(m, Returned("b", result(0, 0))) == [Close(0, (result(0, 0),))]


def test_disagreement_waits_for_the_aggregator_which_decides():
    m = machine(leases=2, depth=1)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0, 0)), Returned("b", result(0, 1)), Committed(0))
    feed(m, Returned("a", result(1, 0)))
    assert feed(m, Returned("b", result(1, 1, WRONG))) == []
    commands = feed(m, Aggregated(1, RIGHT))
    assert commands == [Notice("diverged", "b", 1, "lease 1"), SendRestore("b"), Assign("a", lease(1, 1, 1))]
    assert feed(m, Returned("a", result(1, 1))) == [Close(1, (result(1, 0), result(1, 1)))]


def test_a_lonely_diverged_worker_is_rebuilt():
    m = machine(leases=1)
    assert feed(m, Joined("a"), Returned("a", result(0, 0, WRONG))) == [
        Notice("diverged", "a", 0, "lease 0"), SendRestore("a"), Assign("a", lease(0, 0, 1))
    ]  # fmt: skip


def test_all_replicas_against_the_aggregator_pause_the_run():
    m = machine(leases=2, depth=1)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0, 0)), Returned("b", result(0, 1)), Committed(0))
    feed(m, Returned("a", result(1, 0, WRONG)), Returned("b", result(1, 1, WRONG)))  # agree, so it closes
    feed(m, Committed(1))
    (pause,) = feed(m, Aggregated(1, RIGHT))
    assert isinstance(pause, Pause)
    assert f"{WRONG:016x}" in pause.reason
    assert f"{RIGHT:016x}" in pause.reason
    assert feed(m, Tick(1.0)) == []


def test_all_replicas_against_a_prompt_aggregator_pause_the_run_too():
    m = machine(leases=2, depth=1)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0, 0, WRONG)))
    (pause,) = feed(m, Returned("b", result(0, 1, WRONG)))
    assert isinstance(pause, Pause)


def test_replicas_that_are_wrong_in_different_ways_are_rebuilt():
    m = machine(leases=2, depth=1)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0, 0, WRONG)))
    assert Pause not in map(type, feed(m, Returned("b", result(0, 1, WRONG + 1))))


def pair_that_voted_wrongly(**policy):
    """Two replicas that agree closed generation 1, which is not committed yet."""
    m = machine(leases=2, depth=1, **policy)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0, 0)), Returned("b", result(0, 1)), Committed(0))
    commands = feed(m, Returned("a", result(1, 0, WRONG)), Returned("b", result(1, 1, WRONG)))
    assert isinstance(commands[0], Close)
    return m


def test_a_digest_that_comes_between_close_and_commit_is_compared():
    m = pair_that_voted_wrongly()
    assert feed(m, Aggregated(1, RIGHT)) == []
    assert isinstance(feed(m, Committed(1))[0], Pause)


def test_digests_are_compared_after_the_end_too():
    m = pair_that_voted_wrongly(goal=2)
    assert feed(m, Committed(1)) == [Finish(2, "goal")]
    assert isinstance(feed(m, Aggregated(1, RIGHT))[0], Pause)


# Any interleaving.


class Interleaving(RuleBasedStateMachine):
    @initialize(
        units=st.integers(1, 24),
        goal=st.integers(1, 5),
        lag=st.integers(0, 3),
        depth=st.integers(1, 3),
        audits=st.sampled_from([0.0, 0.3, 1.0]),
    )
    def begin(self, units, goal, lag, depth, audits):
        policy = Policy(goal, lag, depth, 10.0, hedge_floor=0.5, audit_share=audits, audit_secret=SECRET)
        self.world = World(units, policy)
        self.world.join("good")

    def names(self):
        return sorted(self.world.workers) or ["nobody"]

    @rule(character=st.sampled_from(CHARACTERS), shares=st.booleans())
    @precondition(lambda self: len(self.world.workers) < 6)
    def join(self, character, shares):
        self.world.join(character, shares)

    @rule(pick=st.integers(0, 5))
    def leave(self, pick):
        self.world.leave(self.names()[pick % len(self.names())])

    @rule(pick=st.integers(0, 5))
    def warn(self, pick):
        self.world.warn(self.names()[pick % len(self.names())])

    @rule(pick=st.integers(0, 5))
    @precondition(lambda self: self.world.workers)
    def corrupt(self, pick):
        self.world.corrupt(self.names()[pick % len(self.names())])

    @rule(pick=st.integers(0, 5), count=st.integers(1, 4))
    @precondition(lambda self: self.world.workers)
    def work(self, pick, count):
        for _ in range(count):
            self.world.work(self.names()[pick % len(self.names())])

    @rule(pick=st.integers(0, 20), keep=st.booleans())
    @precondition(lambda self: self.world.transit)
    def deliver(self, pick, keep):
        self.world.deliver(pick, keep)

    @rule(seconds=st.sampled_from([0.0, 0.3, 1.0, 12.0]))
    def tick(self, seconds):
        self.world.tick(seconds)

    @rule()
    @precondition(lambda self: self.world.closing)
    def commit(self):
        self.world.commit()

    @rule()
    @precondition(lambda self: self.world.aggregated < self.world.generation)
    def aggregate(self):
        self.world.aggregate()

    @rule()
    @precondition(lambda self: self.world.generation > 2)
    def stop(self):
        self.world.stop()

    def teardown(self):
        if hasattr(self, "world"):
            self.world.drain()


TestInterleaving = Interleaving.TestCase
TestInterleaving.settings = settings(stateful_step_count=60)  # HYPOTHESIS_PROFILE=explore: up to 120,000 steps


@pytest.mark.parametrize("characters", [("good",), ("good", "mute", "behind", "malformed", "diverged"), CHARACTERS])
def test_a_random_walk_keeps_every_invariant_and_ends(characters):
    seeds, finished, steps, notices = 150, 0, 0, Counter()
    for seed in range(seeds):
        rng = random.Random(f"{characters} {seed}")
        world = random_world(rng)
        while not world.over and world.steps < 400:
            random_step(world, rng, characters)
        world.drain()
        finished += world.paused is None
        steps += world.steps
        notices += world.notices
    assert steps > 10_000
    assert notices.keys() >= {"late", "duplicate", "hedged"}
    if "diverged" in characters:
        assert notices.keys() >= {"fell", "malformed", "diverged"}
    if characters == CHARACTERS:
        assert notices["mismatch"]
    assert finished == seeds if characters == ("good",) else finished >= seeds // 4, (
        "the others paused: wrong replicas were alone while the aggregator was behind"
    )
