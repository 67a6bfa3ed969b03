"""`es-service eval`: held-out bits/byte of a model, beside what simple models need for the same bytes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from es_service.commands.display import bits, print_json
from es_service.commands.sources import Model, load_model, model_of_run, open_run
from es_service.commands.texts import cached_corpus, held_out_baselines, text_of_files
from es_service.config import RunConfig
from es_service.data import Corpus, baselines, load_corpus
from es_service.directory import RunDirectory
from es_service.errors import ConfigError
from es_service.keeper import held_out
from es_service.problem import figure_of, is_classifier, is_egg
from es_service.session import held_out_rows
from es_service.types import Ops, UInt8Array
from es_service.wiring import kernels

__all__ = ["Evaluation", "report_run", "run"]

NOTE = "integer loss: it truncates and reads about 0.03 bits/byte low; compare it with integer loss only"
_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Figures in bits/byte; None where this machine cannot tell. `reported` is what the run itself measured.

    For a classifier the bytes are labels, and the simple models have nothing to say.
    """

    text: str
    scored_bytes: int
    bits_per_byte: float
    accuracy: float | None
    reported: float | None
    unigram: float | None
    bigram: float | None
    gzip: float | None


def run(arguments: Namespace) -> int:
    """The run's own held-out text, or that of --data."""
    ops, _ = kernels(arguments.backend)
    text = text_of_files(arguments.paths) if arguments.paths else None
    model = load_model(arguments, ops, arguments.generation)
    found = _on_held_out(model, ops) if text is None else _on_files(model, ops, text, arguments.paths)
    if arguments.json:
        print_json(_as_json(model, found))
    else:
        _print(model, found)
    return 0


def report_run(directory: RunDirectory, config: RunConfig) -> None:
    """Print the figures of a run's newest generation."""
    ops, _ = kernels(config.deployment.aggregator_backend)
    model = model_of_run(open_run(directory), ops)
    _print(model, _on_held_out(model, ops))


def _on_held_out(model: Model, ops: Ops) -> Evaluation:
    corpus = load_corpus(model.config.data)
    rows_SW = held_out_rows(model.config, corpus)
    found = held_out(model.config, ops, model.parameters_P, rows_SW)
    figures = (found.bits_per_byte, found.accuracy)
    reported = None if model.run is None else _reported(model.run, model.generation)
    if is_classifier(model.config):
        return Evaluation(f"labels of the held-out {corpus.name}", len(rows_SW), *figures, reported, None, None, None)
    simple = held_out_baselines(model.config, corpus)
    return Evaluation(
        f"the held-out text of {corpus.name}",
        rows_SW.shape[0] * (rows_SW.shape[1] - 1),
        *figures,
        reported,
        simple.unigram,
        simple.bigram,
        simple.gzip,
    )


def _reported(directory: RunDirectory, generation: int) -> float | None:
    found = [
        float(row["bits_per_byte"])
        for row in directory.metrics()
        if row.get("kind") == "evaluation" and row["generation"] == generation
    ]
    return found[-1] if found else None


def _on_files(model: Model, ops: Ops, text: UInt8Array, paths: list[Path]) -> Evaluation:
    """All of the text in rows as long as the model's segments, the last one perhaps shorter."""
    if is_classifier(model.config):
        raise ConfigError("--data: this model reads images, not text; leave the option out")
    total = right = 0.0
    for rows_SW in _rows_of(text, model.config.deployment.evaluation_bytes):
        scored = rows_SW.shape[0] * (rows_SW.shape[1] - 1)
        found = held_out(model.config, ops, model.parameters_P, rows_SW)
        total, right = total + scored * found.bits_per_byte, right + scored * (found.accuracy or 0.0)
    corpus = cached_corpus(model.config)
    simple = baselines(Corpus(text if corpus is None else corpus.train, text, "", "files"))
    return Evaluation(
        " ".join(map(str, paths)),
        text.size - 1,
        total / (text.size - 1),
        None if is_egg(model.config) else right / (text.size - 1),
        None,
        None if corpus is None else simple.unigram,
        None if corpus is None else simple.bigram,
        simple.gzip,
    )


def _rows_of(text: UInt8Array, segment_bytes: int) -> Iterator[UInt8Array]:
    """Rows (S, T + 1) one after the other; the last byte of a row is the first of the next."""
    whole = (text.size - 1) // segment_bytes
    for first in range(0, whole, _ROWS_AT_ONCE):
        count = min(_ROWS_AT_ONCE, whole - first)
        yield _grid(text[first * segment_bytes :], count, segment_bytes)
    if (rest := text[whole * segment_bytes :]).size > 1:
        yield _grid(rest, 1, rest.size - 1)


def _grid(text: UInt8Array, rows: int, segment_bytes: int) -> UInt8Array:
    start_S = np.arange(rows)[:, None] * segment_bytes
    grid_SW: UInt8Array = text[start_S + np.arange(segment_bytes + 1)]
    return grid_SW


def _as_json(model: Model, found: Evaluation) -> dict[str, Any]:
    return {
        "model": model.name,
        "generation": model.generation,
        "digest": f"{model.digest:016x}",
        "text": found.text,
        "scored_bytes": found.scored_bytes,
        "bits_per_byte": round(found.bits_per_byte, 6),
        "accuracy": None if found.accuracy is None else round(found.accuracy, 6),
        "reported": found.reported,
        "unigram": found.unigram,
        "bigram": found.bigram,
        "gzip": found.gzip,
        "note": NOTE if is_egg(model.config) else "",
    }


def _print(model: Model, found: Evaluation) -> None:
    print(f"{model.name}, generation {model.generation}, {found.scored_bytes:,} bytes of {found.text}")
    reported = "" if found.reported is None else f"  (the run reported {found.reported:.4f})"
    print(f"  {'model':<9}{found.bits_per_byte:.4f} {figure_of(model.config)}{reported}")
    if found.accuracy is not None:
        print(f"  {'accuracy':<9}{found.accuracy:.4f}")
    if is_classifier(model.config):
        return
    for name in ("unigram", "bigram", "gzip"):
        print(f"  {name:<9}{bits(getattr(found, name), 4)}")
    if found.unigram is None:
        print("  (unigram and bigram are counted on the training text, which is not in this machine's cache)")
    if is_egg(model.config):
        print(f"  {NOTE}")
