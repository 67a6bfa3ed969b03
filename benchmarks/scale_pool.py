"""Simulated workers and links on a simulated clock, behind the port through which the coordinator sees its workers."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from benchmarks.scale_costs import Costs
from es_service.config import RunConfig
from es_service.messages import (
    Commit,
    Lease,
    LeaseResult,
    Message,
    Order,
    Restore,
    SliceOrder,
    SliceResult,
    decode,
    encode,
    encode_order,
)
from es_service.pools import COPIED_BYTES, HEAD, PoolEvent, Ready, Reply
from es_service.problem import layout_of, run_id
from es_service.updates import slices
from es_service.votes import packed_size

__all__ = ["Clock", "SimulatedPool", "digest_of"]


def digest_of(generation: int) -> int:
    """What stands for the digest of the parameters of a generation."""
    return 1 + generation


class Clock:
    """Simulated seconds. Between `leave` and `enter` the head computes, and its CPU seconds pass."""

    def __init__(self, costs: Costs) -> None:
        self.now = 0.0
        self.head_busy = 0.0
        self._scale = costs.head_cpu
        self._mark = time.thread_time()

    def enter(self) -> None:
        """The head has called something simulated."""
        self.charge((time.thread_time() - self._mark) * self._scale)

    def leave(self) -> None:
        """Back to the head."""
        self._mark = time.thread_time()

    def charge(self, seconds: float) -> None:
        """The head is busy."""
        self.now += seconds
        self.head_busy += seconds

    def __call__(self) -> float:
        self.enter()
        self.leave()
        return self.now


@dataclass(slots=True)
class _Worker:
    """A replica's generation, and when it has done all that it was sent."""

    replica: int = 0
    free: float = 0.0


@dataclass
class Traffic:
    """Bytes through the head's link, and when each way is free again."""

    bytes_down: int = 0
    bytes_up: int = 0
    down_free: float = 0.0
    up_free: float = 0.0


@dataclass(frozen=True)
class _Broadcast:
    """Bytes for all workers: `copied` of them go with each message, or every node has them when they are `ready`."""

    data: bytes
    copied: int
    ready: float

    @cached_property
    def commit(self) -> Commit:
        """The commit that they are, taken apart once for all workers."""
        order = decode(encode_order(0, Lease(0, 0, 5, 0), 0, 1) + self.data)
        assert isinstance(order, Order)
        return order.commits[0]


def _read(data: bytes, parts: Sequence[_Broadcast]) -> tuple[Message, list[Commit]]:
    """The message, and the commits of an order, without their bytes being copied for each worker."""
    if data[0] == _ORDER and parts:
        return decode(data[:-4] + bytes(4)), [part.commit for part in parts]  # as if it had no commits
    return decode(b"".join((data, *(part.data for part in parts)))), []


_ORDER = encode_order(0, Lease(0, 0, 5, 0), 0, 0)[0]


