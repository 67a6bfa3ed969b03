"""`es-service fetch`: a run's directory from its storage, for every command that reads one."""

from __future__ import annotations

from argparse import Namespace

from es_service.commands.sources import directory_of
from es_service.storage import fetch

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Nothing is changed in the storage."""
    print(fetch(arguments.storage_url, arguments.name, directory_of(arguments)))
    return 0
