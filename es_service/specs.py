"""The specs that a run has had: a population that grows is another spec of the same run, from one generation on."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import ValidationError

from es_service.config import RunConfig
from es_service.errors import RunError
from es_service.journal import JournalContents

__all__ = ["config_at", "spans", "spec_hashes"]


def config_at(contents: JournalContents, generation: int) -> RunConfig:
    """The spec that the journal has for a generation, with a default deployment."""
    try:
        return RunConfig.model_validate(contents.spec_at(generation))
    except ValidationError as error:
        raise RunError(
            f"{contents.path}: this version of es-service does not know the run's spec; use the one that wrote it: "
            f"{error}"
        ) from error


def spans(contents: JournalContents) -> Iterator[tuple[int, int, RunConfig]]:
    """(first, stop, config) of each stretch of generations with one spec; one that is yet to come is empty."""
    starts = sorted({0, *(change.generation for change in contents.changes)})
    for first, stop in zip(starts, [*starts[1:], len(contents.commits)], strict=True):
        yield first, stop, config_at(contents, first)


def spec_hashes(contents: JournalContents) -> frozenset[str]:
    """The spec hashes that a keyframe of this run may carry."""
    return frozenset(config_at(contents, first).spec_hash for first, _, _ in spans(contents))
