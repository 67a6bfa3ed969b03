"""The Ray shell of the coordinator: a named actor on the head node."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from es_service.config import RunConfig
from es_service.coordinator import Coordinator
from es_service.data import Corpus, piece
from es_service.directory import RunDirectory
from es_service.events import Finish
from es_service.pools import Pool
from es_service.session import open_session
from es_service.telemetry import Status
from es_service.types import Ops

__all__ = ["NAMESPACE", "HeadActor", "actor_name", "runs_under_way"]

NAMESPACE = "es-service"


def actor_name(run: str) -> str:
    """Name of a run's head actor in `NAMESPACE`."""
    return f"head-{run}"


def runs_under_way() -> list[str]:
    """Names of the runs that have a head on this cluster."""
    named = ray.util.list_named_actors(all_namespaces=True)
    names = (actor["name"] for actor in named if actor["namespace"] == NAMESPACE)
    return sorted(name.removeprefix("head-") for name in names if name.startswith("head-"))


class HeadActor:
    """Owns one run. `open`, then `run` in one call that lasts as long as the run; the rest may be called meanwhile.

    `resolve` and `make_pool` are handed in, as the head imports no worker code of its own.
    """

    def __init__(
        self,
        config_json: str,
        runs_dir: str,
        name: str,
        resolve: Callable[[str, int], tuple[Ops, str]],
        make_pool: Callable[[RunConfig, Corpus], Pool],
    ) -> None:
        self._config = RunConfig.model_validate_json(config_json)
        self._directory = RunDirectory(Path(runs_dir), name)
        self._resolve = resolve
        self._make_pool = make_pool
        self._coordinator: Coordinator | None = None
        self._corpus: Corpus | None = None

    def open(self, resume: bool, ray_exporters: Sequence[str] = ()) -> str:
        """Lock the journal and start the workers; raises what is wrong. One line about the head's kernels.

        `ray_exporters`: where Ray serves metrics, if no dashboard of its own tells Prometheus so.
        """
        ops, why = self._resolve(self._config.deployment.aggregator_backend, 0)
        self._coordinator = open_session(self._config, self._directory, resume, ops, self._pool, ray_exporters)
        self._abandoned = self._watch()
        return why

    def corpus_piece(self, held_out: bool, offset: int) -> bytes:
        """Bytes of the corpus, for a worker that cannot build it."""
        return piece(self._corpus, held_out, offset) if self._corpus else b""

    def run(self) -> Finish:
        """Train. The driver takes the answer and ends this actor; where nobody does, it ends itself."""
        self._abandoned.cancel()
        try:
            return self._opened().run()
        finally:
            if self._config.deployment.detach or self._opened().driver_is_silent():
                self._die()
            self._watch()

    def heartbeat(self) -> Status:
        """The driver is alive; what it may show."""
        return self._opened().heartbeat()

    def look(self, what: Callable[[RunDirectory], Any]) -> Any:
        """The answer of a function that reads the run's directory, here where it lies."""
        return what(self._directory)

    def stop(self, reason: str) -> None:
        """Ask for an end at the last commit."""
        self._opened().stop(reason)

    def scale(self, workers: int) -> None:
        """Keep so many workers from now on."""
        self._opened().scale(workers)

    def _watch(self) -> threading.Timer:
        """End this actor after a while, unless its driver does so, or calls `run`, before."""
        timer = threading.Timer(self._config.deployment.heartbeat_timeout_seconds, self._die)
        timer.daemon = True
        timer.start()
        return timer

    def _die(self) -> None:
        """End this actor: nobody is left who would."""
        ray.kill(ray.get_runtime_context().current_actor, no_restart=True)

    def _pool(self, config: RunConfig, corpus: Corpus) -> Pool:
        self._corpus = corpus  # before the workers exist that may ask for it
        return self._make_pool(config, corpus)

    def _opened(self) -> Coordinator:
        if self._coordinator is None:
            raise RuntimeError("the run has not been opened")
        return self._coordinator
