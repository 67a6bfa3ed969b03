"""What looks on while a run trains: the page and the trackers. All of it reads the run's directory and nothing else."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import ConfigError
from es_service.page.server import Page
from es_service.tail import Consumer, Follower, RunTail
from es_service.trackers.tensorboard import TensorBoard
from es_service.trackers.wandb import WeightsAndBiases

__all__ = ["show_page", "watching"]


@contextmanager
def watching(
    config: RunConfig, directory: RunDirectory, arguments: Namespace, resume: bool
) -> Iterator[Callable[[], None]]:
    """The page and the trackers that were asked for, to the end of the command; entered before the run is started.

    Yields what says where they are, to be called once the run has its directory. Raises `ConfigError` or
    `BackendError` for what cannot be had.
    """
    wanted = [f"--{name}" for name in ("dashboard", "tensorboard", "wandb") if getattr(arguments, name)]
    if config.deployment.detach and wanted:
        raise ConfigError(
            f"{wanted[0]}: it ends with this command, and a detached run goes on; leave it out, and use "
            "`es-service dashboard NAME` on the head's node"
        )
    told = []
    with ExitStack() as stack:
        if arguments.tensorboard:
            tracker = TensorBoard(directory)
            _follow(stack, directory, tracker)
            told.append(f"TensorBoard: tensorboard --logdir {tracker.path}")
        if arguments.wandb:
            _follow(stack, directory, WeightsAndBiases(config, directory), skip=resume)
        if _wants_page(config, arguments):
            told.append(f"live page: {show_page(stack, config, directory, arguments.dashboard_port).url}")
        yield lambda: _tell(directory, told, bool(wanted))


def _wants_page(config: RunConfig, arguments: Namespace) -> bool:
    """By default only where a person sits."""
    if arguments.dashboard is None:
        return sys.stdout.isatty() and not config.deployment.detach
    return bool(arguments.dashboard)


def _tell(directory: RunDirectory, told: list[str], wanted: bool) -> None:
    if directory.journal_path.exists():
        for line in told:
            print(line, flush=True)
    elif wanted:  # with --address
        print(
            f"no page and no tracker: the files of the run are not on this machine, but in {directory.path} on the "
            f"head's node; there: es-service dashboard {directory.name} --runs-dir {directory.path.parent}",
            flush=True,
        )


def show_page(stack: ExitStack, config: RunConfig, directory: RunDirectory, port: int | None) -> Page:
    """A page that serves until the stack is closed."""
    page = Page(config, directory, port)
    _follow(stack, directory, page)
    return page


def _follow(stack: ExitStack, directory: RunDirectory, consumer: Consumer, skip: bool = False) -> None:
    tail = RunTail(directory)
    if skip:
        tail.skip()
    stack.callback(Follower(tail, consumer).close)
