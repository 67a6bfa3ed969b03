"""Keyframes beside training: how often, and how many stay."""

from __future__ import annotations

import pytest
from harness import train

from es_service.commands.sample import sample_run
from es_service.keyframes import list_generations


@pytest.mark.parametrize(("keep", "expected"), [(0, [0, 1, 2, 3, 4]), (2, [3, 4]), (9, [0, 1, 2, 3, 4])])
def test_the_newest_keyframes_are_kept(tiny_config, keep, expected):
    run = train(tiny_config(deployment__generations=4, deployment__keyframe_every=1, deployment__keep_keyframes=keep))
    assert list_generations(run.directory.keyframes_path) == expected


def test_samples_are_of_the_evaluated_generations_and_change_no_bit_of_the_run(tiny_config):
    run = train(tiny_config(deployment__sample_bytes=40))
    without = train(tiny_config(deployment__sample_bytes=0))
    assert run.journal == without.journal
    assert not without.directory.samples_path.exists()
    samples = list(run.directory.samples())
    assert [row["generation"] for row in samples] == [0, 3, 5]
    assert all(0 < len(row["text"]) <= 40 for row in samples)
    assert samples[0]["text"] != samples[-1]["text"]


def test_a_sample_is_what_the_sample_command_writes(tiny_config):
    run = train(tiny_config(deployment__sample_bytes=60))
    *_, newest = run.directory.samples()
    assert newest["text"] == sample_run(run.directory, run.config, b"", 60, temperature=0.7, seed=1)
