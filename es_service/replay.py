"""The journal is the run: parameters of any generation from the config and the votes."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from es_service import keyframes
from es_service.aggregator import Canonical
from es_service.algorithms.base import AbstractAlgorithm
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import DivergenceError, RunError
from es_service.journal import JournalContents
from es_service.problem import algorithm_of, initial_parameters, layout_of
from es_service.specs import config_at, spec_hashes
from es_service.types import Ops

__all__ = ["Replay"]


class Replay:
    """Rebuilds generations of one journal with one backend. Every digest that the journal holds is compared."""

    def __init__(self, contents: JournalContents, config: RunConfig, directory: RunDirectory, ops: Ops) -> None:
        self.contents = contents
        self.config = config
        self.directory = directory
        self.ops = ops
        self.layout = layout_of(config)
        self.problems: list[str] = []
        """Keyframes that were passed over, and why."""

    def first(self) -> Canonical:
        """Generation 0, from the seed."""
        parameters_P = initial_parameters(self.config)
        return self._checked(Canonical(0, parameters_P, self.ops.digest(self.layout, parameters_P)))

    def nearest(self, generation: int) -> Canonical:
        """The newest sound keyframe up to `generation`, or generation 0."""
        self.problems = []
        hashes = spec_hashes(self.contents)
        while generation >= 0:
            keyframe, problems = keyframes.newest_valid(
                self.directory.keyframes_path, self.layout, hashes, self.ops.digest, up_to=generation
            )
            self.problems += problems
            if keyframe is None:
                break
            if self._recorded(keyframe.generation) in (None, keyframe.digest):
                return Canonical(keyframe.generation, keyframe.parameters_P, keyframe.digest)
            self.problems.append(f"keyframe {keyframe.generation}: its digest is not the one in the journal")
            generation = keyframe.generation - 1
        return self.first()

    def steps(self, start: Canonical, to: int) -> Iterator[Canonical]:
        """Each generation from `start.generation + 1` to `to`; the caller may keep what it is given."""
        if to > len(self.contents.commits):
            end = len(self.contents.commits)
            raise RunError(f"{self.directory.path}: generation {to} does not exist; the journal ends at {end}")
        algorithm = self._algorithm(start.generation)
        current = start
        for commit in self.contents.commits.between(start.generation, to):
            if any(change.generation == commit.generation for change in self.contents.changes):
                algorithm = self._algorithm(commit.generation)
            parameters_P = current.parameters_P.copy()
            algorithm.update(self.ops, parameters_P, commit.generation, commit.threshold, commit.record)
            digest = self.ops.digest(self.layout, parameters_P)
            current = self._checked(Canonical(commit.generation + 1, parameters_P, digest))
            yield current

    def rebuild(self, to: int, start: Canonical | None = None) -> Canonical:
        """Generation `to`, from the nearest keyframe unless a start is given."""
        start = start or self.nearest(to)
        return deque(self.steps(start, to), maxlen=1).pop() if to > start.generation else start

    def _algorithm(self, generation: int) -> AbstractAlgorithm:
        return algorithm_of(config_at(self.contents, generation))

    def _checked(self, canonical: Canonical) -> Canonical:
        """Compare with the digest that the journal holds for this generation."""
        recorded = self._recorded(canonical.generation)
        if recorded is not None and recorded != canonical.digest:
            raise DivergenceError(
                f"{self.directory.path}: generation {canonical.generation} has digest {canonical.digest:016x}, the "
                f"journal says {recorded:016x}; verify this backend with `es-service verify` and the journal's copy"
            )
        return canonical

    def _recorded(self, generation: int) -> int | None:
        if generation < len(self.contents.commits):
            return int(self.contents.commits.fields["digest"][generation])
        close = self.contents.close
        if close is not None and close.generation == generation:
            return close.digest
        return self.contents.header.digest if generation == 0 else None
