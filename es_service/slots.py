"""Opinions about one lease of the open generation, and what follows from them. Pure.

Most leases need one result. An audited one needs two workers that agree. Where results differ a third worker settles
it, or the head, which is believed against everybody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from math import ceil, log, log1p

from es_service.messages import LeaseResult
from es_service.pools import HEAD

__all__ = ["Agree", "Slot", "Verdict", "equal", "generations_to_find", "is_audited"]

Agree = Callable[[LeaseResult, LeaseResult], bool]
"""Whether two results of one lease on equal parameters can both be right."""

_SETTLES = 2
"""Equal opinions that are believed against one other."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`believed`: workers whose equal results count, in the order that they came; empty while open.

    `wrong`: workers that gave another result. `wanted`: further results that are needed, and `appeal`: they can only be
    the head's.
    """

    believed: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    wanted: int = 0
    appeal: bool = False


@dataclass(slots=True)
class Slot:
    """One lease of the open generation: who works on it, and what came back."""

    index: int
    audited: bool = False
    attempts: int = 0
    queued: int = 0
    """How often it stands in the queue of leases to be given out."""
    holders: set[str] = field(default_factory=set)
    results: dict[str, LeaseResult] = field(default_factory=dict)
    verdict: Verdict = field(init=False)

    def __post_init__(self) -> None:
        self.verdict = Verdict(wanted=self._needed)

    @property
    def _needed(self) -> int:
        return _SETTLES if self.audited else 1

    @property
    def result(self) -> LeaseResult:
        """The result that counts; only for a settled slot."""
        return self.results[self.verdict.believed[0]]

    @property
    def missing(self) -> int:
        """Further workers that must be given this lease."""
        return 0 if self.verdict.appeal else self.verdict.wanted - len(self.holders)

    def is_party(self, worker: str) -> bool:
        """Whether this worker has it, or had it: nobody is asked twice."""
        return worker in self.holders or worker in self.results

    def judge(self, agree: Agree) -> Verdict:
        """Look at the results again, after one came or went."""
        self.verdict = self._judge(agree)
        return self.verdict

    def _judge(self, agree: Agree) -> Verdict:
        if len({result.digest for result in self.results.values()}) > 1:
            return Verdict()  # cast on different parameters: the aggregator tells which are right
        groups: list[list[str]] = []
        for name, result in self.results.items():
            group = next((group for group in groups if agree(self.results[group[0]], result)), None)
            if group is None:
                groups.append([name])
            else:
                group.append(name)
        if len(groups) < 2:
            names = tuple(groups[0]) if groups else ()
            done = HEAD in names or len(names) >= self._needed
            return Verdict(believed=names) if done else Verdict(wanted=self._needed - len(names))
        believed = next((g for g in groups if HEAD in g), None) or _majority(groups)
        if believed is None:
            return Verdict(wanted=1, appeal=len(groups) > _SETTLES)
        return Verdict(tuple(believed), tuple(name for name in self.results if name not in believed))


def _majority(groups: list[list[str]]) -> list[str] | None:
    largest = sorted(groups, key=len, reverse=True)
    return largest[0] if len(largest[0]) >= _SETTLES and len(largest[0]) > len(largest[1]) else None


def equal(a: LeaseResult, b: LeaseResult) -> bool:
    """Whether two results of one lease are the same."""
    return (a.payload, a.score_sum, a.score_min, a.score_max) == (b.payload, b.score_sum, b.score_min, b.score_max)


def is_audited(secret: bytes, share: float, generation: int, index: int) -> bool:
    """Whether a lease is evaluated by two workers: a draw that only the holder of `secret` can know beforehand."""
    drawn = blake2b(b"%d %d" % (generation, index), key=secret, digest_size=8).digest()
    return int.from_bytes(drawn, "little") < share * 2.0**64


def generations_to_find(share: float, leases: float, wrong: float = 1.0, confidence: float = 0.95) -> int:
    """Generations G after which a liar has been found with this probability: 1 - (1 - share wrong)^(leases G).

    `leases` of a generation go to the liar first and each result is false with probability `wrong`; where it flips a
    share f of u votes, wrong = 1 - (1 - f)^u. Leases that it audits itself find it sooner, so this is an upper bound.
    """
    if not 0 < share * wrong < 1:
        return 1 if share * wrong >= 1 else 1 << 62
    return ceil(log(1 - confidence) / (leases * log1p(-share * wrong)))
