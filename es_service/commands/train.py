"""`es-service train`: start a run and follow it to its end."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from es_service.commands.running import begun, carry_out, with_flags
from es_service.config import load
from es_service.directory import RunDirectory, next_name
from es_service.errors import ConfigError
from es_service.session import with_corpus


def run(arguments: Namespace) -> int:
    """Everything that can be wrong is checked before Ray starts."""
    config = with_flags(load(arguments.source, arguments.overrides), arguments)
    runs_dir = config.deployment.runs_dir
    directory = RunDirectory(runs_dir, _name(arguments, runs_dir))
    resume = arguments.or_resume and begun(config, directory)
    if not resume:
        directory.check_new()
    config, _ = with_corpus(config)
    return carry_out(config, directory, resume, arguments)


def _name(arguments: Namespace, runs_dir: Path) -> str:
    if arguments.or_resume and arguments.name is None:
        raise ConfigError("--or-resume: say which run with --name")
    return next_name(runs_dir, Path(arguments.source).stem) if arguments.name is None else arguments.name
