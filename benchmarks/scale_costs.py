"""What the simulator of `benchmarks.scale` charges: predictions, assumptions, and what is measured in the same run.

Times on a GPU are the **predictions** of docs/gpu-kernels.md for an H100 at D = 256, L = 6: no GPU has run the kernels.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from es_service import journal
from es_service.config import RunConfig
from es_service.journal_writer import JournalWriter
from es_service.problem import layout_of
from es_service.updates import apply_step, slices
from es_service.votes import packed_size
from es_service.wiring import kernels

__all__ = ["Costs", "fsync_seconds", "ray_seconds", "step_seconds"]

_MULTIPROCESSORS = 132
_TILES = (16, 32, 64, 128)
_FULL_TILE_BYTES_PER_SECOND = 45e6
"""Prediction: 45 to 57 M bytes/s with tiles of 128 members on every multiprocessor; the lower end."""
_SMALL_TILE_BYTES_PER_SECOND = 15e6
"""Prediction: 12 to 18 M bytes/s with 4,096 members, that is tiles of 32."""
_UPDATE_SECONDS_PER_PAIR = 16e-3 / 131_072
"""Prediction: 12 to 20 ms for 131,072 pairs."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds and bytes/s. Zero (infinity for rates) makes a part free: that is how the bottleneck is found."""

    head_cpu: float = 1.0
    """Multiple of the measured CPU seconds of the coordinator, the state machine and the journal on this machine."""
    ray_call: float = 300e-6
    """CPU seconds of the head's process for one actor call, sending and receiving: an assumption, measured
    with --ray."""
    wait_ref: float = 0.0
    """CPU seconds of one look at one outstanding call; 0 where answers come by callback."""
    relayed: float = 30e-6
    """The same for each message and its answer in a call to the relay of a node; measured with --ray."""
    relay: float = 400e-6
    """Assumption: seconds that a relay needs for each message to a worker, and for each answer."""
    window: float = 5e-3
    """How long a relay waits for more answers, as `workers.relay` does."""
    fsync: float = 1e-3
    """Seconds of one fsync of the journal; measured."""
    latency: float = 250e-6
    """Assumption: seconds from one process to another on another node, one way, without load."""
    link: float = 10e9 / 8
    """Bytes/s of the network link of the head and of every node, each way."""
    node_workers: int = 8
    """Workers on one node: they share one copy of what is broadcast."""
    fetch: float = 1e-3
    """Assumption: seconds that one hop of a broadcast costs beside the bytes."""
    update: float = 1.0
    """Multiple of the predicted seconds of an update."""
    step: float = 30e-3
    """Seconds in which a replica applies a step that was made in slices; measured, on a CPU."""
    host: float = 2e-3
    """Assumption: seconds that a worker spends on a lease outside the forward pass (rows, launches, copies)."""
    jitter: float = 0.01
    """Assumption: standard deviation of lease times, as a share."""

    def evaluation(self, members: int, text: int) -> float:
        """Predicted seconds of `members` over `text` bytes on one H100: rounds of the smallest tile that does it."""
        full = _MULTIPROCESSORS * 128 / _FULL_TILE_BYTES_PER_SECOND
        small = _MULTIPROCESSORS * 32 * (4096 / (_MULTIPROCESSORS * 32)) / _SMALL_TILE_BYTES_PER_SECOND
        slope = (full - small) / (128 - 32)
        return text * min(-(-members // (tile * _MULTIPROCESSORS)) * (small + slope * (tile - 32)) for tile in _TILES)

    def full_rate(self) -> float:
        """Bytes/s of one H100 with full tiles."""
        return _FULL_TILE_BYTES_PER_SECOND

    def update_seconds(self, pairs: int) -> float:
        """Predicted seconds of one whole update on one H100."""
        return self.update * (pairs * _UPDATE_SECONDS_PER_PAIR)


def fsync_seconds(config: RunConfig, directory: Path, turns: int = 5) -> float:
    """Median of real appends of one generation's record on this machine's disk."""
    path = directory / "fsync.bin"
    taken = []
    with JournalWriter.create(path, journal.Header(config.spec, 0)) as writer:
        units = config.population // 2
        for generation in range(turns):
            writer.append(journal.Commit(generation, units, 0, 0, 0, 0, 0, bytes(-(-units // 5))))
            taken.append(writer.fsync_seconds)
    path.unlink()
    return statistics.median(taken)


def step_seconds(config: RunConfig, turns: int = 3) -> float:
    """Median CPU seconds of applying a joined step to all parameters here."""
    layout, ops = layout_of(config), kernels("auto", 1)[0]
    parameters_P, step = np.zeros(layout.size, np.int8), b"".join(bytes(packed_size(p.size)) for p in slices(layout))
    taken = []
    for _ in range(turns):
        began = time.thread_time()
        apply_step(ops, layout, parameters_P, step)
        taken.append(time.thread_time() - began)
    return statistics.median(taken)


class _Echo:
    """Answers as a worker does, with about as many bytes as a lease's votes, and as a relay does for eight."""

    def __init__(self, size: int) -> None:
        self._answer = bytes(size)

    async def handle(self, data: bytes) -> bytes:  # noqa: ARG002
        return self._answer

    async def exchange(self, parcels: list[tuple[str, bytes, list[int]]]) -> list[tuple[str, bytes]]:
        return [(worker, self._answer) for worker, _, _ in parcels]


def ray_seconds(calls: int = 2000, actors: int = 2, parcels: int = 8) -> dict[str, float]:
    """What Ray costs on a Ray started here: `ray_call`, `wait_ref` and `relayed` of `Costs`.

    CPU seconds of all threads of this process, so that other programs on the machine hardly count.
    """
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        echo: Any = ray.remote(_Echo).options(num_cpus=0, enable_task_events=False)
        workers = [echo.remote(1700) for _ in range(actors)]
        ray.get([worker.handle.remote(b"") for worker in workers])
        gc.collect()
        order = np.random.default_rng(0).bytes(100)
        many = [(f"worker-{n}", order, [0]) for n in range(parcels)]
        call, refs = _seconds(ray.get, [lambda n=n: workers[n % actors].handle.remote(order) for n in range(calls)])
        exchange, _ = _seconds(ray.get, [lambda n=n: workers[n % actors].exchange.remote(many) for n in range(calls)])
        began = time.process_time()
        for _ in range(10):
            ray.wait(refs, num_returns=1, timeout=0, fetch_local=False)
        wait = (time.process_time() - began) / (10 * calls)
        return {"ray_call": call, "wait_ref": wait, "relayed": max(exchange - call, 0.0) / parcels}
    finally:
        ray.shutdown()


def _seconds(get: Callable[[Any], Any], calls: Sequence[Callable[[], Any]]) -> tuple[float, list[Any]]:
    """(CPU seconds of one of these calls and its answer, the references)."""
    began = time.process_time()
    refs = [call() for call in calls]
    for ref in refs:
        get(ref)
    return (time.process_time() - began) / len(calls), refs
