"""An update in slices: some tensors each, made by some worker, joined to one ternary step. Pure.

What moves a tensor follows from the votes and its own noise, so the update of some tensors is that of a smaller model.
The step, five weights to a byte, is as long as the model, whatever the population: beyond some size it is cheaper for
everybody to apply it than to make the whole update from the votes. Both give the same bits.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Sequence
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

    Every slice goes to two workers, which must agree; where they do not, to more, until two do. `rng` draws them.
    """

    def __init__(self, generation: int, parts: Sequence[Layout], rng: random.Random = _SECRET) -> None:
        self.generation = generation
        self.parts = parts
        self._missing = deque(index for index in range(len(parts)) for _ in range(OPINIONS))
        self._holders: list[set[str]] = [set() for _ in parts]
        self._answers: list[dict[str, bytes]] = [{} for _ in parts]
        self._settled: dict[int, bytes] = {}
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
            if index in self._settled:
                continue
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

    def returned(self, worker: str, index: int, payload: bytes) -> list[str]:
        """An answer; the workers that it shows to be wrong. Raises `MessageError` if the worker does not hold it."""
        if 0 <= index < len(self.parts) and worker in self._answers[index]:
            return []  # a second answer does not count, whatever it says
        if not 0 <= index < len(self.parts) or worker not in self._holders[index]:
            raise MessageError(f"nobody asked for slice {index} of the update")
        check_slice(self.parts[index], payload)
        self._holders[index].remove(worker)
        answers = self._answers[index]
        answers[worker] = payload
        given = list(answers.values())
        right = self._settled.get(index) or (payload if given.count(payload) >= OPINIONS else None)
        if right is None:
            if not self._holders[index] and len(answers) >= OPINIONS:
                self._missing.append(index)
            return []
        first = index not in self._settled
        self._settled[index] = right
        suspects = answers if first else {worker: payload}
        return [name for name, answer in suspects.items() if answer != right]

    def drawn(self) -> tuple[int, bytes, list[str]]:
        """One of the settled slices, its moves, and who made them: for the head to compare with its own."""
        index = self._rng.choice(sorted(self._settled))
        right = self._settled[index]
        return index, right, [name for name, answer in self._answers[index].items() if answer == right]

    @property
    def stuck(self) -> bool:
        """Whether something is not settled that nobody works on."""
        return any(index not in self._settled and not self._holders[index] for index in range(len(self.parts)))

    @property
    def step(self) -> bytes | None:
        """The joined step, when all slices are settled."""
        if len(self._settled) < len(self.parts):
            return None
        return b"".join(self._settled[index] for index in range(len(self.parts)))
