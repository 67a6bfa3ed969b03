"""The determinism law: config, seed and data decide every byte of the journal; who did the work does not."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from harness import Run, chaos, deployed, hasty, local, train

from es_service.errors import DivergenceError
from es_service.journal import scan
from workers import ops as backends

SPECS = {
    "plain": {},
    "uneven": {"population": 46, "feeding": {"kind": "members_per_sequence", "members": 2}},
    "sequences": {"feeding": {"kind": "sequences_per_generation", "sequences": 4}},
    "passes": {"population": 20, "feeding": {"kind": "sequences_per_generation", "sequences": 30}},
    "burn_in": {"segment": {"bytes": 4, "burn_in": 3}},
    "rank": {"algorithm": {"kind": "eggroll", "rank": 2}},
    "sign_noise": {"algorithm": {"kind": "eggroll", "sign_noise": True, "alpha": 0.5}},
    "one_noise": {"algorithm": {"kind": "eggroll", "noise_reuse": 0}},
    "reused_noise": {"algorithm": {"kind": "eggroll", "noise_reuse": 3, "sigma_shift": 2}},
}
_undisturbed: dict[str, Run] = {}


def spec_config(tiny_config, name):
    return tiny_config(**SPECS[name])


@pytest.fixture
def undisturbed(tiny_config):
    """The run of a spec by one worker, made once."""

    def make(name: str) -> Run:
        if name not in _undisturbed:
            _undisturbed[name] = train(spec_config(tiny_config, name))
        return _undisturbed[name]

    return make


def same(run: Run, other: Run) -> None:
    assert run.journal == other.journal
    assert run.contents.content_hash == other.contents.content_hash


def test_specs_differ_and_have_their_effect(undisturbed):
    """Or the laws below would hold for a run that ignores its config."""
    hashes = {undisturbed(name).contents.content_hash for name in SPECS}
    assert len(hashes) == len(SPECS)
    for name in SPECS:
        contents = undisturbed(name).contents
        assert len(contents.commits) == 5
        assert len({int(digest) for digest in contents.commits.fields["digest"]}) == 5, "parameters moved"
        records = [commit.record for commit in contents.commits]
        assert len(set(records)) == 5, "votes differ from generation to generation"
        assert any(record.strip(b"\0") for record in records)


def test_the_same_run_twice(tiny_config, undisturbed):
    same(train(spec_config(tiny_config, "plain")), undisturbed("plain"))


def test_another_seed_is_another_run(tiny_config, undisturbed):
    assert train(tiny_config(seed=2)).contents.commits[0].record != undisturbed("plain").contents.commits[0].record


@pytest.mark.parametrize("name", SPECS)
def test_workers_lease_sizes_and_orders_do_not_matter(tiny_config, undisturbed, name):
    config = spec_config(tiny_config, name)
    rng = random.Random(name)
    for workers, lease_pairs, lag, shares in ((2, 10, 0, True), (3, 5, 3, False)):
        way = deployed(config, lease_pairs=lease_pairs, max_lag=lag, keyframe_every=1 + lag)
        same(train(way, local(workers, rng.choice, shares=shares)), undisturbed(name))


@pytest.mark.parametrize("seed", range(10))
def test_faults_do_not_matter(tiny_config, undisturbed, seed):
    name, pools = list(SPECS)[seed % len(SPECS)], []
    config = deployed(spec_config(tiny_config, name), max_lag=seed % 3, lease_timeout_seconds=5.0)
    run = train(config, chaos(seed, pools=pools), prepare=hasty)
    same(run, undisturbed(name))
    assert sum(pools[0].counts[kind] for kind in ("leave", "repeat", "forget", "refuse", "noise")) > 1


def test_every_kind_of_fault_was_met(tiny_config, undisturbed):
    config = deployed(tiny_config(), lease_timeout_seconds=5.0, max_lag=0)
    met = sum((train(config, chaos(100 + n, corrupt=True), prepare=hasty).events for n in range(3)), start=type(
        undisturbed("plain").events)())  # fmt: skip
    assert met.keys() >= {"worker_gone", "fell", "malformed", "duplicate", "late", "hedged", "diverged"}
    assert "mismatch" not in met


@pytest.mark.parametrize("seed", range(4))
def test_diverged_replicas_do_not_matter_where_the_aggregator_decides(tiny_config, undisturbed, seed):
    config = deployed(tiny_config(), max_lag=0)
    same(train(config, chaos(seed, corrupt=True)), undisturbed("plain"))


def flipped(*names):
    """A bit flips in these replicas at generation 2, and the aggregator is late there."""

    def flip(coordinator):
        for name in names:
            evaluator = coordinator.pool._evaluators[name]
            evaluator.advance = partial(_advance_wrongly, evaluator, evaluator.advance)
        take, turns = coordinator.aggregator.take, itertools.count()

        def late(timeout=0.0):
            return [] if coordinator.machine.generation == 2 and next(turns) < 20 else take(timeout)

        coordinator.aggregator.take = late

    return flip


def _advance_wrongly(evaluator, advance, commit):
    advance(commit)
    if commit.generation == 1:
        parameters_P = evaluator._parameters_P
        parameters_P[0] ^= 1
        evaluator._take(parameters_P, 2, evaluator.ops.digest(evaluator.layout, parameters_P))


def test_a_lonely_diverged_replica_waits_for_the_aggregator_and_is_rebuilt(tiny_config, undisturbed):
    run = train(deployed(tiny_config(), max_lag=3), prepare=flipped("w0"))
    assert run.events["diverged"]
    same(run, undisturbed("plain"))


def test_replicas_that_are_all_wrong_in_the_same_way_pause_the_run(tiny_config):
    """They agree, so nobody can tell who is right: replay finds out."""
    config = deployed(tiny_config(), max_lag=3)
    with pytest.raises(DivergenceError, match="generation 2: the replicas agree on digest"):
        train(config, local(2), prepare=flipped("w0", "w1"))


@pytest.mark.parametrize("backend", [name for name in backends.BACKENDS if name != "reference"])
def test_backends_do_not_matter(tiny_config, undisturbed, backend):
    if reason := backends.why_not(backend):
        if os.environ.get(f"ES_SERVICE_REQUIRE_{backend.upper()}") == "1":
            pytest.fail(f"{backend} is required here: {reason}")
        pytest.skip(reason)

    def ops():
        return backends.resolve(backend, 2)[0]

    for name in SPECS:
        same(train(spec_config(tiny_config, name), local(2, ops=ops), ops=ops), undisturbed(name))


# Stopped and resumed.


@pytest.mark.parametrize("seed", range(6))
def test_a_run_that_is_stopped_and_resumed(tiny_config, undisturbed, seed):
    rng = random.Random(seed)
    config, directory, starts = tiny_config(), None, 0
    config = deployed(config, keyframe_every=rng.choice([1, 2, 100]), max_lag=rng.randint(0, 2))
    while True:
        left = [rng.randint(1, 12 if starts else 6)]

        def stop_soon(coordinator, left=left):
            turn = coordinator._turn

            def counted():
                turn()
                left[0] -= 1
                if left[0] == 0:
                    coordinator.stop("test")

            coordinator._turn = counted

        run = train(config, local(2, rng.choice), directory, prepare=stop_soon)
        directory, starts = run.directory, starts + 1
        if run.finish.reason == "goal":
            break
        assert run.finish.reason == "test"
        whole = undisturbed("plain").contents
        assert [c.record for c in run.contents.commits] == [c.record for c in whole.commits][: run.finish.generation]
    assert starts > 1
    same(run, undisturbed("plain"))


def test_a_later_goal_on_resume_gives_the_same_as_one_run(tiny_config, undisturbed):
    first = train(deployed(tiny_config(), generations=2))
    assert first.finish.generation == 2
    same(train(tiny_config(), directory=first.directory), undisturbed("plain"))


def test_resuming_a_finished_run_changes_nothing(tiny_config, undisturbed):
    first = train(tiny_config())
    again = train(tiny_config(), directory=first.directory)
    assert again.finish.reason == "goal"
    same(again, undisturbed("plain"))


def test_a_stop_file_stops_at_a_commit_and_is_taken_away(tiny_config):
    run = train(tiny_config(), prepare=lambda coordinator: coordinator.directory.stop_path.touch())
    assert run.finish.reason == "stop requested"
    assert not run.directory.stop_path.exists()
    assert run.contents.close.generation == run.finish.generation


def test_runs_that_stop_at_a_time_limit_agree_as_far_as_both_go(tiny_config, undisturbed):
    def clock(coordinator):
        began = coordinator.clock()
        coordinator.clock = lambda: began + 10.0 * coordinator.machine.generation

    limited = deployed(tiny_config(), time_limit_seconds=25.0)
    run = train(limited, local(2), prepare=clock)
    assert (run.finish.generation, run.finish.reason) == (4, "time limit")
    whole = undisturbed("plain").contents
    commits = [run.contents.commits[g] for g in range(4)]
    assert commits == [whole.commits[g] for g in range(4)]
    end = int(whole.commits.offsets[4])
    assert run.journal[:end] == undisturbed("plain").journal[:end]
    assert run.contents.close.digest == int(whole.commits.fields["digest"][4])
    same(train(tiny_config(), directory=run.directory), undisturbed("plain"))


def test_a_silent_driver_stops_the_run_unless_detached(tiny_config):
    def silence(coordinator):
        coordinator._last_beat -= 1000

    run = train(deployed(tiny_config(), detach=False), prepare=silence)
    assert run.finish.reason.startswith("no sign of the driver")
    assert train(tiny_config(), prepare=silence).finish.reason == "goal"


SCRIPT = Path(__file__).with_name("run_once.py")


def test_sigkill_at_any_time(tiny_config):
    """The whole process is killed, again and again; the journal ends as if nothing had happened."""
    config = tiny_config(deployment__generations=40, deployment__keyframe_every=7, deployment__max_lag=2)
    whole = train(config)
    rng = random.Random(3)
    name, kills = "killed", 0
    path = config.deployment.runs_dir / name / "journal.bin"
    config_path = config.deployment.runs_dir / "killed.json"
    config_path.write_text(config.model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(Path(backends.__file__).parents[2])}
    total = len(whole.journal)
    while kills < 3:
        process = subprocess.Popen([sys.executable, str(SCRIPT), str(config_path), name], env=environment)
        wanted = total * (kills + rng.random()) / 3
        while process.poll() is None and (not path.exists() or path.stat().st_size < wanted):
            time.sleep(0.001)
        time.sleep(rng.random() * 0.01)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        if process.returncode == 0:
            break
    assert kills >= 2
    if path.exists():
        found = path.read_bytes()
        assert whole.journal.startswith(found[: scan(path).valid_bytes]) or scan(path).close
    subprocess.run([sys.executable, str(SCRIPT), str(config_path), name], env=environment, check=True)
    assert path.read_bytes() == whole.journal


# Updates in slices.


def always(config, **changes):
    return deployed(config, sliced_updates="always", **changes)


def steps_of(coordinator, counts):
    """Count commits of both kinds."""
    publish = coordinator._publish

    def counted(commit):
        counts[commit.is_step] += 1
        publish(commit)

    coordinator._publish = counted


@pytest.mark.parametrize("name", ["plain", "uneven", "rank", "sign_noise", "reused_noise"])
def test_slices_do_not_matter(tiny_config, undisturbed, name):
    counts: Counter[bool] = Counter()
    config = always(spec_config(tiny_config, name), max_lag=1)
    same(train(config, local(3), prepare=lambda c: steps_of(c, counts)), undisturbed(name))
    assert counts == {True: 4, False: 1}, "the last one is for the aggregator alone"
    same(train(config, local(2, shares=True)), undisturbed(name))
    same(train(config, local(1)), undisturbed(name))


@pytest.mark.parametrize("seed", range(8))
def test_slices_do_not_matter_where_workers_die_lag_and_repeat_themselves(tiny_config, undisturbed, seed):
    counts: Counter[bool] = Counter()

    def prepare(coordinator):
        hasty(coordinator)
        steps_of(coordinator, counts)

    config = always(tiny_config(), max_lag=seed % 3, lease_timeout_seconds=5.0)
    same(train(config, chaos(seed), prepare=prepare), undisturbed("plain"))
    assert counts.total() == 5


def test_a_liar_about_a_slice_is_found_by_the_head(tiny_config, undisturbed):
    def lie(coordinator):
        evaluator = coordinator.pool._evaluators["w0"]
        honest = evaluator.slice
        evaluator.slice = lambda order: replace(honest(order), payload=bytes(len(honest(order).payload)))

    run = train(always(tiny_config()), local(3), prepare=lie)
    same(run, undisturbed("plain"))
    (event,) = [event for event in run.directory.events() if event["kind"] == "quarantined"]
    assert event["worker"] == "w0"
    assert event["detail"].startswith(
        "its slice of update 0 is not the head's; committed generations with its votes: 0"
    )
