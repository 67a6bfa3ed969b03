"""`es-service steps`: a run as the list of its steps, in one file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from es_service import steps as format_
from es_service import votes
from es_service.coding import entropy_bits
from es_service.commands.display import print_table
from es_service.commands.sources import (
    OpenedRun,
    directory_of,
    model_of_run,
    open_run,
    parent_exists,
    portable_config,
)
from es_service.errors import StepsError
from es_service.problem import algorithm_of
from es_service.specs import config_at, spans
from es_service.steps import Step, Steps, StepsHeader
from es_service.types import Ops
from es_service.wiring import kernels

__all__ = ["figures", "run", "write_steps"]


def run(arguments: Namespace) -> int:
    """Write the file, read it again, say what it holds."""
    out = parent_exists("--out", arguments.out)
    opened = open_run(directory_of(arguments))
    ops, _ = kernels(arguments.backend)
    written = write_steps(out, opened, ops, not arguments.without_scores, arguments.generation)
    generations, digest = written.header.generations, written.header.digest
    print(f"{out}: {generations} generations of {opened.directory.name}, ending at digest {digest:016x}")
    print_table(("part", "bytes", "bits a vote", ""), figures(written))
    return 0


def write_steps(path: Path, opened: OpenedRun, ops: Ops, scores: bool = True, generation: int | None = None) -> Steps:
    """Write a run's steps up to a generation, by default the last.

    They are read again: every vote and number in the file is compared with the journal. Raises `DivergenceError` where
    the kernels do not come to a digest of the journal from its last keyframe up to there.
    """
    contents = opened.contents
    last = model_of_run(opened, ops, generation)
    first = config_at(contents, 0).model_copy(update={"deployment": opened.config.deployment})
    end = last.generation
    changes = tuple((change.generation, change.spec) for change in contents.changes if change.generation <= end)
    format_.write(
        path, StepsHeader(portable_config(first), changes, end, last.digest, scores), _steps(opened, scores, end)
    )
    written = format_.scan(path)
    pairs = zip(written.between(0, end), _steps(opened, scores, end), strict=True)
    for found, step in pairs:
        if not np.array_equal(found.votes_Q, step.votes_Q) or _numbers(found) != _numbers(step):
            raise StepsError(f"{path}: generation {step.generation} reads otherwise than it was written: a bad disk")
    return written


def _numbers(step: Step) -> tuple[int, int, format_.Scores | None]:
    return step.generation, step.threshold, step.scores


def _steps(opened: OpenedRun, scores: bool, end: int) -> Iterator[Step]:
    for first, stop, config in spans(opened.contents):
        algorithm = algorithm_of(config)
        for commit in opened.contents.commits.between(min(first, end), min(stop, end)):
            votes_Q = algorithm.votes(commit.record)
            if votes.pack(votes_Q) != commit.record:
                raise StepsError(f"{opened.contents.path}: the records of this algorithm are more than packed votes")
            numbers = (commit.score_sum, commit.score_min, commit.score_max) if scores else None
            yield Step(commit.generation, commit.threshold, votes_Q, numbers, commit.digest)


def figures(steps: Steps) -> list[tuple[str, str, str, str]]:
    """Rows of (part of the file, bytes, bits a vote, remark); the first is the entropy, which is no part."""
    counts = np.zeros(3, np.int64)
    for step in steps.between(0, steps.header.generations):
        counts += np.bincount(step.votes_Q % 3, minlength=3)
    zero, plus, minus = counts.tolist()
    total = zero + plus + minus
    entropy = entropy_bits((zero, plus, minus))
    code, scores = (sum(getattr(block, name) for block in steps.blocks) for name in ("code_bytes", "score_bytes"))
    sizes = {"coded votes": code, "scores": scores, "all else": steps.bytes - code - scores, "file": steps.bytes}
    remarks = {
        "coded votes": f"{total:,} votes: {plus:,} +1, {zero:,} 0, {minus:,} -1",
        "scores": "only to go on training" if steps.header.scores else "left out",
        "all else": "spec, thresholds, digests, checksums",
    }
    first = ("entropy", f"{-(-entropy * total // 8):,.0f}", _bits(entropy), "of the votes, if each were drawn alone")
    each = ((name, f"{size:,}", _bits(8 * size / max(1, total)), remarks.get(name, "")) for name, size in sizes.items())
    return [first, *each]


def _bits(value: float) -> str:
    return f"{value:.4f}"
