"""A population that grows at a generation boundary: a change record of the journal, replayed like the rest."""

from __future__ import annotations

import random

import pytest
from harness import chaos, deployed, local, train

from es_service import cli
from es_service.errors import ConfigError
from es_service.journal import scan
from es_service.replay import Replay
from es_service.session import open_session
from workers.ops.reference import ReferenceOps


def grown(tiny_config, make_pool=None, prepare=lambda coordinator: None, **changes):
    """Five generations of 40 members, then up to eight of 80."""
    run = train(deployed(tiny_config(), **changes), make_pool)
    config = tiny_config(population=80, deployment__generations=8)
    return train(deployed(config, **changes), make_pool, run.directory, prepare=prepare)


def test_the_change_is_in_the_journal_and_both_parts_are_what_they_would_be_alone(tiny_config):
    small, run = train(tiny_config()), grown(tiny_config)
    assert [(change.generation, change.spec["population"]) for change in run.contents.changes] == [(5, 80)]
    assert run.contents.header == small.contents.header
    assert list(run.contents.commits.between(0, 5)) == list(small.contents.commits)
    assert [commit.units for commit in run.contents.commits] == [20] * 5 + [40] * 3
    assert run.directory.read_config().population == 80


@pytest.mark.parametrize("seed", range(3))
def test_who_does_the_work_does_not_matter(tiny_config, seed):
    expected = grown(tiny_config)
    other = grown(tiny_config, local(3, random.Random(seed).choice), lease_pairs=10)
    assert other.journal == expected.journal
    faulty = grown(tiny_config, chaos(seed), lambda c: None, lease_timeout_seconds=5.0, keyframe_every=100)
    assert faulty.journal == expected.journal


def test_replay_with_and_without_keyframes(tiny_config):
    run = grown(tiny_config)
    contents = scan(run.directory.journal_path)
    last = Replay(contents, run.config, run.directory, ReferenceOps()).rebuild(8)
    replay = Replay(contents, run.config, run.directory, ReferenceOps())
    from_start = replay.rebuild(8, replay.first())
    assert last.digest == from_start.digest == contents.close.digest
    early = Replay(contents, run.config, run.directory, ReferenceOps())
    assert early.rebuild(4).digest == contents.commits[4].digest
    assert not early.problems, "keyframes of the smaller population are those of the same run"


def test_a_resume_that_changes_nothing_writes_no_change(tiny_config):
    run = grown(tiny_config)
    again = train(tiny_config(population=80, deployment__generations=9), None, run.directory)
    assert len(again.contents.changes) == 1


def test_counters_go_on_across_the_change(tiny_config):
    run = grown(tiny_config)
    coordinator = open_session(
        tiny_config(population=80, deployment__generations=9), run.directory, True, ReferenceOps(), local()
    )
    sample = coordinator.telemetry.metrics.registry.get_sample_value
    counted = sum(sample("es_service_votes_total", {"sign": sign}) for sign in ("plus", "zero", "minus"))
    assert counted == 5 * 20 + 3 * 40
    coordinator.run()


def test_nothing_else_may_change(tiny_config):
    run = train(tiny_config())
    with pytest.raises(ConfigError, match=r"seed is 1 in the journal and 2 .* only the population may change"):
        train(tiny_config(seed=2, population=80, deployment__generations=8), None, run.directory)
    assert not scan(run.directory.journal_path).changes


def test_from_the_command_line(tiny_config, capsys, tmp_path):
    run = train(tiny_config())
    flags = [run.directory.name, "--runs-dir", str(run.directory.path.parent)]
    with_more = [*flags, "--set", "deployment.generations=7", "--set", "population=80"]
    assert cli.main(["resume", *with_more]) == 0
    assert cli.main(["journal", *flags]) == 0
    assert cli.main(["plot", *flags]) == 0
    assert cli.main(["status", *flags]) == 0
    assert cli.main(["replay", *flags, "--verify"]) == 0
    out = capsys.readouterr().out
    assert "8 recorded digests" in out
    steps = tmp_path / "model.steps"
    assert cli.main(["steps", *flags, "--out", str(steps)]) == 0
    other = ["--resume-as", "other", "--runs-dir", str(tmp_path)]
    assert cli.main(["from-steps", str(steps), *other]) == 0
    ours, theirs = (scan(path / "journal.bin") for path in (run.directory.path, tmp_path / "other"))
    assert list(ours.commits) == list(theirs.commits)
    assert ours.changes == theirs.changes
    assert cli.main(["resume", *flags, "--set", "population=41"]) != 0
    assert "population: 41 is odd" in capsys.readouterr().err
