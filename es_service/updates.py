"""An update in slices: some tensors each, made by some worker, joined to one ternary step. Pure.

What moves a tensor follows from the votes and its own noise, so the update of some tensors is that of a smaller model.
The step, five weights to a byte, is as long as the model, whatever the population: beyond some size it is cheaper for
everybody to apply it than to make the whole update from the votes. Both give the same bits.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from es_service import votes
from es_service.algorithms.base import AbstractAlgorithm
from es_service.errors import MessageError
from es_service.messages import Commit
from es_service.types import Int8Array, Layout, Ops, TensorSpec

__all__ = ["OPINIONS", "SlicedUpdate", "apply_commit", "apply_step", "check_slice", "slices"]

OPINIONS = 2
"""Workers that must agree on a slice."""
_SECRET = random.SystemRandom()
_MOVE = 16
"""`Ops.apply` moves a weight where 16 |Z| reaches the threshold."""


def slices(layout: Layout) -> tuple[Layout, ...]:
    """The tensors in as few groups as the largest tensor allows, each as a layout of its own.

    A group's tensors keep their index, which addresses their noise; offsets count from the start of the group.
    """
    limit = max(tensor.size for tensor in layout.tensors)
    groups: list[list[TensorSpec]] = []
    for tensor in sorted(layout.tensors, key=lambda tensor: (-tensor.size, tensor.index)):
        room = (group for group in groups if sum(t.size for t in group) + tensor.size <= limit)
        group = next(room, None)
        if group is None:
            groups.append(group := [])
        group.append(tensor)
    return tuple(_packed(sorted(group, key=lambda tensor: tensor.index)) for group in groups)


def _packed(tensors: Sequence[TensorSpec]) -> Layout:
    placed, offset = [], 0
    for tensor in tensors:
        placed.append(replace(tensor, offset=offset))
        offset += tensor.size
    return Layout(tuple(placed))


def check_slice(part: Layout, payload: bytes) -> None:
    """Raise `MessageError` unless these are the packed moves of a slice."""
    votes.check(payload, part.size)


def apply_commit(
    algorithm: AbstractAlgorithm, ops: Ops, layout: Layout, parameters_P: Int8Array, commit: Commit
) -> int:
    """Apply a commit of either kind to the parameters in place; how many weights moved."""
    if commit.is_step:
        return apply_step(ops, layout, parameters_P, commit.record)
    return algorithm.update(ops, parameters_P, commit.generation, commit.threshold, commit.record)


def apply_step(ops: Ops, layout: Layout, parameters_P: Int8Array, step: bytes) -> int:
    """Move the parameters by a joined step, saturating; how many weights moved. Raises `MessageError`."""
    moves_P, at = np.zeros(layout.size, np.int32), 0
    places = layout.views(moves_P)
    for part in slices(layout):
        size = votes.packed_size(part.size)
        moves = votes.unpack(step[at : at + size], part.size)
        for name, values in part.views(moves).items():
            places[name][...] = values
        at += size
    if at != len(step):
        raise MessageError(f"a step of {len(step)} bytes, the model has {at}")
    return ops.apply(parameters_P, moves_P, _MOVE)


class SlicedUpdate:
    """Who makes which slice of one generation's update, and what came back.

    Every slice goes to two workers, which must agree. `rng` draws them.
    """

    def __init__(self, generation: int, parts: Sequence[Layout], rng: random.Random = _SECRET) -> None:
        self.generation = generation
        self.parts = parts
        self._missing = deque(index for index in range(len(parts)) for _ in range(OPINIONS))
        self._holders: list[set[str]] = [set() for _ in parts]
        self._answers: list[dict[str, bytes]] = [{} for _ in parts]
        self._rng = rng

    def assign(self, workers: Iterable[str]) -> list[tuple[str, int]]:
        """(worker, slice) to be sent now, nobody the same slice twice. What nobody can have stays missing.

        The workers take turns in an order that they cannot foresee: no two of them can bring it about that they share
        a slice.
        """
        names = list(workers)
        turn, given = deque(self._rng.sample(names, len(names))), []
        for _ in range(len(self._missing)):
            index = self._missing.popleft()
            for _ in range(len(turn)):
                name = turn[0]
                turn.rotate(-1)
                if name not in self._holders[index] and name not in self._answers[index]:
                    self._holders[index].add(name)
                    given.append((name, index))
                    break
            else:
                self._missing.append(index)
        return given

    def left(self, worker: str) -> None:
        """The worker will not answer; its slices are missing."""
        for index, holders in enumerate(self._holders):
            if worker in holders:
                holders.remove(worker)
                self._missing.append(index)

    def withdraw(self, is_wrong: Callable[[str], bool]) -> None:
        """What workers made, or hold, that were found wrong is missing."""
        for index, (holders, answers) in enumerate(zip(self._holders, self._answers, strict=True)):
            for worker in filter(is_wrong, [*holders, *answers]):
                holders.discard(worker)
                answers.pop(worker, None)
                self._missing.append(index)

    def returned(self, worker: str, index: int, payload: bytes) -> None:
        """An answer; a second one does not count. Raises `MessageError` if the worker does not hold the slice."""
        if not 0 <= index < len(self.parts) or worker not in self._holders[index] | self._answers[index].keys():
            raise MessageError(f"nobody asked for slice {index} of the update")
        check_slice(self.parts[index], payload)
        self._holders[index].discard(worker)
        self._answers[index].setdefault(worker, payload)

    @property
    def dispute(self) -> tuple[int, dict[str, bytes]] | None:
        """A slice of which two workers made different things, and what each of them made."""
        disputes = (item for item in enumerate(self._answers) if len(set(item[1].values())) > 1)
        return next(disputes, None)

    def drawn(self) -> tuple[int, dict[str, bytes]]:
        """One of the slices, and what its workers made of it: for the head to compare with its own."""
        index = self._rng.randrange(len(self.parts))
        return index, self._answers[index]

    @property
    def stuck(self) -> bool:
        """Whether something is missing that nobody works on."""
        return any(len(a) < OPINIONS and not h for a, h in zip(self._answers, self._holders, strict=True))

    @property
    def step(self) -> bytes | None:
        """The joined step, when there are two equal answers for every slice."""
        if self.dispute or any(len(answers) < OPINIONS for answers in self._answers):
            return None
        return b"".join(next(iter(answers.values())) for answers in self._answers)
