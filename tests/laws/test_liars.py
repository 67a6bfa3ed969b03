"""Workers that vote wrongly on right parameters. With every lease audited they change no byte of the journal."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness import deployed, train

from es_service import cli, keyframes, votes
from es_service.directory import RunDirectory
from es_service.errors import DivergenceError, WrongStepError
from es_service.journal import scan
from es_service.messages import decode
from es_service.pools import HEAD
from es_service.problem import layout_of
from es_service.replay import Replay
from es_service.session import open_session
from es_service.updates import slices
from workers.evaluator import Evaluator
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps


class Liar(Evaluator):
    """Turns some of its votes around, and has no friends: no two liars tell the same lie."""

    share = 0.3
    numbers = itertools.count()

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.number = next(self.numbers)

    def evaluate(self, lease, threshold):
        result = super().evaluate(lease, threshold)
        rng = np.random.default_rng([self.number, lease.generation, lease.first_unit])
        votes_Q = votes.unpack(result.payload, lease.num_units)
        votes_Q = np.where(rng.random(lease.num_units) < self.share, 1 - np.abs(votes_Q), votes_Q).astype(np.int8)
        return replace(result, payload=votes.pack(votes_Q))


def pool(*kinds, choose=None):
    """Workers w0, w1, ... of these classes, and an honest head."""

    def make(config, corpus):
        def evaluator(kind=Evaluator):
            return kind(config, corpus.train, ReferenceOps())

        workers = {f"w{n}": evaluator(kind) for n, kind in enumerate(kinds)}
        return LocalPool(workers, choose or (lambda names: names[0]), make_referee=evaluator)

    return make


@pytest.fixture
def audited(tiny_config):
    """A run with every lease audited, or a share of them."""
    return lambda share=1.0: deployed(tiny_config(), audit_share=share)


@pytest.mark.parametrize("kinds", [(Evaluator,), (Evaluator, Evaluator), (Evaluator,) * 4])
def test_audits_of_honest_workers_change_nothing(tiny_config, audited, kinds):
    run = train(audited(), pool(*kinds))
    assert run.journal == train(tiny_config()).journal
    assert run.events["audited"] == 5 * 4, "every lease of every generation"
    assert not run.events["mismatch"]


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kinds", [(Liar, Evaluator), (Evaluator, Liar, Evaluator), (Liar, Evaluator, Liar, Evaluator)])
def test_liars_change_nothing_where_every_lease_is_audited(tiny_config, audited, kinds, seed):
    run = train(audited(), pool(*kinds, choose=random.Random(seed).choice))
    assert run.journal == train(tiny_config()).journal
    assert run.events["quarantined"] == kinds.count(Liar)
    out = {event["worker"] for event in run.directory.events() if event["kind"] == "quarantined"}
    assert out == {f"w{n}" for n, kind in enumerate(kinds) if kind is Liar}


def test_a_liar_that_no_audit_reaches_leaves_a_journal_that_can_be_replayed(tiny_config, audited):
    run = train(audited(0.0), pool(Liar, Evaluator))
    assert run.journal != train(tiny_config()).journal
    contents = scan(run.directory.journal_path)
    replay = Replay(contents, run.config, run.directory, ReferenceOps())
    assert replay.rebuild(5, replay.first()).digest == contents.close.digest


def test_a_liar_alone_pauses_the_run_and_the_event_names_what_it_touched(audited):
    class LateLiar(Liar):
        def evaluate(self, lease, threshold):
            what = (lease, threshold)
            return super().evaluate(*what) if lease.generation >= 2 else Evaluator.evaluate(self, *what)

    config = deployed(audited(), lease_timeout_seconds=1.0)
    with pytest.raises(DivergenceError, match=r"every worker is quarantined \(w0\); the last was w0") as raised:
        train(config, pool(LateLiar))
    assert "committed generations with its votes: 0-1" in str(raised.value)


# Two workers that make the same wrong slice of an update: the votes are right, the parameters are not.


def conspiring(update, about=None):
    """Prepares a run in which w0 and w1 lie alike about slices of updates from `update` on, by default all of them."""

    def prepare(coordinator):
        evaluators = coordinator.pool._evaluators
        honest = Evaluator.slice

        def lie(evaluator, order):
            result = honest(evaluator, order)
            wrong = order.generation >= update and (about is None or order.index in about)
            return replace(result, payload=bytes(len(result.payload))) if wrong else result

        for name in ("w0", "w1"):
            evaluators[name].slice = lie.__get__(evaluators[name])

    return prepare


def sliced(config):
    return deployed(config, sliced_updates="always", max_lag=0, keyframe_every=1)


def late(coordinator, until):
    """The check of update 2 waits until a generation is open."""
    send, held = coordinator.pool.send, []

    def later(worker, data, parts=()):
        if worker == HEAD and decode(data).generation == 2:
            held.append(data)
        else:
            send(worker, data, parts)
        while held and coordinator.machine.generation >= until:
            send(HEAD, held.pop(0))

    coordinator.pool.send = later


def betrayed(config, until, left=()):
    """A run that paused because of a wrong step 2, which the head looked at when generation `until` was open."""
    directory = RunDirectory(config.deployment.runs_dir, f"betrayed-{until}")
    coordinator = open_session(config, directory, False, ReferenceOps(), pool(Evaluator, Evaluator))
    conspiring(2)(coordinator)
    late(coordinator, until)
    with pytest.raises(WrongStepError, match=r"generation 2: w\d and w\d made the same wrong slice of its update"):
        coordinator.run()
    assert keyframes.list_generations(directory.keyframes_path) == list(left)
    assert coordinator.heartbeat().state == "failed"
    return directory


def test_a_slice_that_workers_agreed_on_wrongly_is_found_and_the_run_resumes(tiny_config):
    config = sliced(tiny_config())
    directory = betrayed(config, until=2)
    assert len(scan(directory.journal_path).commits) == 3, "no vote was cast on the wrong parameters"
    assert train(config, directory=directory).journal == train(tiny_config()).journal


def test_where_votes_were_cast_on_a_wrong_step_the_run_goes_on_elsewhere(tiny_config, tmp_path, capsys):
    config = sliced(tiny_config())
    directory = betrayed(config, until=4)
    whole, found = train(tiny_config()), scan(directory.journal_path)
    assert list(found.commits.between(0, 3)) == list(whole.contents.commits.between(0, 3))
    assert found.commits[3] != whole.contents.commits[3]
    with pytest.raises(DivergenceError, match="generation 3 has digest"):
        train(config, directory=directory)
    where, steps = ("--runs-dir", str(directory.path.parent)), str(tmp_path / "right.steps")
    assert cli.main(["steps", "betrayed-4", "--out", steps, *where]) == 3
    assert cli.main(["steps", "betrayed-4", "--generation", "2", "--out", steps, *where]) == 0
    assert cli.main(["from-steps", steps, "--resume-as", "trusted", *where]) == 0
    assert "go on with: es-service resume trusted" in capsys.readouterr().out
    assert (
        cli.main(["resume", "trusted", *where, "--set", "deployment.pool=local", "--set", "deployment.generations=5"])
        == 0
    )
    assert RunDirectory(directory.path.parent, "trusted").journal_path.read_bytes() == whole.journal


def test_the_head_draws_the_slice_that_it_makes_too(tiny_config):
    """A lie about one slice of several is found sooner or later, and one about none never."""
    config = deployed(sliced(tiny_config()), generations=200)
    parts = len(slices(layout_of(config)))
    assert parts > 1
    with pytest.raises(WrongStepError):
        train(config, pool(Evaluator, Evaluator), prepare=conspiring(0, about={0}))


def test_a_run_that_is_stopped_waits_for_the_slice_that_the_head_makes(tiny_config):
    """The end of the run is no place for a lie either."""
    config = deployed(sliced(tiny_config()), generations=100)
    directory = RunDirectory(config.deployment.runs_dir, "stopped")
    coordinator = open_session(config, directory, False, ReferenceOps(), pool(Evaluator, Evaluator))
    conspiring(2)(coordinator)
    publish = coordinator._publish

    def stopped(commit):
        publish(commit)
        if commit.generation == 2:
            coordinator.stop("enough")

    coordinator._publish = stopped
    with pytest.raises(WrongStepError):
        coordinator.run()


def test_keyframes_that_cannot_be_set_aside_are_named(tiny_config, monkeypatch):
    rename = Path.rename

    def stuck(self, target):
        if self.name == "1.safetensors":
            raise PermissionError("read-only")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stuck)
    directory = betrayed(sliced(tiny_config()), until=3, left=[1])
    (failed,) = [event for event in directory.events() if event["kind"] == "failed"]
    assert "w0" in failed["reason"]
    assert f"Remove {directory.keyframes_path / '1.safetensors'} by hand" in failed["reason"]
