"""Audits: who is asked for a second opinion, who settles a dispute, and how soon a liar is found."""

from __future__ import annotations

import random
from collections import deque

import pytest

from es_service.events import (
    Aggregated,
    Assign,
    Close,
    Committed,
    Dismiss,
    Draining,
    Fell,
    Joined,
    Judge,
    Left,
    Notice,
    Outvoted,
    Pause,
    Returned,
    SendRestore,
    Tick,
)  # fmt: skip
from es_service.generation import Machine
from es_service.messages import Lease, LeaseResult
from es_service.plan import Plan
from es_service.policy import Policy
from es_service.pools import HEAD
from es_service.roster import Roster
from es_service.slots import Slot, equal, generations_to_find, is_audited

RIGHT = 7
QUARANTINED = "quarantined"


def lease(index, generation=0, attempt=0):
    return Lease(generation, 5 * index, 5, attempt)


def result(index=0, payload=b"v", generation=0, digest=RIGHT, score=0):
    return LeaseResult(0, lease(index, generation), score, 0, 0, digest, 0, 1.0, payload)


def machine(leases=1, share=1.0, **policy):
    plan = Plan.of(5 * leases, 5)
    rules = {"goal": 10, "audit_share": share, "audit_secret": b"secret", "depth": 1} | policy
    return Machine(lambda _: plan, Policy(**rules), 0, 0, RIGHT)


def feed(machine, *events):
    """The commands of the last event."""
    commands = []
    for event in events:
        commands = machine.handle(event)
    return commands


def kinds(commands):
    return [(c.kind, c.worker) for c in commands if isinstance(c, Notice)]


# One lease.


def slot(audited, *results):
    slot = Slot(0, audited)
    slot.results = dict(results)
    return slot.judge(equal)


def test_one_result_settles_a_lease_and_two_an_audited_one():
    assert slot(False).wanted == 1
    assert slot(False, ("a", result())).believed == ("a",)
    assert (slot(True, ("a", result())).believed, slot(True, ("a", result())).wanted) == ((), 1)
    assert slot(True, ("a", result()), ("b", result())).believed == ("a", "b")


def test_two_against_one():
    verdict = slot(False, ("a", result()), ("b", result(payload=b"w")))
    assert (verdict.believed, verdict.wrong, verdict.wanted, verdict.appeal) == ((), (), 1, False)
    verdict = slot(False, ("a", result()), ("b", result(payload=b"w")), ("c", result(payload=b"w")))
    assert (verdict.believed, verdict.wrong) == (("b", "c"), ("a",))


def test_three_opinions_need_the_head_which_is_believed_against_all():
    three = ("a", result()), ("b", result(payload=b"w")), ("c", result(payload=b"x"))
    assert slot(False, *three).appeal
    verdict = slot(False, *three, (HEAD, result(payload=b"x")))
    assert (verdict.believed, verdict.wrong) == (("c", HEAD), ("a", "b"))
    verdict = slot(True, ("a", result()), ("b", result()), (HEAD, result(payload=b"x")))
    assert (verdict.believed, verdict.wrong) == ((HEAD,), ("a", "b"))


def test_scores_are_part_of_the_answer():
    assert slot(False, ("a", result()), ("b", result(score=1))).believed == ()


def test_results_on_different_parameters_wait_for_the_aggregator():
    verdict = slot(True, ("a", result()), ("b", result(digest=8)))
    assert (verdict.believed, verdict.wrong, verdict.wanted) == ((), (), 0)


# A generation.


def test_an_audited_lease_goes_to_two_workers_and_closes_when_they_agree():
    m = machine()
    assert feed(m, Joined("a"))[1:] == [Assign("a", lease(0))]
    assert feed(m, Joined("b"))[1:] == [Assign("b", lease(0, attempt=1))]
    assert feed(m, Returned("a", result())) == []
    assert feed(m, Returned("b", result())) == [Notice("audited", "b", 0, "lease 0"), Close(0, (result(),))]


