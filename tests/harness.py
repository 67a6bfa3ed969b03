"""Runs without Ray for the laws: plain ones, and ones where workers die, lag, repeat themselves and go wrong."""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from es_service.config import RunConfig
from es_service.coordinator import Coordinator
from es_service.data import Corpus
from es_service.directory import RunDirectory
from es_service.events import Finish
from es_service.journal import JournalContents, scan
from es_service.messages import Behind, Order, decode, encode
from es_service.pools import HEAD, Gone, Pool, PoolEvent, Ready, Reply
from es_service.problem import run_id
from es_service.session import open_session
from workers.evaluator import Evaluator
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps

_names = itertools.count()


@dataclass
class Run:
    """A run that has ended."""

    config: RunConfig
    directory: RunDirectory
    finish: Finish

    @property
    def journal(self) -> bytes:
        return self.directory.journal_path.read_bytes()

    @property
    def contents(self) -> JournalContents:
        return scan(self.directory.journal_path)

    @property
    def events(self) -> Counter[str]:
        return Counter(event["kind"] for event in self.directory.events())


MakePool = Callable[[RunConfig, Corpus], Pool]


def local(
    workers: int = 1, choose: Callable[[Sequence[str]], str] | None = None, ops=ReferenceOps, shares: bool = False
) -> MakePool:
    def make(config: RunConfig, corpus: Corpus) -> Pool:
        evaluators = {f"w{n}": Evaluator(config, corpus.train, ops()) for n in range(workers)}
        first = choose or (lambda names: names[0])
        return LocalPool(evaluators, first, shares, lambda: Evaluator(config, corpus.train, ops()))

    return make


def train(
    config: RunConfig,
    make_pool: MakePool | None = None,
    directory: RunDirectory | None = None,
    ops=ReferenceOps,
    prepare: Callable[[Coordinator], None] = lambda coordinator: None,
) -> Run:
    """Run to the end; with a directory, go on with the run in it."""
    resume = directory is not None
    directory = directory or RunDirectory(config.deployment.runs_dir, f"run-{next(_names)}")
    coordinator = open_session(config, directory, resume, ops(), make_pool or local())
    prepare(coordinator)
    return Run(coordinator.config, directory, coordinator.run())


_expected: dict[tuple[str, int], bytes] = {}


def expected(config: RunConfig) -> bytes:
    """The journal of this spec and goal, from one undisturbed worker."""
    key = config.spec_hash, config.deployment.generations
    if key not in _expected:
        _expected[key] = train(config).journal
    return _expected[key]


def deployed(config: RunConfig, **changes) -> RunConfig:
    """The same run, carried out in another way."""
    return config.model_copy(update={"deployment": config.deployment.model_copy(update=changes)})


class Chaos:
    """A pool of evaluators of which nothing can be relied on but that one of them always lives, for a while.

    Replies come late, twice and in any order between workers; workers vanish with what they were sent, and new ones
    join; replicas forget everything, or (with `corrupt`) a bit of theirs flips; some answers are noise.
    """

    def __init__(self, config: RunConfig, corpus: Corpus, rng: random.Random, corrupt: bool) -> None:
        self.rng = rng
        self.corrupt = corrupt
        self.make = lambda: Evaluator(config, corpus.train, ReferenceOps())
        self.head = self.make()
        self.run = run_id(config)
        self.workers: dict[str, Evaluator] = {}
        self.queues: dict[str, deque[bytes]] = {}
        self.transit: list[Reply] = []
        self.events: list[PoolEvent] = []
        self.counts: Counter[str] = Counter()
        self._numbers = itertools.count()
        self.join()

    size = wave_pairs = 0

    def broadcast(self, data: bytes) -> bytes:
        return data

    def send(self, worker: str, data: bytes, parts: Sequence[bytes] = ()) -> None:
        if worker == HEAD:  # on which everybody relies
            self.events.append(Reply(HEAD, self.head.handle(data)))
        if worker in self.queues:
            self.queues[worker].append(b"".join((data, *parts)))

    def dismiss(self, worker: str) -> None:
        """Another comes, if there is room; the one that was wrong goes, now or never."""
        self.join()
        if worker in self.workers and self.rng.random() < 0.7:
            self._go(worker)

    def close(self) -> None:
        self.queues.clear()

    def poll(self, timeout: float) -> list[PoolEvent]:
        trouble = [self.join, self.leave, self.repeat, self.forget, self.flip, self.refuse, self.noise, self.swap]
        action = self.rng.choice(trouble) if self.rng.random() < 0.35 else self.work
        action()
        if self.transit and self.rng.random() < 0.7:
            self.events.append(self.transit.pop(self.rng.randrange(len(self.transit))))
        events, self.events = self.events, []
        self.counts[action.__name__] += 1
        return events

    def _any(self) -> str:
        return self.rng.choice(sorted(self.workers))

    def work(self) -> None:
        name = self._any()
        if self.queues[name]:
            self.transit.append(Reply(name, self.workers[name].handle(self.queues[name].popleft())))

    def join(self) -> None:
        if len(self.workers) < 4:
            name = f"w{next(self._numbers)}"
            self.workers[name], self.queues[name] = self.make(), deque()
            self.events.append(Ready(name, "chaos", self.rng.random() < 0.4))

    def leave(self) -> None:
        """With all that it was sent; what it has answered may still arrive before the news of its end."""
        if len(self.workers) > 1:
            self._go(self._any())

    def _go(self, name: str) -> None:
        del self.workers[name], self.queues[name]
        if self.rng.random() < 0.5:
            self.transit = [reply for reply in self.transit if reply.worker != name]
        self.events += [reply for reply in self.transit if reply.worker == name]
        self.transit = [reply for reply in self.transit if reply.worker != name]
        self.events.append(Gone(name, "chaos"))

    def repeat(self) -> None:
        if self.transit:
            self.transit.append(self.rng.choice(self.transit))

    def forget(self) -> None:
        """The next order is answered with Behind."""
        self.workers[self._any()].generation = -1

    def flip(self) -> None:
        evaluator = self.workers[self._any()]
        if self.corrupt and evaluator.generation >= 0:
            parameters_P = evaluator._parameters_P.copy()
            parameters_P[self.rng.randrange(len(parameters_P))] ^= 1 << self.rng.randrange(7)
            digest = evaluator.ops.digest(evaluator.layout, parameters_P)
            evaluator._take(parameters_P, evaluator.generation, digest)

    def refuse(self) -> None:
        name = self._any()
        if self.queues[name]:
            message = decode(self.queues[name].popleft())
            if isinstance(message, Order):
                self.transit.append(Reply(name, encode(Behind(self.run, message.lease, 0))))
            else:
                self.queues[name].appendleft(encode(message))

    def noise(self) -> None:
        """In place of an answer."""
        name = self._any()
        if self.queues[name]:
            data = self.workers[name].handle(self.queues[name].popleft())
            self.transit.append(Reply(name, data[: len(data) // 2] + np.random.default_rng(1).bytes(3)))

    def swap(self) -> None:
        self.rng.shuffle(self.transit)


def chaos(seed: int, corrupt: bool = False, pools: list[Chaos] | None = None) -> MakePool:
    def make(config: RunConfig, corpus: Corpus) -> Chaos:
        pool = Chaos(config, corpus, random.Random(seed), corrupt)
        if pools is not None:
            pools.append(pool)
        return pool

    return make


def hasty(coordinator: Coordinator) -> None:
    """A clock on which every look takes half a second, so that leases are soon overdue."""
    ticks = itertools.count(int(coordinator.clock()))
    coordinator.clock = lambda: next(ticks) / 2
