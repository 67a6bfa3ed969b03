"""The Ray shell of the evaluator: one actor a worker."""

from __future__ import annotations

import os
import socket
from typing import Any

import ray

from es_service import __version__
from es_service.config import RunConfig
from es_service.data import load_or_fetch
from es_service.errors import BackendError, MessageError
from workers import ops
from workers.evaluator import Evaluator

__all__ = ["WorkerActor"]


class WorkerActor:
    """Made by the pool. `start` does what can fail, so that its errors arrive as they were raised.

    `head` answers `corpus_piece(held_out, offset)`.
    """

    def __init__(self, config_json: str, version: str, head: Any) -> None:
        self._config_json = config_json
        self._version = version
        self._head = head
        self._evaluator: Evaluator | None = None

    def start(self) -> tuple[str, str]:
        """Load the corpus, whose content hash must be the run's, and the kernels; one line about it, and its node."""
        if self._version != __version__:
            raise BackendError(
                f"{socket.gethostname()} has es-service {__version__} and the head {self._version}: install the same"
            )
        config = RunConfig.model_validate_json(self._config_json)
        worker = config.deployment.worker
        kernels, why = ops.resolve(worker.backend, worker.threads)
        corpus = load_or_fetch(config.data, self._piece)
        self._evaluator = Evaluator(config, corpus.train, kernels)
        node = ray.get_runtime_context().get_node_id()
        place = f"{socket.gethostname()} node {node[:8]} pid {os.getpid()}"
        return f"{place}, {worker.threads} threads, {why}", node

    def _piece(self, held_out: bool, offset: int) -> bytes:
        data: bytes = ray.get(self._head.corpus_piece.remote(held_out, offset))
        return data

    def handle(self, data: bytes) -> bytes:
        """Answer one message."""
        if self._evaluator is None:
            raise MessageError("this worker has not been started")
        return self._evaluator.handle(data)
