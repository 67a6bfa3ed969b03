"""Keyframes beside training: how often, and how many stay."""

from __future__ import annotations

import pytest
from harness import train

from es_service.keyframes import list_generations


@pytest.mark.parametrize(("keep", "expected"), [(0, [0, 1, 2, 3, 4]), (2, [3, 4]), (9, [0, 1, 2, 3, 4])])
def test_the_newest_keyframes_are_kept(tiny_config, keep, expected):
    run = train(tiny_config(deployment__generations=4, deployment__keyframe_every=1, deployment__keep_keyframes=keep))
    assert list_generations(run.directory.keyframes_path) == expected