def test_a_third_worker_settles_a_dispute_and_the_liar_is_out():
    m = machine(leases=2, share=0.0, depth=2)
    feed(m, Tick(0.0), Joined("liar"), Returned("liar", result(0, b"lie")), Joined("a"), Joined("b"))
    # The liar still holds lease 1; a second opinion of lease 0 comes from a hedge.
    commands = feed(m, Returned("a", result(0)))
    assert kinds(commands) == [("mismatch", "a")]
    assert Assign("b", lease(0, attempt=1)) in commands
    commands = feed(m, Returned("b", result(0)))
    assert kinds(commands) == [("mismatch", "b"), (QUARANTINED, "liar")]
    assert Dismiss("liar") in commands, "another is wanted in its place"
    assert [c for c in commands if isinstance(c, Assign)] == [Assign("a", lease(1, attempt=1))], "what it held goes on"
    assert feed(m, Returned("liar", result(1, b"lie"))) == [Notice("late", "liar", 0, "lease 1, from quarantine")]
    assert feed(m, Returned("a", result(1))) == [Close(0, (result(0), result(1)))]
    feed(m, Committed(0))
    assert feed(m, Aggregated(1, RIGHT)) == []
    assert m.roster.states() == {"active": 2, "quarantined": 1}


def test_what_a_liar_sent_before_it_was_ended_does_not_count_when_it_arrives_later():
    m = machine(leases=2, share=0.0, depth=2)
    feed(m, Tick(0.0), Joined("liar"), Returned("liar", result(0, b"lie")), Joined("a"), Joined("b"))
    feed(m, Returned("a", result(0)), Returned("b", result(0)), Left("liar"))
    assert feed(m, Returned("liar", result(1, b"lie"))) == [Notice("late", "liar", 0, "lease 1, from quarantine")]
    assert feed(m, Returned("a", result(1))) == [Close(0, (result(0), result(1)))]


