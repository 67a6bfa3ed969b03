"""`es-service replay`: parameters from votes alone, and the proof that keyframes and digests agree with them."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np

from es_service import keyframes
from es_service.aggregator import Canonical
from es_service.commands.display import progress
from es_service.commands.sources import check_generation, directory_of, open_run
from es_service.errors import DivergenceError, KeyframeError
from es_service.replay import Replay
from es_service.specs import spec_hashes
from es_service.wiring import kernels

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Rebuild one generation; with --verify from generation 0, comparing all that the run left behind."""
    directory = directory_of(arguments)
    saved = keyframes.list_generations(directory.keyframes_path)  # before the scan: a run under way saves more
    opened = open_run(directory)
    last = len(opened.contents.commits)
    to = check_generation("--to", arguments.to, last)
    ops, why = kernels(arguments.backend)
    print(f"kernels: {why}", flush=True)
    replay = Replay(opened.contents, opened.config, directory, ops)
    if not arguments.verify:
        return _rebuild(replay, to)
    wanted = [generation for generation in saved if generation <= to]
    differences = [f"keyframe {g}: the journal ends at generation {last}" for g in saved if g > last]
    return _verify(replay, to, wanted, differences)


def _rebuild(replay: Replay, to: int) -> int:
    start = replay.nearest(to)
    for problem in replay.problems:
        print(f"passed over: {problem}")
    last = start
    for current in _shown(replay.steps(start, to), start.generation, to):
        last = current
    where = f"keyframe {start.generation}" if start.generation else "generation 0"
    print(f"generation {to}: digest {last.digest:016x}, from {where} and {to - start.generation} generations of votes")
    return 0


def _verify(replay: Replay, to: int, saved: Sequence[int], differences: list[str]) -> int:
    current = None
    try:
        first = replay.first()
        for current in _shown(chain([first], replay.steps(first, to)), -1, to):
            if current.generation in saved:
                differences += _compare(replay, current)
    except DivergenceError as error:
        differences.append(str(error))
    for difference in differences:
        print(f"DIFFERENT: {difference}")
    if differences or current is None:
        print(f"{replay.directory.name}: {len(differences)} differences")
        return 1
    agree = f"{_digests(replay, to)} recorded digests and {len(saved)} keyframes agree"
    print(
        f"{replay.directory.name}: {to} generations replayed from votes alone; {agree}; "
        f"generation {to} has digest {current.digest:016x}"
    )
    return 0


def _digests(replay: Replay, to: int) -> int:
    """How many of generations 0 .. `to` have a digest in the journal; `Replay` has compared all of them."""
    commits, close = len(replay.contents.commits), replay.contents.close
    return min(to + 1, max(1, commits)) + (close is not None and to == close.generation > 0)


def _compare(replay: Replay, current: Canonical) -> list[str]:
    """What is wrong with the keyframe of this generation."""
    path = replay.directory.keyframes_path / f"{current.generation}.safetensors"
    try:
        keyframe = keyframes.load(path, replay.layout, spec_hashes(replay.contents), replay.ops.digest)
    except KeyframeError as error:
        return [str(error)]
    places = np.flatnonzero(keyframe.parameters_P != current.parameters_P)
    if not len(places):
        return []
    return [f"{path}: {len(places)} parameters differ from the replayed ones, the first at {places[0]}"]


def _shown(steps: Iterator[Canonical], done: int, to: int) -> Iterator[Canonical]:
    with progress("replay", to) as show:
        for current in steps:
            done += 1
            show(done)
            yield current
