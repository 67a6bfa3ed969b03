"""Workers that vote wrongly on right parameters. With every lease audited they change no byte of the journal."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from harness import deployed, train

from es_service import votes
from es_service.errors import DivergenceError
from es_service.journal import scan
from es_service.replay import Replay
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

    config = audited()
    with pytest.raises(DivergenceError, match="every worker is quarantined, the last was w0") as raised:
        train(config, pool(LateLiar))
    assert "committed generations with its votes: 0-1" in str(raised.value)
