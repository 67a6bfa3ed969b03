"""`es-service scale`: change the number of workers of a run that is under way."""

from __future__ import annotations

from argparse import Namespace

from es_service.commands.sources import directory_of
from es_service.errors import ConfigError, RunError
from es_service.launch import scale

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Through the head actor with --address; else through a file that the head looks for."""
    if not 0 <= arguments.workers <= 100_000:
        raise ConfigError(f"--workers: {arguments.workers} is outside 0 .. 100000")
    if arguments.address:
        scale(arguments.name, arguments.address, arguments.workers)
    else:
        directory = directory_of(arguments)
        if directory.read_config().deployment.pool == "local":
            raise ConfigError("scale: the workers of a run without Ray take turns in one process; train it with Ray")
        if directory.holder() is None:
            raise RunError(
                f"{directory.path}: this run is not under way on this machine; on a cluster, give its --address"
            )
        directory.ask_scale(arguments.workers)
    print(f"{arguments.name} will have {arguments.workers} workers; the result does not change")
    return 0
