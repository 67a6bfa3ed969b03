"""Density schedules of noise_step: how many non-zeros each perturbation of a generation has.

A schedule is a pure function of the generations that are committed, as the journal has them. Its value is recorded with
each generation, so replay never computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["AutomaticDensity", "ConstantDensity", "DensityConfig", "StagedDensity", "Step"]

_LOWER, _UPPER = Fraction(3, 20), Fraction(3, 10)
_ERRORS, _LEAST, _WINDOW = 3, 4, 64


@dataclass(frozen=True, slots=True)
class Step:
    """What the journal has of one committed generation of noise_step.

    `loss` is the training loss of the parameters that the votes were cast on, in nats an example. `level` is the same
    loss and `promise` the sum of |alignment| over the perturbations, as integers in 1/16 bit over the batch.
    """

    nonzeros: int
    loss: float
    level: int
    promise: int


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


class AutomaticDensity(_Config):
    """Fewer non-zeros when less than `_LOWER` of what the alignments promise comes true, more above `_UPPER`.

    The last n <= 64 generations had the same k, losses l_1 .. l_n, and promises p_t = sum of |alignment|; to first
    order the loss falls by p_t at best. rho is minus the slope of the least-squares line of l_t over
    c_t = p_1 + .. + p_(t-1), and s its standard error. k is halved if rho + 3 s < 0.15, doubled if rho - 3 s > 0.3.
    """

    kind: Literal["automatic"] = "automatic"
    nonzeros: int = Field(16, ge=1, lt=1 << 31)
    """Non-zeros k of the first generation."""
    most: int = Field(256, ge=1, lt=1 << 31)
    """The largest k."""

    @model_validator(mode="after")
    def _starts_within(self) -> AutomaticDensity:
        if self.nonzeros > self.most:
            raise ValueError(f"{self.nonzeros} non-zeros at first are more than `most`, {self.most}")
        return self

    def next(self, history: Sequence[Step]) -> int:
        """K of the generation after `history`. Exact integers, so that every head decides alike."""
        if not history:
            return self.nonzeros
        k = history[-1].nonzeros
        window = [history[-1]]
        while len(window) < min(_WINDOW, len(history)) and (step := history[-1 - len(window)]).nonzeros == k:
            window.append(step)
        if len(window) < _LEAST:
            return k
        window.reverse()
        if _surely(window, _LOWER, -1):
            return max(1, k // 2)
        return min(self.most, 2 * k) if _surely(window, _UPPER, 1) else k


def _surely(window: Sequence[Step], bound: Fraction, side: int) -> bool:
    """Whether rho lies above (`side` 1) or below (-1) the bound by more than 3 standard errors.

    With n-fold sums of squares X of c, Y of l and minus products Z: rho = Z / X, s^2 = (X Y - Z^2) / ((n - 2) X^2).
    """
    n = len(window)
    level_n = [step.level for step in window]
    path_n = list(accumulate((step.promise for step in window[:-1]), initial=0))
    x = n * sum(c * c for c in path_n) - sum(path_n) ** 2
    y = n * sum(level * level for level in level_n) - sum(level_n) ** 2
    z = sum(path_n) * sum(level_n) - n * sum(c * level for c, level in zip(path_n, level_n, strict=True))
    distance = side * (z * bound.denominator - bound.numerator * x)
    return distance > 0 and (n - 2) * distance**2 > (_ERRORS * bound.denominator) ** 2 * (x * y - z * z)


DensityConfig = Annotated[ConstantDensity | StagedDensity | AutomaticDensity, Field(discriminator="kind")]
