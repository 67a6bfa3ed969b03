"""The journal is the run: votes alone give every keyframe, and a bad keyframe costs time and nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
from harness import deployed, expected, train

from es_service import keyframes
from es_service.directory import RunDirectory
from es_service.errors import DivergenceError, RunError
from es_service.problem import layout_of
from es_service.replay import Replay
from workers.ops.reference import ReferenceOps


@pytest.fixture
def run(tiny_config):
    return train(tiny_config(deployment__keyframe_every=2))


def replay_of(run):
    return Replay(run.contents, run.config, run.directory, ReferenceOps())


def keyframe(run, generation):
    path = run.directory.keyframes_path / f"{generation}.safetensors"
    return keyframes.load(path, layout_of(run.config), run.config.spec_hash, ReferenceOps().digest)


def test_votes_alone_give_every_keyframe(run):
    replay = replay_of(run)
    found = {step.generation: step for step in replay.steps(replay.first(), 5)}
    saved = keyframes.list_generations(run.directory.keyframes_path)
    assert saved == [0, 2, 4, 5]
    for generation in saved[1:]:
        assert found[generation].digest == keyframe(run, generation).digest
        assert np.array_equal(found[generation].parameters_P, keyframe(run, generation).parameters_P)
    assert found[5].digest == run.contents.close.digest


@pytest.mark.parametrize("to", range(6))
def test_from_a_keyframe_or_from_the_start_is_the_same(run, to):
    replay = replay_of(run)
    near, far = replay.rebuild(to), replay.rebuild(to, replay.first())
    assert (near.generation, near.digest) == (far.generation, far.digest) == (to, near.digest)
    assert np.array_equal(near.parameters_P, far.parameters_P)
    assert replay.nearest(to).generation == max(g for g in (0, 2, 4, 5) if g <= to)


def test_a_generation_beyond_the_end_is_an_error(run):
    with pytest.raises(RunError, match="generation 6 does not exist; the journal ends at 5"):
        replay_of(run).rebuild(6)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_keyframe_is_passed_over_and_reported(run, damage, tiny_config):
    path = run.directory.keyframes_path / "5.safetensors"
    data = bytearray(path.read_bytes())
    data[-random.Random(damage).randrange(1, 1000)] ^= 1
    path.write_bytes({"flip": bytes(data), "cut": bytes(data[: len(data) // 2]), "empty": b""}[damage])
    replay = replay_of(run)
    assert replay.nearest(5).generation == 4
    assert len(replay.problems) == 1
    assert "5.safetensors" in replay.problems[0]
    go_on = deployed(run.config, generations=7)
    again = train(go_on, directory=run.directory)
    assert again.events["keyframe_skipped"] == 1
    assert again.journal == expected(tiny_config(deployment__generations=7))


def test_a_sound_keyframe_of_other_parameters_is_passed_over_too(run):
    frame = keyframe(run, 4)
    parameters_P, layout = frame.parameters_P.copy(), layout_of(run.config)
    parameters_P[0] ^= 1
    keyframes.save(
        run.directory.keyframes_path, layout, parameters_P, 5, ReferenceOps().digest(layout, parameters_P),
        run.config.spec_hash,
    )  # fmt: skip
    replay = replay_of(run)
    assert replay.nearest(5).generation == 4
    assert "not the one in the journal" in replay.problems[0]
    assert replay.rebuild(5).digest == run.contents.close.digest


def test_without_keyframes_everything_is_rebuilt(run):
    for path in run.directory.keyframes_path.iterdir():
        path.unlink()
    assert replay_of(run).rebuild(5).digest == run.contents.close.digest


def test_a_backend_that_computes_other_bits_is_found(run):
    class Broken(ReferenceOps):
        def _apply(self, parameters_P, sums_P, threshold):
            return super()._apply(parameters_P, sums_P, threshold + 16)

    sums_P = np.full(1, 1, np.int32)
    assert Broken().apply(np.zeros(1, np.int8), sums_P, 16) == 0  # it is broken
    replay = Replay(run.contents, run.config, run.directory, Broken())
    with pytest.raises(DivergenceError, match="the journal says"):
        replay.rebuild(5, replay.first())


def test_a_torn_tail_is_cut_reported_and_made_again(run, tiny_config):
    whole = run.journal
    end = int(run.contents.commits.offsets[4])
    run.directory.journal_path.write_bytes(whole[: end + 9])
    directory = RunDirectory(run.directory.path.parent, run.directory.name)
    again = train(tiny_config(deployment__keyframe_every=2), directory=directory)
    assert again.journal == whole
    assert again.events["torn_tail"] == 1
