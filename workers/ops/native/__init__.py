"""Native CPU kernels: C++ for several instruction sets, one of which is chosen when a backend is made.

`ES_SERVICE_ISA` (portable, avx2, avx512vnni, amx) forces one; without it the best that the CPU has is taken.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service import ternary
from es_service.errors import BackendError
from es_service.types import (
    EggShape,
    Int8Array,
    Int32Array,
    Layout,
    Noise,
    NoiseAddress,
    NonZeros,
    Perturbations,
    UInt8Array,
)
from workers.ops.base import AbstractOps
from workers.ops.native import _kernels

__all__ = ["ISA_VARIABLE", "NativeOps", "PackedEgg", "choose_isa", "detect"]

ISA_VARIABLE = "ES_SERVICE_ISA"
MAX_RANK = 64
_SUPPORTS = {"bernoulli": 0, "exact": 1, "columns": 2}


def detect() -> dict[str, bool]:
    """Every instruction set built in, slowest first, and whether this CPU has it."""
    return dict(_kernels.detect())


def choose_isa(isa: str | None = None) -> str:
    """The instruction set to use: `isa`, or that of `ES_SERVICE_ISA`, or the best of this CPU.

    Raises `BackendError` if the one asked for is unknown, or the CPU lacks it.
    """
    available = detect()
    wanted = isa or os.environ.get(ISA_VARIABLE) or None
    if wanted is None:
        return [name for name, present in available.items() if present][-1]
    if not available.get(wanted, False):
        usable = ", ".join(name for name, present in available.items() if present)
        reason = "this CPU lacks it" if wanted in available else "no such instruction set was built"
        raise BackendError(f"instruction set {wanted} (argument or {ISA_VARIABLE}): {reason}; usable here: {usable}")
    return wanted


@dataclass(frozen=True)
class PackedEgg:
    """A snapshot of the parameters, packed for one instruction set."""

    shape: EggShape
    isa: str
    packed: _kernels.Model


class NativeOps(AbstractOps):
    """The C++ kernels. `isa` is the instruction set in use; see `choose_isa` for how it is chosen."""

    name = "native"

    def __init__(self, threads: int = 1, isa: str | None = None) -> None:
        super().__init__(threads)
        self.isa = choose_isa(isa)
        self._backend = _kernels.Backend(self.isa, threads)

    def peak(self, rounds: int) -> int:
        """Run `rounds` rounds of the instruction set's dot product on registers; returns the multiply-adds done.

        0 where there is no such instruction: the portable baseline beyond x86-64.
        """
        return self._backend.peak(rounds)

    def _noise(self, layout: Layout, rank: int, address: NoiseAddress, first_unit: int, num_units: int) -> Noise:
        factors, products = layout.noise_sizes(rank)
        factors_QF = np.empty((num_units, factors), np.int8)
        products_QV = np.empty((num_units, products), np.int16)
        table = _tensor_table(layout, rank)
        self._backend.noise(table, rank, address.seed, address.epoch, first_unit, factors_QF, products_QV)
        return Noise(rank, factors_QF, products_QV)

    def _prepare(self, shape: EggShape, parameters_P: Int8Array) -> PackedEgg:
        packed = self._backend.prepare(shape.width, shape.layers, shape.sigma_shift, parameters_P)
        return PackedEgg(shape, self.isa, packed)

    def _member_scores(
        self,
        model: Any,
        noise: Noise,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array,
        burn_in: int,
        state_MLD: Int8Array | None,
    ) -> Int32Array:
        scores_M = np.empty(2 * len(row_of_pair_Q), np.int32)
        self._forward(model, noise, rows_SW, row_of_pair_Q, burn_in, state_MLD, scores_M, None)
        return scores_M

    def _scores(self, model: Any, rows_SW: UInt8Array, burn_in: int, state_SLD: Int8Array | None) -> Int32Array:
        scores_S = np.empty(len(rows_SW), np.int32)
        self._forward(model, None, rows_SW, None, burn_in, state_SLD, scores_S, None)
        return scores_S

    def _logits(self, model: Any, tokens_S: UInt8Array, state_SLD: Int8Array, noise: Noise | None) -> Int8Array:
        logits_SV = np.empty((len(tokens_S), 256), np.int8)
        self._forward(model, noise, tokens_S[:, None], None, 0, state_SLD, None, logits_SV)
        return logits_SV

    def _forward(
        self,
        model: PackedEgg,
        noise: Noise | None,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array | None,
        burn_in: int,
        state: Int8Array | None,
        scores: Int32Array | None,
        logits: Int8Array | None,
    ) -> None:
        rank, factors, products = (noise.rank, noise.factors_QF, noise.products_QV) if noise else (0, None, None)
        if model.isa != self.isa:
            raise BackendError(f"the model was prepared for {model.isa}, these kernels are {self.isa}")
        if rank > MAX_RANK:
            raise BackendError(f"rank {rank}: the native kernels take up to {MAX_RANK}")
        self._backend.forward(
            model.packed, rank, factors, products, rows_SW, row_of_pair_Q, burn_in, state, scores, logits
        )

    def _accumulate(
        self, layout: Layout, noise: Noise, votes_Q: Int8Array, sign_noise: bool, sums_P: Int32Array
    ) -> None:
        table = _tensor_table(layout, noise.rank)
        self._backend.accumulate(table, noise.rank, noise.factors_QF, noise.products_QV, votes_Q, sign_noise, sums_P)

    def _apply(self, parameters_P: Int8Array, sums_P: Int32Array, threshold: int) -> int:
        return self._backend.apply(parameters_P, sums_P, threshold)

    def _ternary_nonzeros(self, perturbations: Perturbations, first_unit: int, num_units: int) -> NonZeros:
        p, call = perturbations, _ternary_call(perturbations)
        if p.support == "bernoulli":
            found = [self._backend.ternary_chosen(*call, unit) for unit in range(first_unit, first_unit + num_units)]
            positions_N = np.frombuffer(b"".join(positions for positions, _ in found), np.int64)
            starts_U1 = np.cumsum([0, *(len(signs) for _, signs in found)], dtype=np.int64)
            return NonZeros(starts_U1, positions_N, np.frombuffer(b"".join(signs for _, signs in found), np.int8))
        positions_N = np.empty(num_units * p.nonzeros, np.int64)
        signs_N = np.empty(len(positions_N), np.int8)
        self._backend.ternary_nonzeros(*call, first_unit * p.nonzeros, positions_N, signs_N)
        return NonZeros(np.arange(num_units + 1, dtype=np.int64) * p.nonzeros, positions_N, signs_N)

    def _ternary_step(self, perturbations: Perturbations, votes_U: Int8Array, parameters_P: Int8Array) -> None:
        self._backend.ternary_step(*_ternary_call(perturbations), votes_U, parameters_P)

    def _digest(self, layout: Layout, parameters_P: Int8Array) -> int:
        return self._backend.digest(_tensor_table(layout, 1), parameters_P)


def _ternary_call(p: Perturbations) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int, int]:
    """(support, weights, places of pi, k, Bernoulli bound), (tensors, 4) first column, columns, rows, offset; key."""
    room = ternary.places(p.support, p.layout)
    numbers = (_SUPPORTS[p.support], p.layout.size, room, p.nonzeros, ternary.bernoulli_bound(p))
    rows, first = [], 0
    for tensor in p.layout.tensors:
        height, width = tensor.shape if tensor.kind == "matrix" else (tensor.size, 1)
        rows.append((first, width, height, tensor.offset))
        first += width
    return np.array(numbers, np.int64), np.array(rows, np.int64), p.address.seed, p.address.epoch


def _tensor_table(layout: Layout, rank: int) -> npt.NDArray[np.int64]:
    """(tensors, 6) int64: out (0 for a vector), in, offset, first, second, index."""
    rows = []
    for slot in layout.noise_slots(rank):
        out_size, in_size = slot.tensor.shape if slot.tensor.kind == "matrix" else (0, slot.tensor.size)
        rows.append((out_size, in_size, slot.tensor.offset, slot.first, slot.second, slot.tensor.index))
    return np.array(rows, np.int64)
