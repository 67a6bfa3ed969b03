"""What every fitness problem owes to the evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from es_service.types import Int8Array

__all__ = ["Outcome", "Task"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a task has found out about the units of a lease.

    `values` is what the algorithm's `encode` takes; the scores are those of the members, in 1/16 bit. `model_bytes`
    counts the bytes, or examples, that went through the model.
    """

    values: npt.NDArray[Any]
    score_sum: int
    score_min: int
    score_max: int
    model_bytes: int


class Task(Protocol):
    """Fitness of the units of one run. Holds a snapshot of one generation's parameters."""

    wave_pairs: int
    """Units that fill the worker's device once; 0 if any number will do."""

    def prepare(self, parameters_P: Int8Array) -> None:
        """Take the parameters on which the next units are judged; the caller may change the array afterwards."""
        ...

    def evaluate(self, generation: int, threshold: int, first_unit: int, num_units: int) -> Outcome:
        """Judge units of a generation, in whose record `threshold` will stand."""
        ...
