"""A toy world around the state machine: workers of several characters, and a model of what the machine must do.

Every event and command goes through `World.feed`, which checks each command against the model. Shared by the
hypothesis machine and by the random walk.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter, deque
from dataclasses import dataclass, field

from es_service.events import (
    Aggregated,
    Assign,
    Close,
    Committed,
    Fell,
    Finish,
    Joined,
    Left,
    Notice,
    Pause,
    Returned,
    SendRestore,
    Stop,
    Tick,
)  # fmt: skip
from es_service.generation import Machine, Policy
from es_service.messages import Lease, LeaseResult
from es_service.plan import Plan

LEASE_UNITS = 5
SHARED_WRONG = 1 << 40
CHARACTERS = ("good", "mute", "behind", "malformed", "diverged", "stubborn", "conspirator", "liar")
"""good: right answers. mute: none. behind: cannot do a lease, ever. malformed: leases that were never in the plan.
diverged: a wrong replica until it is restored. stubborn: wrong even then. conspirator: wrong, and all have the same
digest. liar: right digest, wrong votes."""


def canonical(generation: int) -> int:
    return 1000 + generation


@dataclass
class Worker:
    name: str
    character: str
    shares: bool
    number: int
    queue: deque[Lease | None] = field(default_factory=deque)
    """Messages not handled yet; None is a restore."""


class World:
    def __init__(self, units: int, policy: Policy, start: int = 0) -> None:
        self.plan = Plan.of(units, LEASE_UNITS)
        self.policy = policy
        self.machine = Machine(lambda _: self.plan, policy, start, start, canonical(start))
        self.clock = 0.0
        self.workers: dict[str, Worker] = {}
        self.transit: list[Returned | Fell] = []
        self.start = self.generation = self.aggregated = start
        self.held: dict[str, set[tuple[int, int]]] = {}
        self.first: dict[int, tuple[str, LeaseResult]] = {}
        self.against: dict[str, int] = {}
        self.closing: tuple[LeaseResult, ...] | None = None
        self.closed: dict[int, int] = {}
        """Digest that each closed generation was voted on."""
        self.hedged: set[int] = set()
        self.finish: Finish | None = None
        self.paused: Pause | None = None
        self.stopped = False
        self.steps = 0
        self.notices: Counter[str] = Counter()
        self._numbers = itertools.count()

    # What can happen.

    def join(self, name: str, character: str, shares: bool = False) -> None:
        self.workers[name] = Worker(name, character, shares, next(self._numbers))
        self.held[name] = set()
        self.feed(Joined(name, shares))

    def corrupt(self, name: str) -> None:
        """A bit flips in the replica of a good worker."""
        if self.workers[name].character == "good":
            self.workers[name].character = "diverged"

    def leave(self, name: str) -> None:
        self.workers.pop(name, None)
        self.held.pop(name, None)
        self.feed(Left(name))

    def work(self, name: str) -> None:
        """The worker handles one message; its answer is on its way, and may be overtaken or come twice."""
        worker = self.workers[name]
        if worker.character == "mute" or not worker.queue:
            return
        lease = worker.queue.popleft()
        if lease is None:
            worker.character = "good" if worker.character == "diverged" else worker.character
            return
        self.transit.append(self._answer(worker, lease))

    def _answer(self, worker: Worker, lease: Lease) -> Returned | Fell:
        digest, payload = canonical(lease.generation), b"%d %d" % (lease.generation, lease.first_unit)
        match worker.character:
            case "behind":
                return Fell(worker.name, lease, "behind")
            case "malformed":
                lease = Lease(lease.generation, lease.first_unit, lease.num_units + 1, lease.attempt)
            case "diverged" | "stubborn":
                digest += (1 + worker.number) << 20
            case "conspirator":
                digest += SHARED_WRONG
            case "liar":
                payload += b"!"
        number = next(self._numbers)  # tells equal results apart
        return Returned(worker.name, LeaseResult(0, lease, number, 0, 0, digest, 0, 1.0, payload))

    def deliver(self, index: int, keep: bool) -> None:
        """An answer arrives; with `keep` it will arrive again."""
        if not self.transit:
            return
        index %= len(self.transit)
        event = self.transit[index] if keep else self.transit.pop(index)
        self.feed(event)

    def tick(self, seconds: float) -> None:
        self.clock += seconds
        self.feed(Tick(self.clock))

    def commit(self) -> None:
        if self.closing is not None:
            self.closed[self.generation] = self.closing[0].digest
            self.closing = None
            self.first, self.against, self.hedged = {}, {}, set()
            self.generation += 1
            self.feed(Committed(self.generation - 1))

    def aggregate(self) -> None:
        if self.aggregated < self.generation:
            self.aggregated += 1
            self.feed(Aggregated(self.aggregated, canonical(self.aggregated)))

    def stop(self) -> None:
        self.stopped = True
        self.feed(Stop("stopped"))

    @property
    def over(self) -> bool:
        return bool(self.finish or self.paused)

    # The model: events in.

    def feed(self, event) -> None:
        self.steps += 1
        if self.finish is None and self.paused is None:
            self._model(event)
        commands = self.machine.handle(event)
        for command in commands:
            self._check(command)
        must_pause = isinstance(event, Aggregated) and self.closed.get(event.generation, event.digest) != event.digest
        must_pause |= (
            isinstance(event, Committed)
            and event.generation <= self.aggregated
            and (self.closed[event.generation] != canonical(event.generation))
        )
        assert not must_pause or self.paused, "a generation was voted on other parameters, and nobody noticed"
        self._invariants()

    def _model(self, event) -> None:
        match event:
            case Fell(name, lease):
                self.held.get(name, set()).discard(self._key(lease))
            case Returned(name, result) if self._is_malformed(result.lease):
                self.held.get(name, set()).clear()
            case Returned(name, result):
                self.held.get(name, set()).discard(self._key(result.lease))
                if result.lease.generation == self.generation and self.closing is None:
                    self._model_vote(name, result)
            case Aggregated(generation, digest) if generation == self.generation and self.closing is None:
                wrong = {i: vote for i, vote in self.first.items() if vote[1].digest != digest}
                self.against |= {name: result.digest for name, result in wrong.values()}
                for index in wrong:
                    del self.first[index]

    def _model_vote(self, name: str, result: LeaseResult) -> None:
        if self.aggregated == self.generation and result.digest != canonical(self.generation):
            self.against[name] = result.digest
        else:
            self.first.setdefault(result.lease.first_unit // LEASE_UNITS, (name, result))

    def _is_malformed(self, lease: Lease) -> bool:
        return self.plan.range(lease.first_unit // LEASE_UNITS) != (lease.first_unit, lease.num_units)

    @staticmethod
    def _key(lease: Lease) -> tuple[int, int]:
        return lease.generation, lease.first_unit // LEASE_UNITS

    # The model: commands out.

    def _check(self, command) -> None:
        assert self.paused is None, "a command after the pause"
        assert self.finish is None or isinstance(command, Pause), "a command after the end"
        match command:
            case SendRestore(name):
                assert name in self.workers
                self.workers[name].queue.append(None)
            case Assign(name, lease):
                self._check_assign(name, lease)
            case Close(generation, results):
                self._check_close(generation, results)
            case Notice(kind):
                self.notices[kind] += 1
                if kind == "hedged":
                    self.hedged.add(int(command.detail.split()[1]))
            case Finish(generation, reason):
                assert generation == self.generation
                assert reason == ("goal" if generation == self.policy.goal else "stopped")
                assert self.stopped or reason == "goal"
                self.finish = command
            case Pause():
                self._check_pause()
                self.paused = command

    def _check_assign(self, name: str, lease: Lease) -> None:
        assert name in self.workers, "a lease for a worker that is not there"
        assert self.closing is None
        assert lease.generation == self.generation
        assert self.generation - self.aggregated <= self.policy.max_lag, "a lease too far ahead of the aggregator"
        assert not self.workers[name].shares or self.aggregated == self.generation, "nothing to share yet"
        index = lease.first_unit // LEASE_UNITS
        assert self.plan.range(index) == (lease.first_unit, lease.num_units)
        assert index not in self.first, "a lease that has its result"
        holders = [other for other, held in self.held.items() if self._key(lease) in held]
        assert name not in holders, "a second attempt at the same worker"
        assert not holders or index in self.hedged, "a lease that another worker holds"
        self.held[name].add(self._key(lease))
        assert len(self.held[name]) <= self.policy.depth
        self.workers[name].queue.append(lease)

    def _check_close(self, generation: int, results: tuple[LeaseResult, ...]) -> None:
        assert self.closing is None
        assert generation == self.generation
        expected = [self.plan.range(index) for index in range(len(self.plan))]
        assert [(r.lease.first_unit, r.lease.num_units) for r in results] == expected, "units once each, in order"
        assert {r.lease.generation for r in results} == {generation}
        assert len({r.digest for r in results}) == 1
        assert [r.score_sum for r in results] == [self.first[i][1].score_sum for i in range(len(self.plan))]
        if self.aggregated == generation:
            assert results[0].digest == canonical(generation), "votes on parameters known to be wrong"
        self.closing = results

    def _check_pause(self) -> None:
        wrong = [g for g, digest in self.closed.items() if g <= self.aggregated and digest != canonical(g)]
        agree = len(set(self.against.values())) == 1 and self.workers.keys() <= self.against.keys()
        assert wrong or (agree and len(self.against) > 1), "a pause without a reason"

    def _invariants(self) -> None:
        if self.finish or self.paused:
            return
        assert self.machine.generation == self.generation
        assert set(self.machine.workers) == set(self.workers)
        assert self.machine.in_flight == sum(map(len, self.held.values()))
        pending = Counter(self.machine._pending)
        held = Counter(i for keys in self.held.values() for g, i in keys if g == self.generation)
        for index in range(len(self.plan)):
            if index in self.first:
                assert not pending[index]
            elif self.closing is None:
                assert pending[index] == (not held[index]), "lost, or given out twice"

    # The end.

    def drain(self) -> None:
        """With one good worker and patience, the run comes to its end, whatever the others do."""
        if "good" not in {worker.character for worker in self.workers.values()}:
            self.join("rescue", "good", shares=self.generation % 2 == 0)
        for _ in range(20 * (len(self.plan) + 2) * (self.policy.goal + 1)):
            if self.finish or self.paused:
                break
            for name in list(self.workers):
                self.work(name)
            while self.transit:
                self.deliver(0, keep=False)
            self.tick(self.policy.lease_timeout + 1)
            self.commit()
            self.aggregate()
        assert self.finish or self.paused, "the run does not come to its end"
        while self.paused is None and self.aggregated < self.generation:
            self.aggregate()
        if self.paused is None:
            assert all(digest == canonical(g) for g, digest in self.closed.items() if g <= self.aggregated)
            assert sorted(self.closed) == list(range(self.start, self.generation))


def random_world(rng: random.Random) -> World:
    policy = Policy(
        goal=rng.randint(1, 40), max_lag=rng.randint(0, 3), depth=rng.randint(1, 3), lease_timeout=10.0, hedge_floor=0.5
    )
    return World(rng.randint(1, 24), policy, rng.choice([0, policy.goal - 1]))


def random_step(world: World, rng: random.Random, characters: tuple[str, ...]) -> None:
    """One step of a random walk: mostly work, with trouble between."""
    names = sorted(world.workers)
    action = rng.choices(
        ["join", "leave", "work", "deliver", "again", "tick", "commit", "aggregate", "corrupt", "stop"],
        [1, 0.5, 8, 8, 1, 3, 4, 3, 0.2, 0.01],
    )[0]
    match action:
        case "join" if len(names) < 6:
            world.join(f"w{rng.randrange(8)}", rng.choice(characters), rng.random() < 0.3)
        case "leave" if names:
            world.leave(rng.choice([*names, "stranger"]))
        case "work" if names:
            world.work(rng.choice(names))
        case "deliver" | "again":
            world.deliver(rng.randrange(1 << 16), keep=action == "again")
        case "tick":
            world.tick(rng.choice([0.0, 0.3, 1.0, 12.0]))
        case "commit":
            world.commit()
        case "aggregate":
            world.aggregate()
        case "corrupt" if names and "diverged" in characters:
            world.corrupt(rng.choice(names))
        case "stop":
            world.stop()
