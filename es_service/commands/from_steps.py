"""`es-service from-steps`: a model, rows of one tensor, or a run to go on with, from a steps file."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from es_service import journal, keyframes, steps, votes
from es_service.aggregator import Canonical
from es_service.commands.display import progress
from es_service.commands.sources import Model, check_generation, parent_exists, save_export
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.durable import sync_directory
from es_service.errors import ConfigError, RunError
from es_service.journal_writer import JournalWriter
from es_service.rebuild import Rebuild
from es_service.types import Layout, Part, TensorSpec
from es_service.wiring import kernels

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Check the options, then rebuild."""
    if arguments.tensor is None and arguments.rows is not None:
        raise ConfigError("--rows: name the tensor that they are of with --tensor")
    if arguments.tensor is not None and arguments.out is None:
        raise ConfigError("--tensor: a run needs all tensors; give --out instead of --resume-as")
    found = steps.scan(arguments.file)
    generation = check_generation("--generation", arguments.generation, found.header.generations)
    ops, _ = kernels(arguments.backend)
    rebuild = Rebuild(found, ops)
    if arguments.resume_as is not None:
        _resume_as(rebuild, generation, RunDirectory(arguments.runs_dir or Path("runs"), arguments.resume_as))
    elif arguments.tensor is not None:
        _write_part(parent_exists("--out", arguments.out), rebuild, generation, _part(arguments, rebuild.layout))
    else:
        _write_model(parent_exists("--out", arguments.out), rebuild, generation)
    return 0


def _write_model(out: Path, rebuild: Rebuild, generation: int) -> None:
    for current in _shown(rebuild, generation):
        last = current
    config = rebuild.config_at(generation)
    save_export(out, Model(str(out), config, generation, last.parameters_P, last.digest))
    print(f"{out}: generation {generation}, digest {last.digest:016x}, {out.stat().st_size:,} bytes")


def _part(arguments: Namespace, layout: Layout) -> Part:
    """The rows that --tensor and --rows name."""
    tensors = {tensor.name: tensor for tensor in layout.tensors}
    tensor = tensors.get(arguments.tensor)
    if tensor is None:
        raise ConfigError(f"--tensor: no tensor {arguments.tensor!r}; the model has {', '.join(tensors)}")
    rows = tensor.shape[0]
    first, colon, stop = (arguments.rows or f"0:{rows}").partition(":")
    if not (colon and first.isdecimal() and stop.isdecimal() and int(first) < int(stop) <= rows):
        raise ConfigError(f"--rows: {arguments.rows!r} is no A:B with 0 <= A < B <= {rows}, the rows of {tensor.name}")
    return Part(tensor, int(first), int(stop))


def _write_part(out: Path, rebuild: Rebuild, generation: int, part: Part) -> None:
    values_N = rebuild.part(part, generation).reshape(-1)
    rows = f"{part.first}:{part.stop}"
    metadata = {
        "format_version": keyframes.FORMAT_VERSION,
        "generation": str(generation),
        "rows": rows,
        "spec_hash": rebuild.config_at(generation).spec_hash,
    }
    layout = Layout((TensorSpec(part.tensor.name, part.shape, part.tensor.kind, 0, 0),))
    keyframes.save_model(out, layout, values_N, metadata)
    print(f"{out}: generation {generation}, rows {rows} of {part.tensor.name}, {out.stat().st_size:,} bytes")


def _resume_as(rebuild: Rebuild, generation: int, directory: RunDirectory) -> None:
    """Make the run beside its place and move it there, so that it appears whole or not at all."""
    if not rebuild.steps.header.scores:
        raise ConfigError(
            f"--resume-as: {rebuild.steps.path} has no scores, which a journal needs; make the file again with "
            "`es-service steps` and without --without-scores"
        )
    runs_dir = directory.path.parent
    if directory.path.exists():
        raise RunError(f"{directory.path} exists; choose another name with --resume-as")
    config = rebuild.config_at(generation).with_deployment(
        runs_dir=runs_dir.absolute(), generations=max(1, rebuild.steps.header.generations)
    )
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".from-steps-", dir=runs_dir) as scratch:
            made = RunDirectory(Path(scratch), directory.name)
            _make_run(made, config, rebuild, generation)
            made.path.rename(directory.path)
        sync_directory(runs_dir)
    except OSError as error:
        raise RunError(f"{directory.path}: the run cannot be made: {error.strerror}; repair or free it") from error
    where = "" if runs_dir == Path("runs") else f" --runs-dir {runs_dir}"
    goal = " --set deployment.generations=GOAL" if generation == config.deployment.generations else ""
    print(f"{directory.path}: {generation} generations; go on with: es-service resume {directory.name}{where}{goal}")


def _make_run(directory: RunDirectory, config: RunConfig, rebuild: Rebuild, generation: int) -> None:
    """Journal, config and the keyframe of the last generation, as the original run had them there."""
    directory.create()
    header, changes = rebuild.steps.header, dict(rebuild.steps.header.changes)
    models = _shown(rebuild, generation)
    current = next(models)
    begin = journal.Header(header.spec_at(0), current.digest)
    with JournalWriter.create(directory.journal_path, begin) as writer:
        for step in rebuild.steps.between(0, generation):
            if step.generation in changes:
                writer.append(journal.Change(step.generation, changes[step.generation]))
            assert step.scores is not None, "checked before"
            numbers = (step.generation, len(step.votes_Q), step.threshold, *step.scores, current.digest)
            writer.append(journal.Commit(*numbers, votes.pack(step.votes_Q)))
            current = next(models)
        if generation in changes:
            writer.append(journal.Change(generation, changes[generation]))
        digest, spec_hash = current.digest, config.spec_hash
        keyframes.save(directory.keyframes_path, rebuild.layout, current.parameters_P, generation, digest, spec_hash)
        directory.write_config(config)


def _shown(rebuild: Rebuild, generation: int) -> Iterator[Canonical]:
    with progress("rebuild", generation) as show:
        for current in rebuild.models(generation):
            show(current.generation)
            yield current