class SimulatedPool:
    """Workers that take exactly as long as `Costs` says. Never fails."""

    size = wave_pairs = 0

    def __init__(self, config: RunConfig, costs: Costs, clock: Clock, seed: int) -> None:
        self.config, self.costs, self.clock = config, costs, clock
        self.traffic = Traffic()
        self.results = 0
        self.evaluating = self.updating = 0.0
        """Seconds of all workers in forward passes and in updates."""
        self._rng = random.Random(seed)
        self._run = run_id(config)
        self._text = config.segment.bytes * config.feeding.passes(config.population)
        self._layout = layout_of(config)
        self._parts = slices(self._layout)
        self._workers = {f"worker-{n + 1}": _Worker() for n in range(config.deployment.workers)}
        self._starts: list[PoolEvent] = [Ready(name, "simulated") for name in self._workers]
        self._workers[HEAD] = _Worker()  # the judge of audits, taken to be as fast
        self._arriving: list[tuple[float, int, str, bytes]] = []
        self._outstanding = 0

    def broadcast(self, data: bytes) -> _Broadcast:
        """As `RayPool`: copies, or an object that nodes hand on to each other."""
        if len(data) * len(self._workers) <= COPIED_BYTES:
            return _Broadcast(data, len(data), 0.0)
        self.clock.enter()
        self.clock.charge(self.costs.ray_call)
        nodes = -(-len(self._workers) // self.costs.node_workers)
        hops = nodes.bit_length()
        self._down(hops * len(data))
        ready = self.clock.now + hops * (self.costs.fetch + self.costs.latency + len(data) / self.costs.link)
        self.clock.leave()
        return _Broadcast(data, 0, ready)

    def send(self, worker: str, data: bytes, parts: Sequence[_Broadcast] = ()) -> None:
        """The bytes go through the head's link; the answer's time is known at once, as a worker does one at a time."""
        self.clock.enter()
        self.clock.charge(self.costs.ray_call / 2)
        self._outstanding += 1
        arrival = self._down(len(data) + sum(part.copied for part in parts)) + self.costs.latency
        self._work(worker, *_read(data, parts), max([arrival, *(part.ready for part in parts)]))
        self.clock.leave()

    def _down(self, num_bytes: int) -> float:
        """When these bytes have left the head."""
        traffic = self.traffic
        traffic.bytes_down += num_bytes
        traffic.down_free = max(traffic.down_free, self.clock.now) + num_bytes / self.costs.link
        return traffic.down_free

    def _work(self, name: str, message: Message, commits: list[Commit], arrival: float) -> None:
        worker = self._workers[name]
        worker.free = max(worker.free, arrival)
        match message:
            case Order():
                for commit in commits:
                    if commit.generation == worker.replica:
                        worker.replica += 1
                        self._update(worker, 1.0, commit.is_step)
                assert worker.replica == message.lease.generation, "an order without the commits that it needs"
                self._answer(name, worker, self._evaluate(worker, message.lease))
            case SliceOrder():
                size = self._parts[message.index].size
                self._update(worker, size / self._layout.size, is_step=False)
                payload = bytes(packed_size(size))
                self._answer(name, worker, SliceResult(self._run, message.generation, message.index, payload))
            case Restore():
                worker.replica = message.generation
                self._outstanding -= 1

    def _evaluate(self, worker: _Worker, lease: Lease) -> LeaseResult:
        pace = max(0.9, self._rng.gauss(1.0, self.costs.jitter)) if self.costs.jitter else 1.0
        seconds = pace * self.costs.evaluation(2 * lease.num_units, self._text)
        self.evaluating += seconds if worker is not self._workers[HEAD] else 0.0
        worker.free += self.costs.host + seconds
        return LeaseResult(
            self._run, lease, 0, -1, 1, digest_of(lease.generation), 2 * lease.num_units * self._text, seconds,
            bytes(packed_size(lease.num_units)),
        )  # fmt: skip

    def _answer(self, name: str, worker: _Worker, message: Message) -> None:
        heapq.heappush(self._arriving, (worker.free + self.costs.latency, self.results, name, encode(message)))
        self.results += 1

    def _update(self, worker: _Worker, share: float, is_step: bool) -> None:
        """A joined step, or a share of the whole update from votes."""
        seconds = self.costs.step if is_step else share * self.costs.update_seconds(self.config.population // 2)
        worker.free += seconds
        self.updating += seconds

    def poll(self, timeout: float) -> list[PoolEvent]:
        """All that has arrived; waits for the first as the real one does."""
        self.clock.enter()
        events, self._starts = self._starts, []
        until = self.clock.now + (0.0 if events else timeout)
        if not events and self._arriving and self._next() <= until:
            self.clock.now = max(self.clock.now, self._next())
        elif not events:
            self.clock.now = until
        self.clock.charge(2 * self._outstanding * self.costs.wait_ref)
        while self._arriving and self._next() <= self.clock.now:
            at, _, name, data = heapq.heappop(self._arriving)
            self.traffic.up_free = max(self.traffic.up_free, at) + len(data) / self.costs.link
            self.traffic.bytes_up += len(data)
            self._outstanding -= 1
            self.clock.charge(self.costs.ray_call / 2)
            events.append(Reply(name, data))
        self.clock.leave()
        return events

    def _next(self) -> float:
        return max(self._arriving[0][0], self.traffic.up_free)

    def close(self) -> None:
        """Nothing to end."""
