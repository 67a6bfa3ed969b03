"""`es-service resume`: go on with a run from its journal."""

from __future__ import annotations

from argparse import Namespace

from es_service.commands.running import carry_out, with_flags
from es_service.commands.sources import directory_of
from es_service.config import resolve
from es_service.storage import fetch


def run(arguments: Namespace) -> int:
    """The run's own config, with changes to its deployment or population; others are refused by the journal."""
    directory = directory_of(arguments)
    if arguments.storage_url:
        print(fetch(arguments.storage_url, arguments.name, directory))
    stored = directory.read_config().with_deployment(detach=False)
    if arguments.storage_url:
        stored = stored.with_deployment(storage_url=arguments.storage_url)
    config = with_flags(resolve(stored.model_dump(mode="json"), arguments.overrides), arguments)
    config = config.with_deployment(runs_dir=directory.path.absolute().parent)
    return carry_out(config, directory, True, arguments)
