"""Density schedules of noise_step: how many non-zeros each perturbation of a generation has.

A schedule is a pure function of the generations that are committed, as the journal has them. Its value is recorded with
each generation, so replay never computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["ConstantDensity", "DensityConfig", "StagedDensity", "Step"]


@dataclass(frozen=True, slots=True)
class Step:
    """What the journal has of one committed generation of noise_step, losses in nats an example.

    `loss` is the training loss of the parameters that the votes were cast on, `largest` the largest |alignment| of its
    perturbations, both rounded to 1/16 bit over the batch.
    """

    nonzeros: int
    loss: float
    largest: float


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ConstantDensity(_Config):
    """The same number of non-zeros in every generation."""

    kind: Literal["constant"] = "constant"
    nonzeros: int = Field(1, ge=1, lt=1 << 31)
    """Non-zeros k of a perturbation; the expected number with Bernoulli supports."""

    @property
    def most(self) -> int:
        """The largest k that the schedule can ask for."""
        return self.nonzeros

    def next(self, history: Sequence[Step]) -> int:  # noqa: ARG002 - same signature as its siblings
        """K of the generation after `history`, which holds all committed ones in order."""
        return self.nonzeros


class StagedDensity(_Config):
    """The published schedule: fewer non-zeros once the loss has fallen below fixed values, and never more again."""

    kind: Literal["staged"] = "staged"
    nonzeros: tuple[Annotated[int, Field(ge=1, lt=1 << 31)], ...] = Field((16, 4, 1), min_length=1)
    """Non-zeros k of each stage, falling."""
    below: tuple[float, ...] = (2.0, 1.0)
    """Training loss, in nats an example, below which each later stage begins, falling."""

    @model_validator(mode="after")
    def _stages_fall(self) -> StagedDensity:
        if len(self.below) != len(self.nonzeros) - 1:
            raise ValueError(f"{len(self.nonzeros)} stages take {len(self.nonzeros) - 1} losses in `below`")
        for values in (self.nonzeros, self.below):
            if sorted(values, reverse=True) != list(values):
                raise ValueError(f"{list(values)} must fall from stage to stage")
        return self

    @property
    def most(self) -> int:
        """The largest k that the schedule can ask for."""
        return self.nonzeros[0]

    def next(self, history: Sequence[Step]) -> int:
        """K of the generation after `history`."""
        if not history:
            return self.nonzeros[0]
        last = history[-1]
        stage = sum(last.loss < below for below in self.below)
        return min(last.nonzeros, self.nonzeros[stage])


DensityConfig = Annotated[ConstantDensity | StagedDensity, Field(discriminator="kind")]
