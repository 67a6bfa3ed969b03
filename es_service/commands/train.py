"""`es-service train`: start a run and follow it to its end."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from es_service.commands.running import carry_out, with_flags
from es_service.config import load
from es_service.directory import RunDirectory, next_name
from es_service.session import with_corpus


def run(arguments: Namespace) -> int:
    """Everything that can be wrong is checked before Ray starts."""
    config = with_flags(load(arguments.source, arguments.overrides), arguments)
    runs_dir = config.deployment.runs_dir
    directory = RunDirectory(runs_dir, _name(arguments, runs_dir))
    directory.check_new()
    config, _ = with_corpus(config)
    return carry_out(config, directory, resume=False, address=arguments.address)


def _name(arguments: Namespace, runs_dir: Path) -> str:
    return next_name(runs_dir, Path(arguments.source).stem) if arguments.name is None else arguments.name
