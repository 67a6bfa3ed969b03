"""`es-service plot`: the loss curve of a run as a PNG."""

from __future__ import annotations

import io
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from es_service import journal
from es_service.commands.sources import directory_of, open_run, parent_exists
from es_service.commands.texts import cached_corpus, held_out_baselines
from es_service.config import RunConfig
from es_service.data import Baselines
from es_service.directory import RunDirectory
from es_service.durable import write_atomically
from es_service.errors import BackendError, RunError
from es_service.problem import figure_of, is_classifier, is_egg, scored, training_score
from es_service.specs import spans
from es_service.telemetry import bits_per_byte

__all__ = ["DEFAULT_NAME", "draw", "draw_run", "run"]

DEFAULT_NAME = "loss.png"

# Okabe and Ito's colours, which colour-blind readers can tell apart; lines differ in dashes and labels too.
_BLUE, _SKY, _GREY = "#0072B2", "#56B4E9", "#666666"
_BASELINES = {
    "unigram": ("#D55E00", (0, (6, 3))),
    "bigram": ("#CC79A7", (0, (4, 2, 1, 2))),
    "gzip": ("#009E73", (0, (1, 2))),
}
_LABEL_GAP = 0.045
"""Least distance between two labels, as a share of the axis."""


def run(arguments: Namespace) -> int:
    """Draw what the run has done so far."""
    directory = directory_of(arguments)
    out = directory.path / DEFAULT_NAME if arguments.out is None else parent_exists("--out", arguments.out)
    opened = open_run(directory)
    try:
        print(draw_run(directory, opened.config, out))
    except ImportError as error:
        raise BackendError(f"plot needs matplotlib ({error}): pip install 'es-service[plot]'") from error
    return 0


def draw_run(directory: RunDirectory, config: RunConfig, out: Path | None = None) -> Path:
    """Draw with baselines if this machine has the corpus; raises `ImportError` without matplotlib."""
    import matplotlib  # noqa: F401 - before the work for the baselines

    if is_classifier(config):
        return draw(directory, config, None, out or directory.path / DEFAULT_NAME)
    corpus = cached_corpus(config)
    if corpus is None:
        print("the run's corpus is not in this machine's cache: drawn without baselines", file=sys.stderr)
    simple = None if corpus is None else held_out_baselines(config, corpus)
    return draw(directory, config, simple, out or directory.path / DEFAULT_NAME)


def draw(directory: RunDirectory, config: RunConfig, baselines: Baselines | None, out: Path) -> Path:
    """Write the PNG and return its path; raises `ImportError` without matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.5, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    contents = journal.scan(directory.journal_path)
    _draw_curves(axes, directory, config, contents)
    _draw_baselines(axes, baselines)
    _dress(axes, directory.name, config)
    if not contents.changes:  # else no one scale of bytes holds for all generations
        _add_bytes_axis(axes, config)
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    try:
        write_atomically(out, picture.getvalue())
    except OSError as error:
        raise RunError(f"{out}: the plot cannot be written: {error.strerror}; give another place with --out") from error
    return out


def _draw_curves(axes: Any, directory: RunDirectory, config: RunConfig, contents: journal.JournalContents) -> None:
    """Training from the journal, held-out from the metrics beside it."""
    scores = contents.commits.fields[["score_sum", "score_min"]].tolist()
    trained = [
        bits_per_byte(then, training_score(then, *pair))
        for first, stop, then in spans(contents)
        for pair in scores[first:stop]
    ]
    label = "training, mean of perturbed members" if is_egg(config) else "training batch"
    axes.plot(range(len(trained)), trained, color=_SKY, lw=1.2, label=label)
    rows = (row for row in directory.metrics() if row.get("kind") == "evaluation")
    held_out = {row["generation"]: row["bits_per_byte"] for row in rows if row["generation"] <= len(trained)}
    if held_out:
        points = sorted(held_out.items())
        label = f"held-out, unperturbed model (last: {points[-1][1]:.3f})"
        generations, figures = zip(*points, strict=True)
        axes.plot(generations, figures, color=_BLUE, lw=2, marker="o", ms=4, label=label)


def _draw_baselines(axes: Any, baselines: Baselines | None) -> None:
    if baselines is None:
        return
    values = {name: float(getattr(baselines, name)) for name in _BASELINES}
    for name, value in values.items():
        colour, dashes = _BASELINES[name]
        axes.axhline(value, color=colour, ls=dashes, lw=1.4)
    low, high = axes.get_ylim()
    names = sorted(values, key=values.__getitem__)
    heights = _spread([values[name] for name in names], _LABEL_GAP * (high - low))
    for name, height in zip(names, heights, strict=True):
        place = {"xycoords": ("axes fraction", "data"), "xytext": (5, 0), "textcoords": "offset points"}
        axes.annotate(f"{name} {values[name]:.2f}", (1, height), color=_BASELINES[name][0], va="center", **place)


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Ascending heights, moved up where they would lie closer than `gap`."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    return placed


def _dress(axes: Any, name: str, config: RunConfig) -> None:
    model = config.model
    axes.set_title(f"{name}: N = {config.population:,}, D = {model.width}, L = {model.layers}")
    axes.set_xlabel("generation")
    axes.set_ylabel(f"{figure_of(config)}{' (integer loss)' if is_egg(config) else ''}")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.margins(x=0.01)
    axes.grid(color=_GREY, alpha=0.2)
    axes.spines["right"].set_visible(False)
    axes.legend(loc="best", frameon=False)


def _add_bytes_axis(axes: Any, config: RunConfig) -> None:
    from matplotlib.ticker import EngFormatter

    scale = float(config.population * scored(config))
    top = axes.secondary_xaxis("top", functions=(lambda g: np.asarray(g) * scale, lambda b: np.asarray(b) / scale))
    top.xaxis.set_major_formatter(EngFormatter())
    top.set_xlabel("model-bytes (population x bytes scored)" if is_egg(config) else "examples x perturbations")
