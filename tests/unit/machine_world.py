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
    Dismiss,
    Draining,
    Fell,
    Finish,
    Joined,
    Judge,
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
from es_service.pools import HEAD
from es_service.slots import is_audited

LEASE_UNITS = 5
SHARED_WRONG = 1 << 40
CHARACTERS = ("good", "mute", "behind", "malformed", "diverged", "stubborn", "conspirator", "liar")
"""good: right answers. mute: none. behind: cannot do a lease, ever. malformed: leases that were never in the plan.
diverged: a wrong replica until it is restored. stubborn: wrong even then. conspirator: wrong, and all have the same
digest. liar: right digest, wrong votes of its own."""
SECRET = b"nobody knows"


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
    suspect: bool = False
    """Its replica was damaged, perhaps more than once."""


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
        self.results: dict[int, dict[str, LeaseResult]] = {}
        """First result of each worker for each lease of the open generation, but for those known to be wrong."""
        self.useless: Counter[str] = Counter()
        """Answers of each worker that is here and gives nothing else, by its character."""
        self.out: set[str] = set()
        """Workers in quarantine."""
        self.dismissed: list[str] = []
        """Workers that will be taken away because they are in quarantine; only the first few of a run."""
        self.draining: set[str] = set()
        """Workers that end what they have and get no more."""
        self.against: dict[str, int] = {}
        self.closing: tuple[LeaseResult, ...] | None = None
        self.closed: dict[int, int] = {}
        """Digest that each closed generation was voted on."""
        self.hedged: set[int] = set()
        self.since: dict[int, float] = {}
        """When each lease of the open generation was last given out."""
        self.finish: Finish | None = None
        self.paused: Pause | None = None
        self.stopped = False
        self.attended = 0.0
        """When a worker that is not in quarantine was last seen at a tick."""
        self.steps = 0
        self.notices: Counter[str] = Counter()
        self._numbers = itertools.count()

    # What can happen.

    def join(self, character: str, shares: bool = False, name: str = "") -> None:
        name = name or f"w{next(self._numbers)}"  # names are never used twice
        self.workers[name] = Worker(name, character, shares, next(self._numbers))
        self.held[name] = set()
        self.feed(Joined(name, shares))

    def corrupt(self, name: str) -> None:
        """A bit flips in the replica of a good worker."""
        if self.workers[name].character == "good":
            self.workers[name].character = "diverged"
            self.workers[name].suspect = True

    def leave(self, name: str) -> None:
        self.workers.pop(name, None)
        self.held.pop(name, None)
        self.feed(Left(name))

    def warn(self, name: str) -> None:
        """Its node will be taken away."""
        if name in self.workers and name not in self.out:
            self.draining.add(name)
        self.feed(Draining(name))

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
                payload += b"! %d" % worker.number
        return Returned(worker.name, self._result(lease, digest, payload))

    def _result(self, lease: Lease, digest: int, payload: bytes) -> LeaseResult:
        return LeaseResult(0, lease, 0, 0, 0, digest, next(self._numbers), 1.0, payload)  # a number tells them apart

    def deliver(self, index: int, keep: bool) -> None:
        """An answer arrives; with `keep` it will arrive again."""
        if not self.transit:
            return
        index %= len(self.transit)
        event = self.transit[index] if keep else self.transit.pop(index)
        self.feed(event)

    def tick(self, seconds: float) -> None:
        self.clock += seconds
        if self.workers.keys() - self.out:
            self.attended = self.clock
        self.feed(Tick(self.clock))
        while self.dismissed and seconds:
            self.leave(self.dismissed.pop())

    def commit(self) -> None:
        if self.closing is not None:
            self.closed[self.generation] = self.closing[0].digest
            self.closing = None
            self.results, self.against, self.hedged, self.since = {}, {}, set(), {}
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
        if isinstance(event, Returned | Fell) and event.worker in self.workers.keys() - self.out:
            self.useless[event.worker] += self.workers[event.worker].character in ("behind", "malformed")
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
                for results in self.results.values():
                    for name in [name for name, result in results.items() if result.digest != digest]:
                        self.against[name] = results.pop(name).digest

    def _model_vote(self, name: str, result: LeaseResult) -> None:
        if name in self.out:
            return
        if self.aggregated == self.generation and result.digest != canonical(self.generation):
            self.against[name] = result.digest
        else:
            self.results.setdefault(result.lease.first_unit // LEASE_UNITS, {}).setdefault(name, result)

    def audited(self, index: int) -> bool:
        return is_audited(SECRET, self.policy.audit_share, self.generation, index)

    def counting(self, index: int) -> LeaseResult | None:
        """The result of a lease that counts, once enough workers agree on it."""
        results = self.results.get(index, {})
        if HEAD in results:
            payload = results[HEAD].payload
        else:
            payloads = Counter(result.payload for result in results.values()).most_common()
            needed = 2 if self.audited(index) or len(payloads) > 1 else 1
            if not payloads or payloads[0][1] < needed:
                return None
            payload = payloads[0][0]
        return next(result for result in results.values() if result.payload == payload)

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
                assert name not in self.out, "parameters for a worker in quarantine"
                self.workers[name].queue.append(None)
            case Assign(name, lease):
                self._check_assign(name, lease)
            case Judge(lease):
                self._check_judge(lease)
            case Close(generation, results):
                self._check_close(generation, results)
            case Notice():
                self._check_notice(command)
            case Dismiss(name):
                self._check_dismiss(name)
            case Finish(generation, reason):
                assert generation == self.generation
                assert reason == ("goal" if generation == self.policy.goal else "stopped")
                assert self.stopped or reason == "goal"
                self.finish = command
            case Pause():
                self._check_pause()
                self.paused = command

    def _check_judge(self, lease: Lease) -> None:
        """The head works only where a result needs another and nobody else can give it."""
        assert self.closing is None
        assert self.aggregated == self.generation == lease.generation
        index = lease.first_unit // LEASE_UNITS
        results = self.results[index]
        assert self.counting(index) is None
        assert HEAD not in results
        parties = results.keys() | {name for name, held in self.held.items() if self._key(lease) in held}
        others = self.workers.keys() - self.out - self.draining - parties
        late = self.clock - self.since.get(index, self.clock) > self.policy.hedge_floor
        many = lease.attempt >= self.policy.most_attempts
        assert not others or late or many or len({result.payload for result in results.values()}) > 2
        payload = b"%d %d" % (lease.generation, lease.first_unit)
        self.transit.append(Returned(HEAD, self._result(lease, canonical(lease.generation), payload)))

    def _check_notice(self, notice: Notice) -> None:
        self.notices[notice.kind] += 1
        if notice.kind == "hedged":
            self.hedged.add(int(notice.detail.split()[1]))
        if notice.kind == "quarantined":
            self._check_quarantine(notice.worker)

    def _check_dismiss(self, name: str) -> None:
        if name in self.workers:
            assert name in self.out
            if len(self.out) < 4:
                self.dismissed.append(name)

    def _check_quarantine(self, name: str) -> None:
        if name in self.workers:
            worker = self.workers[name]
            wrong = worker.suspect or worker.character in ("liar", "stubborn", "conspirator")
            assert wrong or self.useless[name] == self._most_useless, "an honest worker"
            self.held[name].clear()
        self.out.add(name)
        for results in self.results.values():
            results.pop(name, None)

    def _check_assign(self, name: str, lease: Lease) -> None:
        assert name in self.workers, "a lease for a worker that is not there"
        assert self.closing is None
        assert lease.generation == self.generation
        assert self.generation - self.aggregated <= self.policy.max_lag, "a lease too far ahead of the aggregator"
        assert not self.workers[name].shares or self.aggregated == self.generation, "nothing to share yet"
        index = lease.first_unit // LEASE_UNITS
        assert self.plan.range(index) == (lease.first_unit, lease.num_units)
        assert self.counting(index) is None, "a lease that has its result"
        assert name not in self.out, "a lease for a worker in quarantine"
        assert name not in self.draining, "a lease for a worker that is about to go"
        holders = [other for other, held in self.held.items() if self._key(lease) in held]
        assert name not in holders, "a second attempt at the same worker"
        results = self.results.get(index, {})
        assert name not in results, "a worker that gave its answer"
        wanted = 2 if self.audited(index) or len({r.payload for r in results.values()}) > 1 else 1
        wanted += len({r.payload for r in results.values()}) > 1
        assert len(holders) + len(results) < wanted or index in self.hedged, "more workers than are needed"
        self.held[name].add(self._key(lease))
        self.since[index] = self.clock
        assert len(self.held[name]) <= self.policy.depth
        self.workers[name].queue.append(lease)

    def _check_close(self, generation: int, results: tuple[LeaseResult, ...]) -> None:
        assert self.closing is None
        assert generation == self.generation
        expected = [self.plan.range(index) for index in range(len(self.plan))]
        assert [(r.lease.first_unit, r.lease.num_units) for r in results] == expected, "units once each, in order"
        assert {r.lease.generation for r in results} == {generation}
        assert len({r.digest for r in results}) == 1
        assert list(results) == [self.counting(i) for i in range(len(self.plan))]
        if self.policy.audit_share == 1 and self.aggregated == generation:
            assert {r.payload for r in results} == {b"%d %d" % (generation, r.lease.first_unit) for r in results}
        if self.aggregated == generation:
            assert results[0].digest == canonical(generation), "votes on parameters known to be wrong"
        self.closing = results

    def _check_pause(self) -> None:
        wrong = [g for g, digest in self.closed.items() if g <= self.aggregated and digest != canonical(g)]
        agree = len(set(self.against.values())) == 1 and self.workers.keys() <= self.against.keys()
        nobody = bool(self.out) and self.workers.keys() <= self.out
        nobody &= self.clock - self.attended > self.policy.lease_timeout
        assert wrong or nobody or (agree and len(self.against) > 1), "a pause without a reason"

    def _invariants(self) -> None:
        if self.finish or self.paused:
            return
        assert self.machine.generation == self.generation
        assert set(self.machine.roster.workers) == set(self.workers)
        assert self.machine.in_flight == sum(map(len, self.held.values()))
        assert all(self.useless[name] < self._most_useless for name in self.workers.keys() - self.out), "no end of it"
        held = Counter(i for keys in self.held.values() for g, i in keys if g == self.generation)
        for index, slot in enumerate(self.machine._board.slots):
            done = self.closing is not None or self.counting(index) is not None
            digests = {result.digest for result in self.results.get(index, {}).values()}
            assert done or len(digests) > 1 or slot.queued or held[index] or HEAD in slot.holders or (
                self._waits_for_the_head(slot)
            ), "lost"  # fmt: skip

    @property
    def _most_useless(self) -> int:
        return self.policy.most_faults * self.policy.depth

    def _waits_for_the_head(self, slot) -> bool:
        """The canonical parameters are not there yet."""
        return slot.verdict.appeal and self.aggregated < self.generation

    # The end.

    def drain(self) -> None:
        """With one good worker and patience, the run comes to its end, whatever the others do."""
        if "good" not in {
            worker.character for worker in self.workers.values() if worker.name not in self.out | self.draining
        }:
            self.join("good", shares=self.generation % 2 == 0)
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
        goal=rng.randint(1, 40),
        max_lag=rng.randint(0, 3),
        depth=rng.randint(1, 3),
        lease_timeout=10.0,
        hedge_floor=0.5,
        audit_share=rng.choice([0.0, 0.0, 0.2, 1.0]),
        audit_secret=SECRET,
    )
    return World(rng.randint(1, 24), policy, rng.choice([0, policy.goal - 1]))


def random_step(world: World, rng: random.Random, characters: tuple[str, ...]) -> None:
    """One step of a random walk: mostly work, with trouble between."""
    names = sorted(world.workers)
    action = rng.choices(
        ["join", "leave", "warn", "work", "deliver", "again", "tick", "commit", "aggregate", "corrupt", "stop"],
        [1, 0.5, 0.3, 8, 8, 1, 3, 4, 3, 0.2, 0.01],
    )[0]
    match action:
        case "join" if len(names) < 6:
            world.join(rng.choice(characters), rng.random() < 0.3)
        case "leave" | "warn" if names:
            (world.leave if action == "leave" else world.warn)(rng.choice([*names, "stranger"]))
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
