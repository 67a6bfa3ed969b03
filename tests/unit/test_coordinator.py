"""The coordinator beside the laws: what it sends, writes and reports, and how it ends when something breaks."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
from harness import deployed, expected, local, train

from es_service import coordinator as coordinator_module
from es_service import replicas as module
from es_service.directory import RunDirectory
from es_service.errors import DivergenceError, JournalError
from es_service.messages import LeaseResult, Order, Restore, Share, decode, encode
from es_service.pools import Gone, Ready, Reply
from es_service.problem import layout_of
from es_service.session import open_session
from workers.evaluator import Evaluator
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps


class Watched(LocalPool):
    """A local pool that keeps what went through it."""

    def __init__(self, evaluators):
        super().__init__(evaluators)
        self.sent, self.answers, self.closed = [], [], 0

    def send(self, worker, data, parts=()):
        whole = b"".join((data, *parts))
        self.sent.append((worker, decode(whole), len(whole)))
        super().send(worker, data, parts)

    def poll(self, timeout):
        events = super().poll(timeout)
        self.answers += [event.data for event in events if isinstance(event, Reply)]
        return events

    def close(self):
        self.closed += 1
        super().close()


def watched(workers=1):
    pools = []

    def make(config, corpus):
        names = [f"w{n}" for n in range(workers)]
        pools.append(Watched({name: Evaluator(config, corpus.train, ReferenceOps()) for name in names}))
        return pools[-1]

    return make, pools


def test_what_goes_over_the_wire(tiny_config):
    make, pools = watched()
    run = train(tiny_config(), make)
    (pool,) = pools
    restore, *orders = [message for _, message, _ in pool.sent]
    assert restore == Restore(orders[0].run, 0, run.contents.header.digest, b""), "the seed stands for the parameters"
    assert all(isinstance(order, Order) for order in orders)
    commits = [commit.generation for order in orders for commit in order.commits]
    assert commits == [0, 1, 2, 3], "every commit once"
    assert [order.lease.generation for order in orders] == sorted(order.lease.generation for order in orders)
    assert pool.closed >= 1


def test_metrics_of_a_run(tiny_config):
    make, pools = watched()
    run = train(tiny_config(), make)
    lines = list(run.directory.metrics())
    assert Counter(line["kind"] for line in lines) == {"commit": 5, "update": 5, "evaluation": 3}
    commits = [line for line in lines if line["kind"] == "commit"]
    sent = sum(size for _, _, size in pools[0].sent) + sum(map(len, pools[0].answers))
    assert sum(line["wire_bytes_down"] + line["wire_bytes_up"] for line in commits) == sent
    assert sum(line["wire_bits_per_member"] * 40 / 8 for line in commits) == pytest.approx(sent, rel=1e-4)
    for line, record in zip(commits, run.contents.commits, strict=True):
        assert line["bits_per_member"] == 8 * len(record.record) / 40 == 0.8
        assert line["bits_per_byte"] == pytest.approx(-record.score_sum / (16 * 40 * 4), abs=1e-6)
        assert line["votes_plus"] + line["votes_minus"] <= line["units"] == 20
        assert line["threshold"] == record.threshold
        assert line["model_bytes"] == 40 * 4
    assert [line["generation"] for line in lines if line["kind"] == "evaluation"] == [0, 3, 5]
    assert commits[-1]["journal_bytes"] < len(run.journal)
    text = run.directory.metrics_path.read_text()
    assert "NaN" not in text
    assert all(json.loads(line) for line in text.splitlines())


def test_status_follows_the_run(tiny_config):
    config = tiny_config()
    directory = RunDirectory(config.deployment.runs_dir, "status")
    coordinator = open_session(config, directory, False, ReferenceOps(), local(2))
    assert (coordinator.heartbeat().state, coordinator.telemetry.status.generation) == ("running", 0)
    coordinator.run()
    status = coordinator.heartbeat()
    assert (status.state, status.generation, status.goal, status.workers) == ("finished", 5, 5, 2)
    assert (status.held_out_generation, status.reason, status.bits_per_member) == (5, "goal", 0.8)
    assert 0 < status.held_out < 16
    assert status.wire_bits_per_member > 0.8


def test_passes_are_part_of_the_loss(tiny_config):
    run = train(tiny_config(population=20, feeding={"kind": "sequences_per_generation", "sequences": 30}))
    line = next(line for line in run.directory.metrics() if line["kind"] == "commit")
    assert line["bits_per_byte"] == pytest.approx(-run.contents.commits[0].score_sum / (16 * 20 * 3 * 4), abs=1e-6)
    assert 6 < line["bits_per_byte"] < 12, "an untrained model reads a little more than 8"


def test_a_replica_too_far_back_is_restored_and_not_sent_a_long_replay(tiny_config, monkeypatch):
    monkeypatch.setattr(module, "_KEPT_COMMITS", 2)
    config = deployed(tiny_config(deployment__generations=8), max_lag=0)
    make, pools = watched(2)

    def idle(coordinator):
        """The second worker says nothing in the middle of the run; its leases are given up by hand."""
        pool, poll = coordinator.pool, coordinator.pool.poll

        def gated(timeout):
            pool._choose = lambda names: "w0" if "w0" in names and 1 < coordinator.machine.generation < 6 else names[-1]
            return poll(timeout)

        pool.poll = gated

    run = train(config, make, prepare=idle)
    assert run.journal == expected(config)
    most = max(len(message.commits) for _, message, _ in pools[0].sent if isinstance(message, Order))
    assert most <= 2


def test_a_joiner_in_the_middle_gets_parameters_and_few_commits(tiny_config):
    make, pools = watched()

    def join_late(coordinator):
        pool, poll = coordinator.pool, coordinator.pool.poll
        joined = []

        def joining(timeout):
            events = poll(timeout)
            if coordinator.machine.generation == 3 and not joined:
                joined.append(True)
                text = pool._evaluators["w0"].task.segments.train
                pool._evaluators["late"] = Evaluator(coordinator.config, text, ReferenceOps())
                pool._queues["late"] = type(pool._queues["w0"])()
                events.append(Ready("late", "test"))
            return events

        pool.poll = joining

    run = train(deployed(tiny_config(), max_lag=1), make, prepare=join_late)
    assert run.journal == expected(tiny_config())
    restore, first, *_ = [message for worker, message, _ in pools[0].sent if worker == "late"]
    assert restore.generation >= 2
    assert len(restore.parameters) == layout_of(run.config).size
    assert len(first.commits) == first.lease.generation - restore.generation <= 1


def test_parameters_are_made_ready_once_for_all_that_join_in_a_generation(tiny_config):
    made, coming = [], {2: ["a", "b", "c"], 4: ["d"]}

    def join_late(coordinator):
        pool, poll = coordinator.pool, coordinator.pool.poll
        pool.broadcast = lambda data: made.append(data) or data

        def joining(timeout):
            events = poll(timeout)
            for name in coming.pop(coordinator.aggregator.canonical.generation, ()):
                text = pool._evaluators["w0"].task.segments.train
                pool._evaluators[name] = Evaluator(coordinator.config, text, ReferenceOps())
                pool._queues[name] = type(pool._queues["w0"])()
                events.append(Ready(name, "test"))
            return events

        pool.poll = joining

    make, pools = watched()
    run = train(deployed(tiny_config(), max_lag=0), make, prepare=join_late)
    assert run.journal == expected(tiny_config())
    restored = [message for _, message, _ in pools[0].sent if isinstance(message, Restore) and message.parameters]
    assert len(restored) == 4
    assert [data for data in made if len(data) == layout_of(run.config).size] == [
        restored[0].parameters, restored[3].parameters
    ]  # fmt: skip


def spoiled(spoil):
    """A pool whose first result is spoiled."""

    def make(config, corpus):
        pool = LocalPool({name: Evaluator(config, corpus.train, ReferenceOps()) for name in ("a", "b")})
        poll, done = pool.poll, []

        def once(timeout):
            events = poll(timeout)
            for n, event in enumerate(events):
                if isinstance(event, Reply) and event.data and not done:
                    done.append(True)
                    events[n] = Reply(event.worker, spoil(decode(event.data)))
            return events

        pool.poll = once
        return pool

    return make


def changed(message, **changes):
    from dataclasses import replace

    return encode(replace(message, **changes))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda m: b"\xff nothing that is known",
        lambda m: b"",
        lambda m: encode(m)[:-1],
        lambda m: changed(m, run=m.run ^ 1),
        lambda m: changed(m, payload=m.payload + b"\0"),
        lambda m: changed(m, payload=b"\xff"),
        lambda m: changed(m, seconds=float("nan")),
        lambda m: encode(Restore(m.run, 0, 0, b"")),
        lambda m: changed(m, lease=type(m.lease)(0, 3, 5, 0)),
        lambda m: changed(m, lease=type(m.lease)(0, 1000, 5, 0)),
        lambda m: changed(m, lease=type(m.lease)(9, 0, 5, 0)),
    ],
)  # fmt: skip
def test_a_malformed_reply_costs_an_evaluation_and_nothing_else(tiny_config, spoil):
    config = tiny_config(deployment__generations=2)
    run = train(config, spoiled(spoil))
    assert run.journal == expected(config)
    assert run.events["malformed"] == 1
    assert run.events["failed"] == 0


def test_the_last_of_several_numbers_of_workers_that_were_asked_for_wins(tiny_config):
    scaled = []

    def ask(coordinator):
        def scale(workers):
            scaled.append(workers)
            if len(scaled) == 1:
                coordinator.directory.ask_scale(4)
                coordinator.scale(5)

        coordinator.pool.scale = scale
        coordinator.scale(2)
        coordinator.scale(3)

    run = train(tiny_config(), prepare=ask)
    assert scaled == [2, 3, 5, 4]
    assert run.journal == expected(tiny_config())


def test_a_worker_that_reads_too_late_is_behind_and_tries_again(tiny_config):
    """The slot of its generation may have been written again before it looked."""

    def late(coordinator):
        evaluator = coordinator.pool._evaluators["w0"]
        read, count = evaluator.read, []

        def reading(message):
            count.append(message.generation)
            if len(count) == 2:
                coordinator.aggregator.shared._slots_2P[:] ^= 1
                read(message)
                coordinator.aggregator.shared._slots_2P[:] ^= 1
            else:
                read(message)

        evaluator.read = reading

    run = train(tiny_config(), local(1, shares=True), prepare=late)
    assert run.journal == expected(tiny_config())
    assert run.events["fell"] >= 1
    assert run.events["worker_gone"] == 0


def test_a_worker_that_cannot_read_the_shared_memory_is_sent_the_parameters(tiny_config):
    def blind(coordinator):
        evaluator = coordinator.pool._evaluators["w0"]
        evaluator.read = lambda message: setattr(evaluator, "generation", -1)

    run = train(tiny_config(), local(1, shares=True), prepare=blind)
    assert run.journal == expected(tiny_config())
    assert 0 < run.events["fell"] <= 2 * 5, "at most what it holds, in each generation"
    assert not run.events["quarantined"]


@pytest.mark.parametrize("others", [0, 1])
def test_a_worker_that_answers_with_nonsense_is_no_work_for_ever(tiny_config, others):
    class Nonsense(Evaluator):
        def handle(self, data):
            return b"nonsense" if isinstance(decode(data), Order) else super().handle(data)

    def make(config, corpus):
        kinds = {"bad": Nonsense} | {f"w{n}": Evaluator for n in range(others)}
        return LocalPool({name: kind(config, corpus.train, ReferenceOps()) for name, kind in kinds.items()})

    config = deployed(tiny_config(), lease_timeout_seconds=1.0)
    directory = RunDirectory(config.deployment.runs_dir, f"nonsense-{others}")
    coordinator = open_session(config, directory, False, ReferenceOps(), make)
    if others:
        coordinator.run()
        assert directory.journal_path.read_bytes() == expected(tiny_config())
    else:
        with pytest.raises(DivergenceError, match="6 answers in a row were of no use"):
            coordinator.run()
    counts = Counter(event["kind"] for event in directory.events())
    assert 0 < counts["malformed"] <= 6 * 2, "each of six answers brings two orders, which are on their way then"


def test_workers_that_share_are_sent_no_parameters_and_no_commits(tiny_config):
    sent = []

    def make(config, corpus):
        pool = LocalPool({"w": Evaluator(config, corpus.train, ReferenceOps())}, shares=True)
        send = pool.send
        pool.send = lambda worker, data, parts=(): (
            sent.append(decode(b"".join((data, *parts)))),
            send(worker, data, parts),
        )[1]
        return pool

    train(tiny_config(), make)
    assert {type(message) for message in sent} == {Share, Order}
    assert not any(message.commits for message in sent if isinstance(message, Order))
    assert [message.generation for message in sent if isinstance(message, Share)] == [0, 1, 2, 3, 4]


def test_a_worker_that_is_gone_is_told_and_replaced(tiny_config):
    def make(config, corpus):
        pool = LocalPool({name: Evaluator(config, corpus.train, ReferenceOps()) for name in ("a", "b")})
        pool._evaluators["a"].run ^= 1  # takes every message for one of another run
        return pool

    run = train(tiny_config(), make)
    assert run.journal == expected(tiny_config())
    (gone,) = [event for event in run.directory.events() if event["kind"] == "worker_gone"]
    assert (gone["worker"], gone["reason"]) == ("a", "this message belongs to another run")


# Failures.


def test_a_failure_of_the_aggregator_ends_the_run_and_it_can_be_resumed(tiny_config, monkeypatch):
    def break_later(coordinator):
        def after(canonical):
            if canonical.generation == 2:
                raise JournalError("the disk is full")

        coordinator.aggregator.after = after

    config = tiny_config()
    directory = RunDirectory(config.deployment.runs_dir, "full")
    coordinator = open_session(config, directory, False, ReferenceOps(), local())
    break_later(coordinator)
    with pytest.raises(JournalError, match="the disk is full"):
        coordinator.run()
    status = coordinator.telemetry.status
    assert (status.state, status.reason) == ("failed", "the disk is full")
    assert [event["kind"] for event in directory.events()][-1] == "failed"
    assert train(config, directory=directory).journal == expected(config)


def test_a_journal_that_cannot_be_written_ends_the_run_and_claims_nothing(tiny_config):
    config = tiny_config()
    directory = RunDirectory(config.deployment.runs_dir, "unwritable")
    coordinator = open_session(config, directory, False, ReferenceOps(), local())
    append, calls = coordinator.writer.append, []

    def failing(record):
        calls.append(record)
        if len(calls) == 3:
            raise JournalError("no space left")
        append(record)

    coordinator.writer.append = failing
    with pytest.raises(JournalError, match="no space left"):
        coordinator.run()
    assert coordinator.telemetry.status.generation == 2
    assert train(config, directory=directory).journal == expected(config)


def test_an_interrupt_closes_the_journal(tiny_config):
    config = tiny_config()
    directory = RunDirectory(config.deployment.runs_dir, "interrupted")

    class Interrupted(LocalPool):
        def poll(self, timeout):
            raise KeyboardInterrupt

    coordinator = open_session(config, directory, False, ReferenceOps(), lambda config, corpus: Interrupted({}))
    with pytest.raises(KeyboardInterrupt):
        coordinator.run()
    assert train(config, directory=directory).finish.reason == "goal"


# The local pool.


def test_local_workers_work_in_turn(tiny_config):
    make, pools = watched(3)
    every_call_takes_a_millisecond = itertools.count(step=1e-3).__next__
    run = train(tiny_config(), make, prepare=lambda c: setattr(c, "clock", every_call_takes_a_millisecond))
    shares = Counter(worker for worker, message, _ in pools[0].sent if isinstance(message, Order))
    assert set(shares) == {"w0", "w1", "w2"}
    assert run.events["hedged"] == 0


def test_a_local_worker_that_fails_is_gone_and_the_last_one_raises():
    class Broken:
        ops = ReferenceOps()

        def handle(self, data):
            raise JournalError("broken")

    pool = LocalPool({"a": Broken(), "b": Broken()})
    assert [event.worker for event in pool.poll(0)] == ["a", "b"]
    pool.send("a", b"x")
    pool.send("a", b"y")
    assert pool.poll(0) == [Gone("a", "broken")]
    assert pool.poll(0) == []
    pool.send("b", b"x")
    with pytest.raises(JournalError, match="broken"):
        pool.poll(0)


def test_results_are_of_the_run(tiny_config):
    make, pools = watched()
    run = train(tiny_config(deployment__generations=1), make)
    results = [decode(data) for data in pools[0].answers if data]
    assert all(isinstance(result, LeaseResult) for result in results)
    assert sum(result.score_sum for result in results) == run.contents.commits[0].score_sum
    assert b"".join(result.payload for result in results) == run.contents.commits[0].record


def test_workers_without_a_lease_get_the_commits_all_the_same(tiny_config, monkeypatch):
    """So that a lease that they get later waits for one update, and not for several."""
    monkeypatch.setattr(coordinator_module, "_SPARES", 0)
    make, pools = watched(5)
    run = train(deployed(tiny_config(), lease_pairs=5), make)
    assert run.journal == expected(tiny_config())
    orders = [message for _, message, _ in pools[0].sent if isinstance(message, Order)]
    alone = [message for message in orders if not message.lease.num_units]
    assert alone
    assert all(message.commits for message in alone)
    assert all(len(message.commits) <= 1 for message in orders), "nobody is more than one generation behind"
    assert run.events["malformed"] == 0
