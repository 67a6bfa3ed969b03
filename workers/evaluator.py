"""What a worker does, without Ray: bytes of a message in, bytes of the answer out."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from es_service import votes
from es_service.config import RunConfig
from es_service.errors import DivergenceError, MessageError
from es_service.messages import (
    Behind,
    Commit,
    Lease,
    LeaseResult,
    Message,
    Order,
    Restore,
    Share,
    SliceOrder,
    SliceResult,
    decode,
    encode,
)
from es_service.problem import algorithm_of, initial_parameters, layout_of, run_id
from es_service.shared import read_shared
from es_service.types import Int8Array, Ops, UInt8Array
from es_service.updates import apply_commit, slices
from workers.tasks import task_of

__all__ = ["Evaluator"]


class Evaluator:
    """A replica of the parameters and the task. Everything it holds can be rebuilt from a `Restore` and commits."""

    def __init__(self, config: RunConfig, train: UInt8Array, ops: Ops) -> None:
        self.config = config
        self.ops = ops
        self.task = task_of(config, train, ops)
        self.algorithm = algorithm_of(config)
        self.layout = layout_of(config)
        self.run = run_id(config)
        self.generation = -1
        self._parameters_P: Int8Array | None = None
        self._digest = 0

    def handle(self, data: bytes) -> bytes:
        """Answer one message: an `Order` with `LeaseResult` or `Behind`, commits alone and parameters with nothing."""
        message: Message = decode(data)
        if message.run != self.run:
            raise MessageError("this message belongs to another run")
        match message:
            case Order():
                answer = self.work(message)
                return encode(answer) if answer else b""
            case SliceOrder():
                return encode(self.slice(message))
            case Restore():
                self.restore(message)
            case Share():
                self.read(message)
            case _:
                raise MessageError(f"a worker takes orders and parameters, not {type(message).__name__}")
        return b""

    def restore(self, message: Restore) -> None:
        """Replace the replica."""
        if message.parameters:
            if len(message.parameters) != self.layout.size:
                raise MessageError(f"{len(message.parameters)} parameters, the model has {self.layout.size}")
            parameters_P = np.frombuffer(message.parameters, np.int8).copy()
        else:
            parameters_P = initial_parameters(self.config)
        self._adopt(parameters_P, message)

    def read(self, message: Share) -> None:
        """Replace the replica by what lies in the memory that the head shares.

        If the head has gone on meanwhile, that is another generation or half of one: then there is no replica, and the
        next order is answered with `Behind`.
        """
        try:
            self._adopt(read_shared(Path(message.path), message.generation, self.layout.size), message)
        except (DivergenceError, OSError):
            self.generation = -1

    def _adopt(self, parameters_P: Int8Array, message: Restore | Share) -> None:
        digest = self.ops.digest(self.layout, parameters_P)
        if digest != message.digest:
            raise DivergenceError(f"generation {message.generation} arrived with digest {digest:016x}")
        self._take(parameters_P, message.generation, digest)

    def work(self, order: Order) -> LeaseResult | Behind | None:
        """Apply the commits that are new, then evaluate the lease, if it has any units."""
        for commit in order.commits:
            if commit.generation == self.generation:
                self.advance(commit)
        if not order.lease.num_units:
            return None
        if self.generation != order.lease.generation:
            return Behind(self.run, order.lease, self.generation)
        return self.evaluate(order.lease, order.threshold)

    def slice(self, order: SliceOrder) -> SliceResult:
        """Some tensors' part of an update. It follows from the votes: the replica is not looked at."""
        parts = slices(self.layout)
        algorithm = self.algorithm.of_tensors(parts[order.index]) if order.index < len(parts) else None
        if algorithm is None:
            raise MessageError(f"slice {order.index} of an update that has no such slice")
        moves = np.zeros(parts[order.index].size, np.int8)
        algorithm.update(self.ops, moves, order.generation, order.threshold, order.record)
        return SliceResult(self.run, order.generation, order.index, votes.pack(moves))

    def advance(self, commit: Commit) -> None:
        """Go from one generation to the next."""
        assert self._parameters_P is not None
        apply_commit(self.algorithm, self.ops, self.layout, self._parameters_P, commit)
        digest = self.ops.digest(self.layout, self._parameters_P)
        self._take(self._parameters_P, commit.generation + 1, digest)

    def evaluate(self, lease: Lease, threshold: int) -> LeaseResult:
        """What the task finds out about a lease's units, as the algorithm encodes it."""
        began = time.perf_counter()
        outcome = self.task.evaluate(lease.generation, threshold, lease.first_unit, lease.num_units)
        return LeaseResult(
            run=self.run,
            lease=lease,
            score_sum=outcome.score_sum,
            score_min=outcome.score_min,
            score_max=outcome.score_max,
            digest=self._digest,
            model_bytes=outcome.model_bytes,
            seconds=time.perf_counter() - began,
            payload=self.algorithm.encode(outcome.values),
        )

    def _take(self, parameters_P: Int8Array, generation: int, digest: int) -> None:
        self._parameters_P = parameters_P
        self.generation = generation
        self._digest = digest
        self.task.prepare(parameters_P)
