"""The Ray shell of the evaluator: one actor a worker."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

from es_service import __version__
from es_service.build import identity
from es_service.config import RunConfig
from es_service.data import load_or_fetch
from es_service.errors import BackendError, MessageError
from es_service.messages import LeaseResult, decode
from es_service.metrics import WORKER_METRICS
from workers import ops
from workers.evaluator import Evaluator

__all__ = ["WorkerActor"]

_REFRESH_SECONDS = 5.0


class WorkerActor:
    """Made by the pool. `start` does what can fail, so that its errors arrive as they were raised.

    `head` answers `corpus_piece(held_out, offset)`; `run` and `name` are labels of its metrics.
    """

    def __init__(self, config_json: str, version: str, head: Any, run: str, name: str) -> None:
        self._config_json = config_json
        self._version = version
        self._head = head
        self._meters = _Meters(run, name)
        self._evaluator: Evaluator | None = None

    def start(self) -> tuple[str, str]:
        """Load the corpus, whose content hash must be the run's, and the kernels; one line about it, and its node."""
        if self._version != identity():
            raise BackendError(
                f"{socket.gethostname()} has es-service {identity()} and the head {self._version}: install the head's "
                "wheel there (`make wheel`, `ray up` or a new image), then resume"
            )
        config = RunConfig.model_validate_json(self._config_json)
        worker = config.deployment.worker
        kernels, why = ops.resolve(worker.backend, worker.threads)
        corpus = load_or_fetch(config.data, self._piece)
        self._evaluator = Evaluator(config, corpus.train, kernels)
        self._meters.start(kernels.name)
        node = ray.get_runtime_context().get_node_id()
        place = f"{socket.gethostname()} node {node[:8]} pid {os.getpid()}"
        return f"{place}, es-service {identity()}, {worker.threads} threads, {why}", node

    def _piece(self, held_out: bool, offset: int) -> bytes:
        data: bytes = ray.get(self._head.corpus_piece.remote(held_out, offset))
        return data

    def wave_pairs(self) -> int:
        """Pairs that fill this worker's device once; 0 if it has not been started or any number will do."""
        return self._evaluator.task.wave_pairs if self._evaluator else 0

    def handle(self, *parts: bytes) -> bytes:
        """Answer one message, which comes in parts: those that every worker gets are fetched from the nearest node."""
        if self._evaluator is None:
            raise MessageError("this worker has not been started")
        answer = self._evaluator.handle(b"".join(parts))
        if answer and isinstance(result := decode(answer), LeaseResult):
            self._meters.returned(result)
        return answer


class _Meters:
    """What a worker tells its node's exporter. Made for an actor: what it starts ends with its process."""

    def __init__(self, run: str, worker: str) -> None:
        self._labels = {"run": run, "worker": worker}
        self._metrics: dict[str, Any] = {
            name: {"counter": Counter, "gauge": Gauge}[metric.kind](metric.name, metric.text, metric.labels)
            for name, metric in WORKER_METRICS.items()
        }
        self._generation = 0
        self._cpu_seconds = 0.0
        self._info: dict[str, str] = {}

    def start(self, backend: str) -> None:
        """Say where this is, from now on. Ray forgets a gauge that is not set again within twenty seconds."""
        gpus = ",".join(map(str, ray.get_gpu_ids()))
        self._info = {**self._labels, "gpu": gpus, "backend": backend, "version": __version__}
        threading.Thread(target=self._refresh, name="meters", daemon=True).start()

    def returned(self, result: LeaseResult) -> None:
        """A lease has been evaluated."""
        self._generation = result.lease.generation
        self._metrics["leases"].inc(1, self._labels)
        self._metrics["evaluation_seconds"].inc(max(result.seconds, 1e-9), self._labels)
        self._metrics["model_bytes"].inc(result.model_bytes, self._labels)

    def _refresh(self) -> None:
        while True:
            cpu_seconds = time.process_time()
            self._metrics["cpu_seconds"].inc(max(cpu_seconds - self._cpu_seconds, 1e-9), self._labels)
            self._cpu_seconds = cpu_seconds
            self._metrics["info"].set(1, self._info)
            self._metrics["generation"].set(self._generation, self._labels)
            time.sleep(_REFRESH_SECONDS)
