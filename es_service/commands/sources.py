"""What NAME and FILE stand for in a command: a run with its journal, or a model in a safetensors file."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from es_service import journal, keyframes
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import ConfigError, KeyframeError
from es_service.packing import pack, unpack
from es_service.problem import algorithm_of, layout_of
from es_service.replay import Replay
from es_service.specs import config_at
from es_service.types import Int8Array, Ops

__all__ = [
    "Model",
    "OpenedRun",
    "check_generation",
    "directory_of",
    "is_file",
    "load_model",
    "model_of_run",
    "open_run",
    "parent_exists",
    "portable_config",
    "save_export",
]


@dataclass(frozen=True, slots=True)
class OpenedRun:
    """A run as its journal stands now; `config` has the journal's spec and the deployment of the last start."""

    directory: RunDirectory
    config: RunConfig
    contents: journal.JournalContents


@dataclass(frozen=True, slots=True)
class Model:
    """Parameters (P,) int8 of one generation and what they belong to. `run` is None where a file was read."""

    name: str
    config: RunConfig
    generation: int
    parameters_P: Int8Array
    digest: int
    run: RunDirectory | None = None


def directory_of(arguments: Namespace) -> RunDirectory:
    """The run's directory, below --runs-dir; it may be missing."""
    return RunDirectory(arguments.runs_dir or Path("runs"), arguments.name)


def open_run(directory: RunDirectory) -> OpenedRun:
    """Scan the run's journal; raises `RunError` if there is no such run."""
    deployment = directory.read_config().deployment
    contents = journal.scan(directory.journal_path)
    config = config_at(contents, len(contents.commits))
    return OpenedRun(directory, config.model_copy(update={"deployment": deployment}), contents)


def check_generation(option: str, wanted: int | None, last: int) -> int:
    """The generation that an option names, by default the last; raises `ConfigError` if there is none such."""
    if wanted is None:
        return last
    if not 0 <= wanted <= last:
        raise ConfigError(f"{option}: the run has no generation {wanted}; give 0 to {last}")
    return wanted


def parent_exists(option: str, path: Path) -> Path:
    """The path; raises `ConfigError` if its directory is missing or it is a directory itself."""
    if path.is_dir():
        raise ConfigError(f"{option}: {path} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise ConfigError(f"{option}: there is no directory {path.parent}; make it first")
    return path


def is_file(source: str) -> bool:
    """Whether NAME|FILE is meant as a file."""
    return source.endswith(".safetensors") or "/" in source or Path(source).is_file()


def load_model(arguments: Namespace, ops: Ops, generation: int | None = None) -> Model:
    """The model of NAME|FILE; `generation` goes with a run only."""
    if not is_file(arguments.name):
        return model_of_run(open_run(directory_of(arguments)), ops, generation)
    if generation is not None:
        raise ConfigError(f"--generation: {arguments.name} is a file and holds one generation; leave the option out")
    return _model_of_file(Path(arguments.name), ops)


def model_of_run(opened: OpenedRun, ops: Ops, generation: int | None = None) -> Model:
    """Rebuild a generation from the nearest sound keyframe and the votes after it."""
    generation = check_generation("--generation", generation, len(opened.contents.commits))
    replay = Replay(opened.contents, opened.config, opened.directory, ops)
    canonical = replay.rebuild(generation)
    return Model(
        opened.directory.name,
        opened.config,
        generation,
        canonical.parameters_P,
        canonical.digest,
        opened.directory,
    )


def portable_config(config: RunConfig) -> dict[str, Any]:
    """The spec, and of the deployment only what the held-out figure depends on: equal runs give equal files."""
    deployment = config.deployment.model_dump(include={"evaluation_rows", "evaluation_bytes"})
    return config.spec | {"deployment": deployment}


def save_export(path: Path, model: Model, packing: str | None = None) -> None:
    """Write a model so that `_model_of_file` needs nothing else, its tensors packed if they are ternary and so asked.

    Raises `ConfigError` where packing is asked for and they are not.
    """
    metadata = {
        "config": journal.canonical_json(portable_config(model.config)).decode(),
        "digest": f"{model.digest:016x}",
        "format_version": keyframes.FORMAT_VERSION,
        "generation": str(model.generation),
        "spec_hash": model.config.spec_hash,
    }
    layout, parameters = layout_of(model.config), model.parameters_P
    if packing is None:
        keyframes.save_model(path, layout, parameters, metadata)
        return
    if algorithm_of(model.config).largest != 1:
        raise ConfigError(f"--pack: the weights of {model.name} are not ternary; leave the option out")
    keyframes.save_model(path, *pack(layout, parameters, packing), metadata | {"packing": packing})


def _model_of_file(path: Path, ops: Ops) -> Model:
    tensors, metadata = keyframes.read_model(path)
    if "config" not in metadata:
        raise KeyframeError(f"{path}: there is no config in its metadata; make the file with `es-service export`")
    try:
        config = RunConfig.model_validate(json.loads(metadata["config"]))
        generation, digest = int(metadata["generation"]), int(metadata["digest"], 16)
    except (ValueError, KeyError) as error:
        raise KeyframeError(f"{path}: its metadata cannot be used ({error}); export the model again") from error
    layout = layout_of(config)
    if "packing" in metadata:
        tensors = unpack(path, layout, tensors, metadata["packing"])
    parameters_P = keyframes.flatten(path, layout, tensors)
    expected: dict[str, Any] = {"format_version": keyframes.FORMAT_VERSION, "spec_hash": config.spec_hash}
    for key, value in expected.items():
        if metadata.get(key) != value:
            raise KeyframeError(f"{path}: {key} is {metadata.get(key)!r}, not {value!r}; export the model again")
    actual = ops.digest(layout, parameters_P)
    if actual != digest:
        raise KeyframeError(f"{path}: its tensors have digest {actual:016x}, its metadata says {digest:016x}: damaged")
    return Model(str(path), config, generation, parameters_P, digest)
