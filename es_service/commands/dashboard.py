"""`es-service dashboard`: the page of a run that is under way or over, from the files in its directory."""

from __future__ import annotations

import sys
import threading
from argparse import Namespace
from contextlib import ExitStack

from es_service.commands.sources import directory_of
from es_service.commands.texts import cached_corpus, held_out_baselines
from es_service.commands.watching import show_page
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import ServiceError
from es_service.page.server import Page


def run(arguments: Namespace) -> int:
    """Serve until Ctrl-C."""
    directory = directory_of(arguments)
    config = directory.read_config()
    with ExitStack() as stack:
        page = show_page(stack, config, directory, arguments.port)
        print(f"{directory.name}: {page.url} (Ctrl-C ends it; the run notices nothing)", flush=True)
        try:
            _count(page, config, directory)
            threading.Event().wait()
        except KeyboardInterrupt:
            print("ended")
    return 0


def _count(page: Page, config: RunConfig, directory: RunDirectory) -> None:
    """The lines of the simple models, where the run has not counted them and this machine has its corpus."""
    if any(row["kind"] == "baselines" for row in directory.metrics()):
        return
    try:
        corpus = cached_corpus(config)
        if corpus is not None:
            page.set_baselines(held_out_baselines(config, corpus))
    except ServiceError as error:
        print(f"no lines of simple models: {error}", file=sys.stderr)