def test_other_leases_of_a_liar_in_the_open_generation_are_evaluated_again():
    m = machine(leases=3, share=0.0, depth=3)
    feed(m, Joined("liar"), Returned("liar", result(0, b"lie")), Returned("liar", result(1, b"plausible")))
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0)))
    commands = feed(m, Returned("b", result(0)))
    assert (QUARANTINED, "liar") in kinds(commands)
    given = {(c.lease.first_unit // 5) for c in commands if isinstance(c, Assign)}
    assert given == {1, 2}, "lease 1 was committed to by nobody else, lease 2 was still held"


def test_the_notice_names_the_committed_generations_that_a_liar_touched():
    m = machine(leases=2, share=0.0)
    feed(m, Joined("liar"), Joined("a"))
    for generation in range(2):
        feed(m, Returned("liar", result(0, b"lie", generation)), Returned("a", result(1, generation=generation)))
        feed(m, Committed(generation), Aggregated(generation + 1, RIGHT))
    feed(m, Returned("liar", result(0, b"lie", 2)), Joined("b"), Returned("a", result(0, generation=2)))
    (notice,) = [
        c for c in feed(m, Returned("b", result(0, generation=2))) if isinstance(c, Notice) and c.kind == QUARANTINED
    ]
    assert notice.worker == "liar"
    assert "committed generations with its votes: 0-1" in notice.detail


def test_the_notice_names_them_for_a_worker_that_is_gone_too():
    m = machine(leases=2, share=0.0)
    feed(m, Joined("liar"), Joined("a"), Returned("a", result(1)), Left("liar"), Returned("liar", result(0, b"lie")))
    feed(m, Committed(0), Aggregated(1, RIGHT), Joined("b"))
    feed(m, Returned("liar", result(0, b"lie", 1)), Returned("a", result(0, generation=1)))
    (notice,) = [
        c for c in feed(m, Returned("b", result(0, generation=1))) if isinstance(c, Notice) and c.kind == QUARANTINED
    ]
    assert notice.worker == "liar"
    assert notice.detail.endswith("committed generations with its votes: 0")


def test_a_worker_that_is_wrong_about_a_slice_while_the_generation_closes_is_out_and_the_votes_stay():
    m = machine(leases=2, share=0.0)
    feed(m, Joined("liar"), Joined("a"), Returned("liar", result(0)))
    (close,) = feed(m, Returned("a", result(1)))
    notice, dismiss = feed(m, Outvoted("liar", "its slice"))
    assert dismiss == Dismiss("liar")
    assert (notice.kind, notice.detail) == (QUARANTINED, "its slice; committed generations with its votes: 0")
    assert feed(m, Outvoted("liar", "its slice")) == []
    assert close == Close(0, (result(0), result(1)))
    assert [c.worker for c in feed(m, Committed(0))] == ["a"], "nothing for the liar"
    assert feed(m, Outvoted("a", "its slice"))[-1] == Dismiss("a")
    (pause,) = feed(m, Tick(0.0), Tick(601.0))
    assert pause.reason.startswith("generation 1: every worker is quarantined (liar, a); the last was a (its slice; ")


# Where there are not enough workers.


def test_one_worker_is_audited_by_the_head():
    m = machine()
    feed(m, Joined("a"))
    assert feed(m, Returned("a", result())) == [Judge(lease(0, attempt=1))]
    assert feed(m, Returned(HEAD, result())) == [Notice("audited", HEAD, 0, "lease 0"), Close(0, (result(),))]


def test_two_workers_that_differ_are_settled_by_the_head():
    m = machine()
    feed(m, Joined("a"), Joined("liar"), Returned("a", result()))
    commands = feed(m, Returned("liar", result(payload=b"lie")))
    assert commands == [Notice("mismatch", "liar", 0, "lease 0"), Judge(lease(0, attempt=2))]
    commands = feed(m, Returned(HEAD, result()))
    assert kinds(commands) == [("mismatch", HEAD), (QUARANTINED, "liar")]
    assert commands[-1] == Close(0, (result(),))


def test_the_head_waits_until_the_canonical_parameters_are_there():
    m = machine(leases=2, share=0.0)
    feed(m, Joined("a"), Joined("b"), Returned("a", result(0)), Returned("b", result(1)), Committed(0))
    feed(m, Returned("a", result(0, generation=1)))
    assert Judge not in map(type, feed(m, Returned("b", result(0, b"lie", 1))))
    assert Judge(lease(0, 1, 1)) in feed(m, Aggregated(1, RIGHT))


def test_a_second_opinion_that_everybody_fails_to_give_is_the_heads():
    m = machine(most_faults=100)
    feed(m, Joined("a"), Joined("behind"), Returned("a", result()))
    for attempt in range(1, 20):
        commands = feed(m, Fell("behind", lease(0, attempt=attempt), "behind"))
        if Judge in map(type, commands):
            break
    assert attempt == 7, "nine times given out: more than `most_attempts`"


def test_a_mute_auditor_does_not_hold_the_generation_for_ever():
    m = machine()
    feed(m, Tick(0.0), Joined("a"), Joined("mute"), Returned("a", result()))
    assert feed(m, Tick(1.0)) == []
    assert feed(m, Tick(601.0)) == [Judge(lease(0, attempt=2))]


@pytest.mark.parametrize("goes", [False, True])
def test_the_run_pauses_when_every_worker_is_in_quarantine_or_dismissed_and_nobody_else_comes(goes):
    m = machine()
    feed(m, Tick(5.0), Joined("liar"), Returned("liar", result(payload=b"lie")))
    commands = feed(m, Returned(HEAD, result()))
    assert commands[-1] == Close(0, (result(),))
    assert Dismiss("liar") in commands
    feed(m, Committed(0), *[Left("liar")] * goes)
    assert feed(m, Tick(605.0)) == []
    (pause,) = feed(m, Tick(606.0))
    assert isinstance(pause, Pause)
    assert "every worker is quarantined (liar); the last was liar (lease 0" in pause.reason
    assert feed(m, Joined("late")) == []


def test_a_liar_that_starts_first_does_not_end_the_run_of_those_that_come_later():
    m = machine()
    feed(m, Tick(0.0), Joined("liar"), Returned("liar", result(payload=b"lie")), Returned(HEAD, result()), Left("liar"))
    assert feed(m, Committed(0), Tick(599.0)) == []
    assert feed(m, Joined("a"))[-1] == Assign("a", lease(0, 1))
    feed(m, Tick(700.0), Left("a"))
    assert feed(m, Tick(5000.0)) == [], "a run that is scaled to nobody waits, whoever was wrong before"


def test_the_run_pauses_when_only_quarantined_workers_are_left_and_nobody_comes():
    m = machine()
    feed(m, Tick(0.0), Joined("liar"), Joined("a"), Joined("b"))
    feed(m, Returned("liar", result(payload=b"lie")), Returned("a", result()), Returned("b", result()))
    feed(m, Committed(0), Tick(1000.0))
    feed(m, Left("a"), Left("b"))
    assert feed(m, Tick(m.now + 600.0)) == []
    feed(m, Joined("c"), Tick(m.now + 100.0), Left("c"))
    assert feed(m, Tick(m.now + 600.0)) == []
    (pause,) = feed(m, Tick(m.now + 1.0))
    assert isinstance(pause, Pause)
    assert "every worker is quarantined (liar);" in pause.reason


def test_a_lease_of_which_the_aggregator_will_tell_who_is_right_is_given_to_nobody_else_meanwhile():
    m = machine()
    feed(m, Tick(0.0), Joined("a"), Joined("b"), Returned("a", result()), Returned("b", result()), Committed(0))
    feed(m, Returned("a", result(generation=1)), Returned("b", result(generation=1, digest=9)), Joined("c"))
    assert feed(m, Tick(601.0)) == []
    commands = feed(m, Aggregated(1, RIGHT))
    assert commands == [Notice("diverged", "b", 1, "lease 0"), SendRestore("b"), Assign("c", lease(0, 1, 2))]


def test_a_replica_that_stays_wrong_is_given_up():
    m = machine(share=0.0)
    feed(m, Joined("a"), Joined("broken"), Left("a"))
    for n in range(3):
        commands = feed(m, Returned("broken", result(digest=9)))
        assert (SendRestore("broken") in commands) == (n < 2)
    assert (QUARANTINED, "broken") in kinds(commands)


def test_a_draining_worker_ends_what_it_holds_and_gets_no_more():
    m = machine(leases=3, share=0.0)
    feed(m, Joined("a"), Joined("b"))
    assert feed(m, Draining("a")) == [Notice("draining", "a", 0)]
    assert feed(m, Draining("a")) == feed(m, Draining("stranger")) == []
    assert feed(m, Returned("a", result(0))) == []
    assert feed(m, Returned("b", result(1))) == [Assign("b", lease(2))]
    assert m.roster.states() == {"active": 1, "draining": 1}


# How soon.


def test_the_draw_depends_on_the_secret_and_has_its_share():
    draws = [[is_audited(secret, 0.1, g, i) for g in range(100) for i in range(50)] for secret in (b"x", b"y")]
    assert draws[0] != draws[1]
    assert all(abs(sum(drawn) / 5000 - 0.1) < 0.015 for drawn in draws)
    assert not any(is_audited(b"x", 0.0, 0, i) for i in range(100))
    assert all(is_audited(b"x", 1.0, 0, i) for i in range(100))


def generations_until_found(share, leases, workers, flips, seed):
    """Drive the machine with honest workers and one that flips a share of its votes."""
    rng = random.Random(seed)
    plan = Plan.of(100 * leases, 100)
    policy = Policy(10_000, depth=1, audit_share=share, audit_secret=b"%d" % seed)
    m = Machine(lambda _: plan, policy, 0, 0, RIGHT)
    commands = deque(c for n in range(workers) for c in m.handle(Joined(f"w{n}")))
    while True:
        command = commands.popleft()
        if isinstance(command, Notice) and command.kind == QUARANTINED:
            assert command.worker == "w0"
            return command.generation + 1
        if isinstance(command, Assign | Judge):
            name = command.worker if isinstance(command, Assign) else HEAD
            votes = bytes(int(name == "w0" and rng.random() < flips) for _ in range(100))
            answer = LeaseResult(0, command.lease, 0, 0, 0, RIGHT, 0, 1.0, votes)
            commands.extend(m.handle(Returned(name, answer)))
        elif isinstance(command, Close):
            commands.extend(m.handle(Committed(command.generation)))
            commands.extend(m.handle(Aggregated(command.generation + 1, RIGHT)))


@pytest.mark.parametrize(("share", "leases", "workers"), [(0.05, 12, 4), (0.2, 8, 3), (0.1, 6, 2)])
def test_a_worker_that_flips_one_vote_in_a_hundred_is_found_as_soon_as_the_formula_says(share, leases, workers):
    wrong = 1 - 0.99**100
    bound = generations_to_find(share, leases / workers, wrong, confidence=0.95)
    found = [generations_until_found(share, leases, workers, 0.01, seed) for seed in range(200)]
    assert sum(n <= bound for n in found) >= 0.95 * 200 - 3 * (0.95 * 0.05 * 200) ** 0.5
    assert max(found) > 1, "found by luck alone"
    worse = generations_to_find(share, leases / workers, wrong, confidence=0.3)
    assert any(n > worse for n in found)


def test_the_formula():
    assert generations_to_find(1.0, 1) == 1
    assert generations_to_find(0.0, 1) > 10**18
    assert generations_to_find(0.01, 4, confidence=0.95) == 75  # 1 - 0.99^300 = 0.951


def test_generations_of_long_ago_are_told_roughly():
    roster = Roster(depth=2)
    for generation in range(0, 2_000_000, 2):
        roster.touch(["w"], generation)
        if generation == 6:
            assert roster.touched("w") == "0, 2, 4, 6"
    told = roster.touched("w")
    assert len(told) < 400
    assert told.startswith("0-1")
    assert told.endswith("1999994, 1999996, 1999998")
