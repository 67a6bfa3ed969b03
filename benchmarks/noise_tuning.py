"""Chooses sigma and rate of EGGROLL for the noise_step experiments, by the training loss.

Every setting of a grid trains for a fifth of the steps, with its rate falling to 0 over them; then the neighbours of
the best, within the grid or beyond it, until no neighbour is better; then the best once more with scores in place of
votes. What is best then is taken. All with a seed that no result has, and with no look at held-out data.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.noise_methods import PAIRS, eggroll
from benchmarks.noise_problem import open_problem

__all__ = ["best", "load", "table", "tune"]

SEED = 9
SIGMAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
RATES = tuple(0.0125 * 2.0**n for n in range(-2, 7))
GRID = (SIGMAS[2:5], RATES[2:6])
SHORT = 5
LAST = 4
"""The loss is the mean over the last of so many parts of a run."""


class Trial(NamedTuple):
    """One setting on one task for so many steps."""

    task: str
    steps: int
    sigma: float
    rate: float
    scored: bool


Losses = dict[Trial, float]


def load(path: Path) -> Losses:
    """Trials made so far and their losses in nats."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {Trial(*(row[name] for name in Trial._fields)): row["loss"] for row in rows}


def _ranked(found: Losses, task: str, steps: int) -> list[Trial]:
    mine = (trial for trial in found if (trial.task, trial.steps) == (task, steps // SHORT))
    return sorted(mine, key=lambda trial: found[trial])


def pending(found: Losses, task: str, steps: int) -> Iterator[Trial]:
    """What to try, one after the other. `found` grows meanwhile."""
    for sigma, rate in product(*GRID):
        yield Trial(task, steps // SHORT, sigma, rate, False)
    while lacking := [trial for trial in _neighbours(_voted(found, task, steps)) if trial not in found]:
        yield lacking[0]
    yield _voted(found, task, steps)._replace(scored=True)


def _voted(found: Losses, task: str, steps: int) -> Trial:
    """The best so far that votes."""
    return next(trial for trial in _ranked(found, task, steps) if not trial.scored)


def _neighbours(trial: Trial) -> Iterator[Trial]:
    """One value up or down in sigma or in rate."""
    s, r = SIGMAS.index(trial.sigma), RATES.index(trial.rate)
    for sigma, rate in ((s, r + 1), (s, r - 1), (s + 1, r), (s - 1, r)):
        if 0 <= sigma < len(SIGMAS) and 0 <= rate < len(RATES):
            yield trial._replace(sigma=SIGMAS[sigma], rate=RATES[rate])


def best(found: Losses, task: str, steps: int) -> Trial | None:
    """The setting to take, if the search is over."""
    return None if any(trial not in found for trial in pending(found, task, steps)) else _ranked(found, task, steps)[0]


def _loss(trial: Trial) -> float:
    problem = open_problem(trial.task, SEED)
    settings: dict[str, Any] = {"sigma": trial.sigma, "rate": trial.rate, "scored": trial.scored}
    losses = [state.loss for state in eggroll(problem, trial.steps, PAIRS, **settings)][:-1]
    return float(np.mean(losses[-(trial.steps // LAST) :]))


def tune(path: Path, tasks: list[str], steps: int) -> None:
    """Make the trials that the file lacks, one line each."""
    found = load(path)
    for task in tasks:
        for trial in pending(found, task, steps):
            if trial in found:
                continue
            found[trial] = round(_loss(trial), 4)
            with path.open("a") as file:
                file.write(json.dumps(trial._asdict() | {"loss": found[trial]}, separators=(",", ":")) + "\n")
            print(f"{trial}: {found[trial]} nats", flush=True)


def table(path: Path, tasks: list[str], steps: int) -> None:
    """Print the trials, a row for each sigma, and what is best."""
    found = load(path)
    rates = sorted({trial.rate for trial in found})
    print(f"\nEGGROLL: training loss in nats after {steps // SHORT} steps\n")
    print("| task | sigma | " + " | ".join(f"rate {rate}" for rate in rates) + " |\n|---|---|" + "---|" * len(rates))
    for task in tasks:
        ranked = _ranked(found, task, steps)
        for sigma, scored in sorted({(trial.sigma, trial.scored) for trial in ranked}):
            row = (found.get(Trial(task, steps // SHORT, sigma, rate, scored)) for rate in rates)
            cells = " | ".join("" if loss is None else f"{loss:.3f}" for loss in row)
            print(f"| {task}{', scores' * scored} | {sigma} | {cells} |")
