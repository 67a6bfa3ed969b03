"""How the members of a population share the rows of text: `FeedingConfig`, one variant for each way of the paper."""

from __future__ import annotations

from math import isqrt
from typing import Annotated, Literal

from pydantic import Field

from es_service.data.config import FrozenConfig
from es_service.errors import ConfigError


class MembersPerSequenceConfig(FrozenConfig):
    """A fixed number of members share a row of text, and both members of a pair always do (EGG v1)."""

    kind: Literal["members_per_sequence"] = "members_per_sequence"
    """Selects this variant."""

    members: int = Field(ge=2, multiple_of=2)
    """G, even, divides the population: row r feeds members r G .. r G + G - 1."""

    def check(self, population: int) -> None:
        """Raise ConfigError unless this feeding is possible with `population` members."""
        _check_population(population)
        if population % self.members:
            raise ConfigError(
                f"feeding.members: {self.members} does not divide the population of {population}; "
                f"near it are {_near(self.members, [d for d in divisors(population) if d % 2 == 0])}"
            )

    def num_rows(self, population: int) -> int:
        """Rows of text n_seq that the training bytes are cut into."""
        return population // self.members

    def passes(self, population: int) -> int:  # noqa: ARG002 - same signature as its sibling
        """Rows that each pair scores in one generation."""
        return 1


class SequencesPerGenerationConfig(FrozenConfig):
    """A fixed number of rows of text is spread over the population (EGG v2)."""

    kind: Literal["sequences_per_generation"] = "sequences_per_generation"
    """Selects this variant."""

    sequences: int = Field(ge=1)
    """b. At most the number of pairs: divides it, row r feeds pairs r N/(2b) .. (r + 1) N/(2b) - 1. Above it:
    a multiple of it, pair q scores rows q + k N/2 and adds its scores before the sign."""

    def check(self, population: int) -> None:
        """Raise ConfigError unless this feeding is possible with `population` members."""
        _check_population(population)
        pairs = population // 2
        if self.sequences <= pairs and pairs % self.sequences:
            raise ConfigError(
                f"feeding.sequences: {self.sequences} does not divide the {pairs} pairs of population {population}; "
                f"near it are {_near(self.sequences, divisors(pairs))}"
            )
        if self.sequences > pairs and self.sequences % pairs:
            below = self.sequences // pairs * pairs
            raise ConfigError(
                f"feeding.sequences: {self.sequences} is more than the {pairs} pairs of population {population} and "
                f"must be a multiple of them; near it are {below} and {below + pairs}"
            )

    def num_rows(self, population: int) -> int:  # noqa: ARG002 - same signature as its sibling
        """Rows of text n_seq that the training bytes are cut into."""
        return self.sequences

    def passes(self, population: int) -> int:
        """Rows R that each pair scores in one generation."""
        return max(1, self.sequences // (population // 2))


class BatchConfig(FrozenConfig):
    """All perturbations of a generation are judged on the same batch of examples (noise_step).

    Batches follow each other through endless shuffled passes over the training examples.
    """

    kind: Literal["batch"] = "batch"
    """Selects this variant."""

    size: int = Field(1024, ge=1, le=1 << 20)
    """Examples B in a batch: images, or bytes of text with their context."""


RowsConfig = MembersPerSequenceConfig | SequencesPerGenerationConfig
FeedingConfig = Annotated[RowsConfig | BatchConfig, Field(discriminator="kind")]


def _check_population(population: int) -> None:
    if population < 2 or population % 2:
        raise ConfigError(f"population: {population} must be even and at least 2; members come in antithetic pairs")


def divisors(total: int) -> list[int]:
    """Divisors of a number, ascending."""
    small = [d for d in range(1, isqrt(total) + 1) if total % d == 0]
    return small + [total // d for d in reversed(small) if d * d != total]


def _near(wanted: int, candidates: list[int]) -> str:
    """Candidates (ascending) nearest below and above `wanted`."""
    near = [d for d in candidates if d < wanted][-1:] + [d for d in candidates if d > wanted][:1]
    return " and ".join(str(d) for d in near)
