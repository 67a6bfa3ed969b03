"""Opens a run: directory, journal, canonical parameters, pool, put together into a coordinator. No Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress

import numpy as np

from es_service import journal
from es_service.aggregator import Aggregator, Canonical
from es_service.algorithms.base import Past
from es_service.algorithms.noise_step import NoiseStepConfig
from es_service.config import RunConfig
from es_service.coordinator import Coordinator
from es_service.data import Corpus, DigitsDataConfig, MnistDataConfig, baselines, evaluation_rows, load_corpus
from es_service.data.segments import Segments
from es_service.directory import RunDirectory
from es_service.errors import ConfigError, RunError
from es_service.journal_writer import JournalWriter
from es_service.keeper import Keeper
from es_service.pools import Pool
from es_service.problem import (
    algorithm_of,
    examples_of,
    initial_parameters,
    is_classifier,
    is_egg,
    layout_of,
    rows_of,
    scored,
)
from es_service.replay import Replay
from es_service.shared import SharedParameters
from es_service.specs import spans
from es_service.storage import Uploader, open_storage
from es_service.telemetry import Telemetry
from es_service.ternary import places
from es_service.types import Ops, UInt8Array

__all__ = ["held_out_rows", "open_session", "with_corpus"]


def with_corpus(config: RunConfig) -> tuple[RunConfig, Corpus]:
    """The config with the content hash of its corpus, and the corpus; checks that the sizes go together."""
    corpus = load_corpus(config.data)
    if is_egg(config):
        _segments(config, corpus)
    else:
        examples_of(config, corpus.train)
        _check_density(config)
    held_out_rows(config, corpus)
    data = config.data.model_copy(update={"content_hash": corpus.content_hash})
    return config.model_copy(update={"data": data}), corpus


def held_out_rows(config: RunConfig, corpus: Corpus) -> UInt8Array:
    """The held-out rows (S, T + 1) uint8 that the run is evaluated on; a classifier: images, each with its label."""
    deployment = config.deployment
    if isinstance(config.data, DigitsDataConfig | MnistDataConfig):
        images = examples_of(config, corpus.held_out)
        places = np.arange(min(deployment.evaluation_rows, len(images)))
        return np.column_stack(images.take(places * len(images) // len(places)))
    return evaluation_rows(corpus.held_out, deployment.evaluation_rows, deployment.evaluation_bytes)


def _check_density(config: RunConfig) -> None:
    """Raise `ConfigError` if the supports of a generation could ask for more than the model has."""
    assert isinstance(config.algorithm, NoiseStepConfig)
    support, most, layout = config.algorithm.support, config.algorithm.density.most, layout_of(config)
    room = places(support, layout)
    need = most if support == "bernoulli" else most * config.population
    if need > room:
        what = "columns" if support == "columns" else "weights"
        raise ConfigError(
            f"algorithm.density: up to {most:,} non-zeros in each of {config.population:,} perturbations do not fit "
            f"the model's {room:,} {what}; use fewer non-zeros, a smaller population, or another algorithm.support"
        )


def open_session(
    config: RunConfig,
    directory: RunDirectory,
    resume: bool,
    ops: Ops,
    make_pool: Callable[[RunConfig, Corpus], Pool],
    ray_exporters: Sequence[str] = (),
) -> Coordinator:
    """The coordinator of a new or resumed run. `config` has its content hash; the journal is locked from here on.

    `ray_exporters` are addresses of metrics that a Prometheus would not find in another way.
    """
    config, corpus = with_corpus(config)
    storage = open_storage(config, directory.name, resume)
    writer, start, past = _resume(config, directory, ops) if resume else _begin(config, directory, ops)
    with ExitStack() as undo:
        undo.callback(writer.close)
        uploader = Uploader(storage, config, directory, writer) if storage else None
        undo.callback(uploader.close if uploader else lambda: None)
        keeper = Keeper(config, directory, ops, held_out_rows(config, corpus))
        layout = layout_of(config)
        shared = SharedParameters(directory.path, layout.size)
        aggregator = Aggregator(algorithm_of(config), layout, ops, start, keeper.after, shared)
        undo.callback(aggregator.close)
        telemetry = _telemetry(config, directory, corpus, past)
        telemetry.metrics.journal_bytes.set(writer.bytes)
        undo.callback(telemetry.close)
        telemetry.expose(ops.name, ray_exporters)
        pool = make_pool(config, corpus)
        history = _history(past)
        coordinator = Coordinator(config, directory, writer, aggregator, keeper, pool, telemetry, uploader, history)
        undo.pop_all()
    return coordinator


def _telemetry(
    config: RunConfig, directory: RunDirectory, corpus: Corpus, past: journal.JournalContents | None
) -> Telemetry:
    """Counters that go on from the journal; the baselines come when they are known."""
    telemetry = Telemetry(config, directory, len(past.commits) if past else 0)
    if past is not None:
        for first, stop, then in spans(past):
            model_bytes = _model_bytes(then, corpus, first, stop)
            telemetry.resumed(then, past.commits.between(first, stop), model_bytes)

    def compare() -> None:
        found = baselines(corpus, held_out_rows(config, corpus))
        with suppress(RunError):  # whoever writes next to a disk that is full will say so
            telemetry.baselines(found)

    if config.deployment.metrics_port >= 0 and not is_classifier(config):
        threading.Thread(target=compare, name="baselines", daemon=True).start()
    return telemetry


def _segments(config: RunConfig, corpus: Corpus) -> Segments:
    segment = config.segment
    return Segments(corpus.train, config.population, segment.bytes, segment.burn_in, rows_of(config))


def _model_bytes(config: RunConfig, corpus: Corpus, first: int, stop: int) -> int:
    """Bytes, or examples, that have gone through the model in generations `first` .. `stop` - 1."""
    if is_egg(config):
        return sum(map(_segments(config, corpus).bytes_read, range(first, stop)))
    assert isinstance(config.algorithm, NoiseStepConfig)
    return (stop - first) * config.population * config.algorithm.passes * scored(config)


def _history(past: journal.JournalContents | None) -> list[Past]:
    """What later generations may depend on."""
    fields = [] if past is None else past.commits.fields[list(Past.__slots__)].tolist()
    return [Past(*values) for values in fields]


_Start = tuple[JournalWriter, Canonical, journal.JournalContents | None]


def _begin(config: RunConfig, directory: RunDirectory, ops: Ops) -> _Start:
    directory.create()
    parameters_P = initial_parameters(config)
    digest = ops.digest(layout_of(config), parameters_P)
    writer = JournalWriter.create(directory.journal_path, journal.Header(config.spec, digest))
    try:
        directory.write_config(config)  # under the journal's lock
        return writer, Canonical(0, parameters_P, digest), None
    except BaseException:
        writer.close()
        raise


def _resume(config: RunConfig, directory: RunDirectory, ops: Ops) -> _Start:
    """The last committed generation, from the nearest keyframe and the votes after it."""
    writer, contents = JournalWriter.open(directory.journal_path, config.spec)
    try:
        directory.write_config(config)
        directory.stop_path.unlink(missing_ok=True)
        directory.scale_path.unlink(missing_ok=True)
        for half in directory.keyframes_path.glob(".*.tmp"):
            half.unlink(missing_ok=True)
        if contents.torn_bytes:
            directory.log_event("torn_tail", bytes=contents.torn_bytes, reason=contents.torn)
        replay = Replay(contents, config, directory, ops)
        canonical = replay.rebuild(len(contents.commits))
        for problem in replay.problems:
            directory.log_event("keyframe_skipped", reason=problem)
        directory.log_event("resumed", generation=canonical.generation)
        if contents.spec_at(canonical.generation) != config.spec:  # after the config, which a torn write may outlive
            writer.append(journal.Change(canonical.generation, config.spec))
            directory.log_event("changed", generation=canonical.generation, population=config.population)
        return writer, canonical, contents
    except BaseException:
        writer.close()
        raise
