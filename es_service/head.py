"""The Ray shell of the coordinator: a named actor on the head node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from es_service.config import RunConfig
from es_service.coordinator import Coordinator
from es_service.data import Corpus, piece
from es_service.directory import RunDirectory
from es_service.errors import RunError
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

    `resolve` and `make_pool` are handed in, as the head imports no worker code of its own. `ray_exporters`: where Ray
    serves metrics, if no dashboard of its own tells Prometheus so. When its process dies, Ray makes another: that one
    goes on from the journal by itself, and answers the calls that Ray repeats.
    """

    def __init__(
        self,
        config_json: str,
        runs_dir: str,
        name: str,
        resolve: Callable[[str, int], tuple[Ops, str]],
        make_pool: Callable[[RunConfig, Corpus], Pool],
        ray_exporters: Sequence[str] = (),
    ) -> None:
        self._config = RunConfig.model_validate_json(config_json)
        self._directory = RunDirectory(Path(runs_dir), name)
        self._resolve = resolve
        self._make_pool = make_pool
        self._ray_exporters = ray_exporters
        self._coordinator: Coordinator | None = None
        self._corpus: Corpus | None = None
        self._stop_reason = ""
        self._last_beat = time.monotonic()
        self._thread = ThreadPoolExecutor(1, "run")
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        self._work: Future[Finish] | None = self._thread.submit(self._go_on) if restarted else None

    def open(self, resume: bool, workers: int | None = None) -> str:
        """Lock the journal and start the workers, so many if that was asked for; raises what is wrong.

        One line about the head's kernels.
        """
        ops, why = self._resolve(self._config.deployment.aggregator_backend, 0)
        coordinator = open_session(self._config, self._directory, resume, ops, self._pool, self._ray_exporters)
        self._abandoned = self._watch()
        if workers is not None:
            coordinator.scale(workers)
        self._coordinator = coordinator  # from here on others may ask for another number
        return why

    def corpus_piece(self, held_out: bool, offset: int) -> bytes:
        """Bytes of the corpus, for a worker that cannot build it."""
        return piece(self._corpus, held_out, offset) if self._corpus else b""

    @ray.method(max_task_retries=-1)
    def run(self) -> Finish:
        """Train. The driver takes the answer and ends this actor; where nobody does, it ends itself."""
        if self._work is None:
            self._work = self._thread.submit(self._train)
        return self._work.result()

    def heartbeat(self) -> Status | None:
        """The driver is alive; what it may show. None while the journal is read after a restart."""
        self._last_beat = time.monotonic()
        return self._coordinator.heartbeat() if self._coordinator else None

    def silence(self) -> float:
        """Seconds since the driver's last sign of life, or since this process began; 0 for a run that needs none."""
        return 0.0 if self._config.deployment.detach else time.monotonic() - self._last_beat

    @ray.method(max_task_retries=-1)
    def stop(self, reason: str) -> None:
        """Ask for an end at the last commit."""
        self._stop_reason = reason
        if self._coordinator:
            self._coordinator.stop(reason)

    def scale(self, workers: int) -> None:
        """Keep so many workers from now on."""
        if self._coordinator is None:
            raise RunError("the head is being started again: try once more in a few seconds")
        self._coordinator.scale(workers)

    def look(self, what: Callable[[RunDirectory], Any]) -> Any:
        """The answer of a function that reads the run's directory, here where it lies."""
        return what(self._directory)

    def _go_on(self) -> Finish:
        """What `open` and `run` did before this process was started in place of one that died."""
        watch, workers = self._watch(), self._asked_workers()
        try:
            self._directory.log_event("restarted", workers=workers)
            self.open(resume=True, workers=workers)
        except Exception as error:
            with suppress(RunError):  # the disk may be what failed
                self._directory.log_event("failed", reason=str(error))
            raise
        watch.cancel()
        if self._coordinator:
            self._coordinator.telemetry.restarted()
        return self._train()

    def _asked_workers(self) -> int | None:
        """What `scale` asked for since the run was begun or resumed by a driver, heard or not; None if nothing."""
        workers, restarted = None, False
        for event in self._directory.events():
            match event["kind"]:
                case "scaled":
                    workers = event.get("workers")
                case "restarted":
                    restarted = True
                case "resumed":
                    workers, restarted = workers if restarted else None, False
        unheard = self._directory.take_scale()
        return workers if unheard is None else unheard

    def _train(self) -> Finish:
        coordinator = self._coordinator
        assert coordinator, "the run has not been opened"
        self._abandoned.cancel()
        if self._stop_reason:
            coordinator.stop(self._stop_reason)
        try:
            return coordinator.run()
        finally:
            if self._config.deployment.detach or coordinator.driver_is_silent():
                self._die()
            self._watch()

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
