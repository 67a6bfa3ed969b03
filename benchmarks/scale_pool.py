"""Simulated workers and links on a simulated clock, behind the port through which the coordinator sees its workers."""

from __future__ import annotations

import heapq
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import inf

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
from es_service.pools import COPIED_BYTES, HEAD, RELAYED_WORKERS, PoolEvent, Ready, Reply
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


@dataclass(eq=False)
class _Call:
    """What comes to the head at once: (worker, bytes) each; from the relay of a `node` all that it has `until` then.

    One that never comes back, as another took its place, has no `answers`.
    """

    answers: list[tuple[str, bytes]] | None
    node: _Node | None = None
    until: float = 0.0


@dataclass(eq=False)
class _Node:
    """The relay of a node (`workers.relay`): what waits to be sent there, and (when, who, what) is answered there."""

    parcels: list[tuple[str, bytes, Sequence[_Broadcast]]] = field(default_factory=list)
    answers: list[tuple[float, str, bytes]] = field(default_factory=list)
    call: _Call | None = None
    free: float = 0.0

    def ready(self, until: float) -> list[tuple[str, bytes]]:
        """What is answered by then."""
        return [(name, data) for at, name, data in self.answers if at <= until]

    def taken(self, until: float) -> None:
        """That is with the head now."""
        self.answers = [answer for answer in self.answers if answer[0] > until]


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
        nodes = [_Node() for _ in range(0, len(self._workers), costs.node_workers)]
        relayed = len(self._workers) >= RELAYED_WORKERS
        self._node_of = {name: nodes[n // costs.node_workers] for n, name in enumerate(self._workers) if relayed}
        self._to_call: dict[_Node, None] = {}
        self._workers[HEAD] = _Worker()  # the judge of audits, taken to be as fast
        self._arriving: list[tuple[float, int, _Call]] = []
        self._calls = 0

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
        if worker in self._node_of:
            node = self._node_of[worker]
            node.parcels.append((worker, data, parts))
            self._to_call[node] = None
        else:
            self._send(worker, data, parts)
        self.clock.leave()

    def _send(self, worker: str, data: bytes, parts: Sequence[_Broadcast]) -> None:
        arrival, way = self.clock.now, 0.0
        if worker != HEAD:  # which is here
            self.clock.charge(self.costs.ray_call / 2)
            way = self.costs.latency
            arrival = self._down(len(data) + sum(part.copied for part in parts)) + way
        answer = self._work(worker, *_read(data, parts), max([arrival, *(part.ready for part in parts)]))
        if answer:
            self._push(self._workers[worker].free + way, _Call([(worker, answer)]))

    def _push(self, arrival: float, call: _Call) -> None:
        heapq.heappush(self._arriving, (arrival, self._calls, call))
        self._calls += 1

    def _call(self, node: _Node) -> None:
        """What waits for a node goes there in one call; the one that is there comes back with what there is."""
        costs, parcels, node.parcels = self.costs, node.parcels, []
        self.clock.charge((costs.ray_call + len(parcels) * costs.relayed) / 2)
        shared = {id(part): part for _, _, parts in parcels for part in parts}.values()
        arrival = self._down(sum(len(data) for _, data, _ in parcels) + sum(part.copied for part in shared))
        arrival = max([arrival + costs.latency, *(part.ready for part in shared)])
        if node.call is not None:  # it comes back now with what there is
            node.call.answers = None
            self._push(arrival + costs.latency, _Call(node.ready(arrival)))
            node.taken(arrival)
        node.free = max(node.free, arrival)
        for worker, data, parts in parcels:
            node.free += costs.relay
            answer = self._work(worker, *_read(data, parts), node.free)
            if answer:
                node.answers.append((self._workers[worker].free + costs.relay, worker, answer))
        node.call = None
        if node.answers:
            first = max(arrival, min(node.answers)[0])
            until = min(max(first, max(node.answers)[0]), first + costs.window)
            node.call = _Call(node.ready(until), node, until)
            self._push(until + costs.latency, node.call)

    def _down(self, num_bytes: int) -> float:
        """When these bytes have left the head."""
        traffic = self.traffic
        traffic.bytes_down += num_bytes
        traffic.down_free = max(traffic.down_free, self.clock.now) + num_bytes / self.costs.link
        return traffic.down_free

    def _work(self, name: str, message: Message, commits: list[Commit], arrival: float) -> bytes:
        """Do what a message says, from when it has arrived on; the answer."""
        worker = self._workers[name]
        worker.free = max(worker.free, arrival)
        match message:
            case Order():
                for commit in commits:
                    if commit.generation == worker.replica:
                        worker.replica += 1
                        self._update(worker, 1.0, commit.is_step)
                assert worker.replica == message.lease.generation, "an order without the commits that it needs"
                if message.lease.num_units:
                    return self._answer(self._evaluate(worker, message.lease))
            case SliceOrder():
                size = self._parts[message.index].size
                self._update(worker, size / self._layout.size, is_step=False)
                payload = bytes(packed_size(size))
                return self._answer(SliceResult(self._run, message.generation, message.index, payload))
            case Restore():
                worker.replica = message.generation
        return b""

    def _evaluate(self, worker: _Worker, lease: Lease) -> LeaseResult:
        pace = max(0.9, self._rng.gauss(1.0, self.costs.jitter)) if self.costs.jitter else 1.0
        seconds = pace * self.costs.evaluation(2 * lease.num_units, self._text)
        self.evaluating += seconds if worker is not self._workers[HEAD] else 0.0
        worker.free += self.costs.host + seconds
        return LeaseResult(
            self._run, lease, 0, -1, 1, digest_of(lease.generation), 2 * lease.num_units * self._text, seconds,
            bytes(packed_size(lease.num_units)),
        )  # fmt: skip

    def _answer(self, message: Message) -> bytes:
        self.results += 1
        return encode(message)

    def _update(self, worker: _Worker, share: float, is_step: bool) -> None:
        """A joined step, or a share of the whole update from votes."""
        seconds = self.costs.step if is_step else share * self.costs.update_seconds(self.config.population // 2)
        worker.free += seconds
        self.updating += seconds

    def poll(self, timeout: float) -> list[PoolEvent]:
        """All that has arrived; waits for the first as the real one does."""
        self.clock.enter()
        events, self._starts = self._starts, []
        nodes, self._to_call = self._to_call, {}
        for node in nodes:
            self._call(node)
        until = self.clock.now + (0.0 if events else timeout)
        if not events:
            self.clock.now = max(self.clock.now, min(self._next(), until))
        self.clock.charge(2 * len(self._arriving) * self.costs.wait_ref)
        while self._next() <= self.clock.now:
            at, _, call = heapq.heappop(self._arriving)
            events += self._came(at, call)
        self.clock.leave()
        return events

    def _next(self) -> float:
        """When the next call will be back."""
        while self._arriving and self._arriving[0][2].answers is None:
            heapq.heappop(self._arriving)
        return max(self._arriving[0][0], self.traffic.up_free) if self._arriving else inf

    def _came(self, at: float, call: _Call) -> list[Reply]:
        assert call.answers is not None
        size = sum(len(data) for _, data in call.answers)
        self.traffic.up_free = max(self.traffic.up_free, at) + size / self.costs.link
        self.traffic.bytes_up += size
        self.clock.charge((self.costs.ray_call + len(call.answers) * self.costs.relayed * (call.node is not None)) / 2)
        if call.node is not None:
            call.node.call = None
            call.node.taken(call.until)
            if call.node.answers:
                self._to_call[call.node] = None
        return [Reply(name, data) for name, data in call.answers]

    def close(self) -> None:
        """Nothing to end."""
