"""The state machine of a run: events in, commands out. No Ray, clock, file or thread; time is an event.

One generation is open at a time. Its plan is a set of leases; each is assigned, perhaps more than once, and is settled
by its first valid result, or by two workers that agree where it is audited or disputed (`slots`). When all are settled
and their digests agree, the generation closes; the shell writes the record and answers `Committed`. The aggregator
follows behind and reports each canonical digest: it decides where replicas disagree.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from math import inf

from es_service.board import Board
from es_service.events import (
    Aggregated,
    Assign,
    Close,
    Command,
    Committed,
    Dismiss,
    Draining,
    Event,
    Fell,
    Finish,
    Joined,
    Judge,
    Left,
    Notice,
    Outvoted,
    Pause,
    Returned,
    SendRestore,
    Stop,
    Tick,
)
from es_service.messages import Lease, LeaseResult
from es_service.pace import Pace
from es_service.plan import Plan
from es_service.policy import Policy
from es_service.pools import HEAD
from es_service.roster import Roster, State, Worker
from es_service.slots import Agree, Slot, equal, is_audited

__all__ = ["Machine", "Policy"]


class _Phase(Enum):
    OPEN = "open"
    CLOSING = "closing"
    ENDED = "ended"


class Machine:
    """`plan_of(generation)` gives the plan of each generation; `digest` belongs to the canonical `aggregated`."""

    def __init__(
        self,
        plan_of: Callable[[int], Plan],
        policy: Policy,
        generation: int,
        aggregated: int,
        digest: int,
        agree: Agree = equal,
    ) -> None:
        self.plan_of = plan_of
        self.policy = policy
        self.generation = generation
        self.aggregated = aggregated
        self.agree = agree
        self.now = inf
        self.roster = Roster(policy.depth)
        self._canonical = digest
        self._phase = _Phase.OPEN
        self._stopping: str | None = None
        self._recorded: dict[int, int] = {}
        self._attended = 0.0  # when there last was a worker that is not in quarantine, or nobody was wrong
        self._last_wrong = ""  # who was found wrong since then
        self._pace = Pace(policy)
        self._open()

    def handle(self, event: Event) -> list[Command]:
        """Take one event; the commands that follow from it."""
        if self._phase is _Phase.ENDED and not isinstance(event, Aggregated):
            return []
        match event:
            case Joined() | Left() | Draining():
                return self._came_or_went(event)
            case Returned(worker, result):
                return self._returned(worker, result)
            case Fell(worker, lease, reason):
                return self._fell(worker, lease, reason)
            case Outvoted(worker, reason):
                return self._quarantine(worker, reason)
            case Committed(generation):
                return self._committed(generation)
            case Aggregated(generation, digest):
                return self._aggregated(generation, digest)
            case Tick(now):
                self._tick(now)
                return self._assign() + self._hedge() + self._give_up()
            case Stop(reason):
                self._stopping = reason
                return self._end(reason) if self._phase is _Phase.OPEN else []

    @property
    def in_flight(self) -> int:
        """Leases held by workers now."""
        return self.roster.in_flight

    @property
    def _current(self) -> bool:
        """Whether the canonical parameters are those of the open generation."""
        return self.aggregated == self.generation

    def _open(self) -> None:
        key, share, generation = self.policy.audit_secret, self.policy.audit_share, self.generation
        self._plan = self.plan_of(generation)
        self._board = Board(generation, self._plan, lambda i: is_audited(key, share, generation, i), self.agree)
        self._against: dict[str, int] = {}
        self._among: tuple[int, bool] | None = None  # who could have doubtful leases, when they were last looked at

    def _tick(self, now: float) -> None:
        """Leases given out before the first tick count from it."""
        if self.now == inf:
            self.roster.start_clock(now)
            self._board.start_clock(now)
            self._attended = now
        self.now = now
        if self.roster.any_sound:
            self._last_wrong = ""
        elif self.roster.size or self._last_wrong:
            return
        self._attended = now

    def _end(self, reason: str) -> list[Command]:
        self._phase = _Phase.ENDED
        return [Finish(self.generation, reason)]

    # Leases out.

    def _assign(self) -> list[Command]:
        if self._phase is not _Phase.OPEN or self.generation - self.aggregated > self.policy.max_lag:
            return []
        commands: list[Command] = []
        refused: list[Slot] = []
        while self.roster.has_room(self._current) and (slot := self._board.take()):
            if name := self._chosen(slot):
                commands.append(self._give(name, slot))
            else:
                refused.append(slot)
        for slot in reversed(refused):
            self._board.put_back(slot)
        return commands + self._appeal()

    def _chosen(self, slot: Slot, idle: bool = False) -> str | None:
        """The best worker with room that has not had this lease."""
        return next((name for name in self.roster.with_room(self._current, idle) if not slot.is_party(name)), None)

    def _give(self, name: str, slot: Slot) -> Assign:
        self.roster.give(name, (self.generation, slot.index), self.now)
        return Assign(name, self._board.give(slot, name, self.now))

    def _hedge(self) -> list[Command]:
        """Give leases that are overdue, or with slow workers, to idle ones too, or a second opinion to the head."""
        commands: list[Command] = []
        if self._phase is not _Phase.OPEN:
            return commands
        for slot, holder in self._board.overdue(self.now - self._pace.look()):
            if holder in self.roster.workers:
                self._pace.slow[holder] = None
            if name := self._chosen(slot, idle=True):
                commands += self._second(slot, holder, name)
            elif slot.results:
                commands += self._ask_head(slot)
        slow = self._pace.slow
        for slot, holder in self._board.waiting_for(slow.keys(), self.roster.held_by(slow, self.generation)):
            name = self._chosen(slot, idle=True)
            if name is not None and name not in slow:
                commands += self._second(slot, holder, name)
        return commands

    def _second(self, slot: Slot, holder: str, name: str) -> list[Command]:
        return [Notice("hedged", holder, self.generation, f"lease {slot.index}"), self._give(name, slot)]

    # What only the head can settle.

    def _others(self, slot: Slot) -> int:
        """Number of active workers that have not had this lease."""
        return self.roster.active - sum(map(self.roster.is_active, slot.holders | slot.results.keys()))

    def _appeal(self) -> list[Command]:
        """Leases that have a result and want another, for which no worker is left, or which all fail to do.

        Nothing is to be said of a lease that was looked at before, unless it changed, or who else could have it.
        """
        commands: list[Command] = []
        before, self._among = self._among, (self.roster.active, self._current)
        for slot in self._board.doubts(changed=before == self._among):
            alone = slot.missing > 0 and not self._others(slot)
            if slot.verdict.appeal or alone or slot.attempts > self.policy.most_attempts:
                commands += self._ask_head(slot)
        return commands

    def _ask_head(self, slot: Slot) -> list[Command]:
        """The head has only the canonical parameters; if they are behind, it is asked again when they are not."""
        if not self._current or HEAD in slot.holders:
            return []
        return [Judge(self._board.give(slot, HEAD, self.now))]

    # Results in.

    def _returned(self, name: str, result: LeaseResult) -> list[Command]:
        index = self._index_of(result.lease)
        if index is None:
            return self._malformed(name, "no such lease in the plan")
        since = self.roster.release(name, (result.lease.generation, index))
        if since is not None and since < inf:
            self._pace.held(name, self.now - since)
        if result.lease.generation != self.generation or self._phase is not _Phase.OPEN:
            return [Notice("late", name, result.lease.generation), *self._assign()]
        slot = self._board.slots[index]
        slot.holders.discard(name)
        if self.roster.is_quarantined(name):
            return [Notice("late", name, self.generation, f"lease {index}, from quarantine"), *self._assign()]
        if self._current and result.digest != self._canonical:
            return self._reject([(name, slot, result)], counts=since is not None) + self._assign()
        return self._count(name, slot, result) + self._close() + self._assign()

    def _index_of(self, lease: Lease) -> int | None:
        """Place of a lease in the plan of its generation; None if no such lease can have been given out."""
        if lease.generation > self.generation:
            return None
        return self.plan_of(lease.generation).index_of(lease.first_unit, lease.num_units)

    def _count(self, name: str, slot: Slot, result: LeaseResult) -> list[Command]:
        self.roster.sound(name, self._current)
        kind = self._board.add(slot, name, result)
        commands: list[Command] = [Notice(kind, name, self.generation, f"lease {slot.index}")] if kind else []
        return commands + self._weigh(slot)

    def _weigh(self, slot: Slot) -> list[Command]:
        """Judge a lease whose results changed; whoever turns out to be wrong is quarantined."""
        commands: list[Command] = []
        for name in self._board.weigh(slot):
            against = slot.verdict.believed[0] if slot.verdict.believed else HEAD
            commands += self._quarantine(name, f"lease {slot.index}: its votes are not those of {against}")
        return commands

    def _quarantine(self, name: str, reason: str) -> list[Command]:
        """A worker that was wrong gets no more leases; what it gave to the open generation is evaluated again."""
        if self.roster.is_quarantined(name):
            return []  # it was found in two leases at once
        if self._phase is _Phase.CLOSING:
            self.roster.touch(self._board.believed, self.generation)  # its record is written
        reason += f"; committed generations with its votes: {self.roster.touched(name) or 'none'}"
        commands: list[Command] = [Notice("quarantined", name, self.generation, reason)]
        self._free(name)
        self.roster.set_state(name, State.QUARANTINED)
        for slot in self._board.withdraw(name) if self._phase is _Phase.OPEN else ():
            commands += self._weigh(slot)
        self._last_wrong = f"; the last was {name} ({reason})"
        return [*commands, Dismiss(name)]

    def _give_up(self) -> list[Command]:
        """Pause where nobody, or nobody but workers in quarantine, has been there for as long as a lease may take."""
        if self._phase is not _Phase.OPEN or self.now - self._attended <= self.policy.lease_timeout:
            return []
        self._phase = _Phase.ENDED
        names = ", ".join(self.roster.wrong)
        text = f"every worker is quarantined ({names}){self._last_wrong}; look at their machines, or for a fault of "
        text += "their kernels with `es-service verify`, then resume"
        return [Pause(f"generation {self.generation}: {text}")]

    def _reject(self, wrong: list[tuple[str, Slot, LeaseResult]], counts: bool = True) -> list[Command]:
        """Results cast on other parameters than the canonical ones: evaluate again, rebuild those replicas.

        One that was answered twice `counts` once. A replica that is wrong again and again cannot be rebuilt.
        """
        self._against |= {name: result.digest for name, _, result in wrong}
        everyone = len(self._against) > 1 and self.roster.workers.keys() <= self._against.keys()
        if everyone and len(set(self._against.values())) == 1:
            return self._pause(self.generation, next(iter(self._against.values())))
        commands: list[Command] = []
        for name, slot, result in wrong:
            commands.append(Notice("diverged", name, self.generation, f"lease {slot.index}"))
            if slot.results.get(name) is result:
                del slot.results[name]
            commands += self._weigh(slot)
        for name in dict.fromkeys(name for name, _, _ in wrong):
            if self.roster.diverged(name, counts) >= self.policy.most_faults * self.policy.depth:
                commands += self._quarantine(name, "its replica stays wrong when it is rebuilt")
            elif self._phase is _Phase.OPEN and self.roster.fault(name):
                commands.append(SendRestore(name))
        return commands

    # Workers that come and go.

    def _came_or_went(self, event: Joined | Left | Draining) -> list[Command]:
        name = event.worker
        match event:
            case Joined():
                self._drop(name)
                self.roster.add(name, Worker(event.shares))
                return [SendRestore(name), *self._assign()]
            case Left():
                self._drop(name)
                return self._assign()
            case Draining():
                if not self.roster.is_active(name):
                    return []
                self.roster.set_state(name, State.DRAINING)
                return [Notice("draining", name, self.generation, event.reason), *self._assign()]

    def _drop(self, name: str) -> None:
        """Take a worker away, and back what it holds."""
        self._free(name)
        self._pace.forget(name)
        self.roster.remove(name)

    def _free(self, name: str) -> None:
        """Take back what a worker holds."""
        for generation, index in self.roster.take_all(name):
            if generation == self.generation:
                self._board.release(self._board.slots[index], name)

    def _fell(self, name: str, lease: Lease | None, reason: str) -> list[Command]:
        index = self._index_of(lease) if lease else None
        if lease is None or index is None:
            return self._malformed(name, reason)
        self.roster.release(name, (lease.generation, index))
        if lease.generation == self.generation:
            self._board.release(self._board.slots[index], name)
        return self._useless(Notice("fell", name, lease.generation, reason))

    def _malformed(self, name: str, reason: str) -> list[Command]:
        """Nobody knows which lease this was to answer: take back all that the worker holds."""
        self._free(name)
        return self._useless(Notice("malformed", name, self.generation, reason))

    def _useless(self, notice: Notice) -> list[Command]:
        """An answer that is no result. A sound worker whose parameters came too late gives `depth` of them at most."""
        name, commands = notice.worker, list[Command]([notice])
        if (faults := self.roster.fault(name)) >= self.policy.most_faults * self.policy.depth:
            commands += self._quarantine(name, f"{faults} answers in a row were of no use, the last: {notice.detail}")
        elif faults:
            commands.append(SendRestore(name))
        return commands + self._assign()

    # Generations.

    def _close(self) -> list[Command]:
        """Votes count on parameters that somebody confirms: two replicas at least, or the aggregator."""
        if self._board.unsettled or self._phase is not _Phase.OPEN:
            return []
        slots = self._board.slots
        if len({slot.result.digest for slot in slots}) > 1:
            return []  # the aggregator decides when it gets here
        if not self._current and len({name for slot in slots for name in slot.verdict.believed}) < 2:
            return []
        self._phase = _Phase.CLOSING
        return [Close(self.generation, tuple(slot.result for slot in slots))]

    def _committed(self, generation: int) -> list[Command]:
        if self._phase is not _Phase.CLOSING or generation != self.generation:
            raise AssertionError(f"commit of generation {generation}, while {self.generation} is {self._phase.value}")
        self.roster.touch(self._board.believed, generation)
        digest = self._board.slots[0].result.digest
        if self.aggregated < generation:
            self._recorded[generation] = digest
        elif digest != self._canonical:
            return self._pause(generation, digest)
        self.generation += 1
        self._phase = _Phase.OPEN
        if self.generation >= self.policy.goal:
            return self._end("goal")
        if self._stopping:
            return self._end(self._stopping)
        self._open()
        return self._assign()

    def _aggregated(self, generation: int, digest: int) -> list[Command]:
        self.aggregated, self._canonical = generation, digest
        recorded = self._recorded.pop(generation, digest)
        if recorded != digest:
            return self._pause(generation, recorded)
        if generation != self.generation or self._phase is not _Phase.OPEN:
            return self._assign()
        wrong = self._board.cast_on_others(digest)
        return (self._reject(wrong) if wrong else []) + self._close() + self._assign()

    def _pause(self, generation: int, theirs: int) -> list[Command]:
        self._phase = _Phase.ENDED
        return [
            Pause(
                f"generation {generation}: the replicas agree on digest {theirs:016x}, the canonical parameters have "
                f"{self._canonical:016x}; run `es-service verify` on their nodes, and see docs/security.md to go on"
            )
        ]
