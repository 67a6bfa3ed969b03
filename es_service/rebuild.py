"""From steps to parameters: a whole model of any generation, or some rows of one tensor without the others.

A weight moves by its own sum of noise alone, so rows are rebuilt from their own initial values and their own noise.
Suffixes: P parameters, N elements of a part.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from pydantic import ValidationError

from es_service import votes
from es_service.aggregator import Canonical
from es_service.algorithms.base import AbstractAlgorithm
from es_service.config import RunConfig
from es_service.errors import DivergenceError, StepsError
from es_service.problem import algorithm_of, initial_parameters, initial_part, layout_of
from es_service.steps import Step, Steps
from es_service.types import Int8Array, Ops, Part

__all__ = ["Rebuild"]


class Rebuild:
    """Rebuilds from one steps file with one backend; every digest of whole parameters in the file is compared."""

    def __init__(self, steps: Steps, ops: Ops) -> None:
        self.steps = steps
        self.ops = ops
        self.config = self.config_at(0)
        self.layout = layout_of(self.config)

    def config_at(self, generation: int) -> RunConfig:
        """The config of a generation; its deployment has the evaluation's sizes, and defaults."""
        header = self.steps.header
        try:
            deployment = header.config.get("deployment", {})
            return RunConfig.model_validate(header.spec_at(generation) | {"deployment": deployment})
        except ValidationError as error:
            raise StepsError(
                f"{self.steps.path}: this version of es-service does not know the spec; use the one that wrote the "
                f"file: {error}"
            ) from error

    def model(self, generation: int) -> Canonical:
        """All parameters of a generation, 0 to the last."""
        return deque(self.models(generation), maxlen=1).pop()

    def models(self, to: int) -> Iterator[Canonical]:
        """Generations 0 to `to`; the caller may keep what it is given."""
        parameters_P = initial_parameters(self.config)
        current = Canonical(0, parameters_P, self.ops.digest(self.layout, parameters_P))
        for step, algorithm in self._applied(to):
            self._check(current, step.digest)
            yield current
            parameters_P = current.parameters_P.copy()
            record = votes.pack(step.votes_Q)
            algorithm.update(self.ops, parameters_P, step.generation, step.threshold, record)
            current = Canonical(step.generation + 1, parameters_P, self.ops.digest(self.layout, parameters_P))
        if to == self.steps.header.generations:
            self._check(current, self.steps.header.digest)
        yield current

    def part(self, part: Part, generation: int) -> Int8Array:
        """Rows of one tensor at a generation, in the part's shape. No digest covers a part alone."""
        values_N = initial_part(self.config, part)
        for step, algorithm in self._applied(generation):
            record = votes.pack(step.votes_Q)
            algorithm.update_part(self.ops, part, values_N, step.generation, step.threshold, record)
        return values_N.reshape(part.shape)

    def _applied(self, to: int) -> Iterator[tuple[Step, AbstractAlgorithm]]:
        """The steps before a generation, each with its update rule."""
        algorithm, starts = algorithm_of(self.config), {first for first, _ in self.steps.header.changes}
        for step in self.steps.between(0, to):
            if step.generation in starts:
                algorithm = algorithm_of(self.config_at(step.generation))
            yield step, algorithm

    def _check(self, canonical: Canonical, digest: int | None) -> None:
        if digest is not None and digest != canonical.digest:
            raise DivergenceError(
                f"{self.steps.path}: generation {canonical.generation} has digest {canonical.digest:016x}, the file "
                f"says {digest:016x}; verify this backend with `es-service verify`, and take another copy of the file"
            )
