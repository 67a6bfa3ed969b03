"""`es-service stop`: end a run at its last commit."""

from __future__ import annotations

import time
from argparse import Namespace

from es_service.commands.sources import directory_of
from es_service.errors import RunError
from es_service.launch import stop

_WAIT_SECONDS = 120.0


def run(arguments: Namespace) -> int:
    """Through the head actor with --address; else through a file that the head looks for."""
    if arguments.address:
        stop(arguments.name, arguments.address)
        print(f"{arguments.name} stops at its last commit; go on with: es-service resume {arguments.name}")
        return 0
    directory = directory_of(arguments)
    directory.read_config()
    if directory.holder() is None:
        raise RunError(f"{directory.path}: this run is not under way on this machine; on a cluster, give its --address")
    directory.stop_path.touch()
    deadline = time.monotonic() + _WAIT_SECONDS
    while directory.holder() is not None:
        if time.monotonic() > deadline:
            raise RunError(f"{directory.path}: the head has not stopped in {_WAIT_SECONDS:g} s; look at events.jsonl")
        time.sleep(0.1)
    print(f"{arguments.name} has stopped; go on with: es-service resume {arguments.name}")
    return 0
