"""The definition of every kernel, in NumPy: slow, readable, exact. Other backends equal it bit for bit.

EGG and integer EGGROLL: Sarkar et al., "Evolution Strategies at the Hyperscale", arXiv 2511.16652; the exact
arithmetic is specs/egg.md. Accumulators are int32 and wrap modulo 2^32, as NumPy integer arrays do; `>>` and `//`
floor. Members 2q and 2q + 1 of a lease share the noise of pair q with signs +1 and -1.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service import noise as addressing
from es_service import ternary
from es_service.models import egg
from es_service.types import (
    EggShape,
    Int8Array,
    Int32Array,
    Layout,
    Noise,
    NoiseAddress,
    NoiseSlot,
    NonZeros,
    Perturbations,
    UInt8Array,
)
from workers.ops.base import AbstractOps

__all__ = ["EXP2_TABLE", "PreparedEgg", "ReferenceOps", "log_sum_exp"]

_SIGNS = np.array([1, -1], np.int32)

EXP2_TABLE: Int32Array = np.trunc(16 * 2.0 ** (np.arange(256) / 16)).astype(np.int32)
"""(256,) int32: X[i] = trunc(16 * 2^(i/16))."""

# s in [2^e, 2^(e+1)) is shifted to 28 bits; entry j - 1 is the least such value with log2 >= j/16 above 2^27.
_LOG2_STEPS = np.ceil(2.0 ** (27 + np.arange(1, 16) / 16)).astype(np.int64)


@dataclass(frozen=True)
class PreparedEgg:
    """A snapshot of the parameters as int8 tensors by name."""

    shape: EggShape
    layout: Layout
    tensors: dict[str, Int8Array]


def clip(values: npt.NDArray[Any]) -> Int8Array:
    """c(v): saturation to -127 .. 127."""
    clipped: Int8Array = np.clip(values, -127, 127).astype(np.int8)
    return clipped


def exact_product(x_MI: npt.NDArray[np.integer[Any]], weights_OI: Int8Array) -> Int32Array:
    """W x for each of M rows: (M, O) int32. Every partial sum is an integer below 2^53, so float64 BLAS is exact."""
    product_MO = x_MI.astype(np.float64) @ weights_OI.T.astype(np.float64)
    exact_MO: Int32Array = product_MO.astype(np.int64).astype(np.int32)
    return exact_MO


def log_sum_exp(sums: npt.NDArray[np.integer[Any]]) -> Int32Array:
    """trunc(16 log2(s / 16)) for s in [256, 2^28), by exponent and a table of 15 steps: int32, same shape."""
    wide = sums.astype(np.int64)
    exponent = np.frexp(wide.astype(np.float64))[1] - 1
    normalised = wide << (27 - exponent)
    result: Int32Array = 16 * (exponent - 4) + np.searchsorted(_LOG2_STEPS, normalised, side="right").astype(np.int32)
    return result


class _Forward:
    """One byte of EGG for M members; without noise the same with the noise term left out."""

    def __init__(self, model: PreparedEgg, noise: Noise | None) -> None:
        self.model = model
        self.noise = noise
        self.shift = egg.FRACTION_BITS + model.shape.sigma_shift
        slots = model.layout.noise_slots(noise.rank) if noise else ()
        self.slots: dict[str, NoiseSlot] = {slot.tensor.name: slot for slot in slots}

    def factors(self, name: str) -> tuple[Int32Array, Int32Array]:
        """A (Q, r, out) and B (Q, r, in) of a matrix, int32."""
        assert self.noise is not None
        slot, rank = self.slots[name], self.noise.rank
        out_size, in_size = slot.tensor.shape
        factors_QF = self.noise.factors_QF
        a_QRO = factors_QF[:, slot.first : slot.first + rank * out_size].reshape(-1, rank, out_size)
        b_QRI = factors_QF[:, slot.second : slot.second + rank * in_size].reshape(-1, rank, in_size)
        return a_QRO.astype(np.int32), b_QRI.astype(np.int32)

    def matmul(self, name: str, x_MI: Int8Array) -> Int8Array:
        """c((W x + ((sum_r (x . B_r) (sign A_r)) >> S)) div (16 isqrt(in)))."""
        weights_OI = self.model.tensors[name]
        acc_MO = exact_product(x_MI, weights_OI)
        if self.noise is not None:
            a_QRO, b_QRI = self.factors(name)
            x_QNI = x_MI.astype(np.int32).reshape(len(b_QRI), 2, -1)
            dots_QNR = np.einsum("qni,qri->qnr", x_QNI, b_QRI) * _SIGNS[None, :, None]
            acc_MO += (np.einsum("qnr,qro->qno", dots_QNR, a_QRO) >> self.shift).reshape(acc_MO.shape)
        return clip(acc_MO // (16 * isqrt(weights_OI.shape[1])))

    def vector(self, name: str) -> Int8Array:
        """c(p + ((sign u v) >> S)): (M, d), or (1, d) without noise."""
        values_D = self.model.tensors[name]
        if self.noise is None:
            return clip(values_D[None])
        slot = self.slots[name]
        products_QD = self.noise.products_QV[:, slot.first : slot.first + len(values_D)].astype(np.int32)
        signed_QND = products_QD[:, None] * _SIGNS[None, :, None]
        return clip(values_D + (signed_QND >> self.shift)).reshape(-1, len(values_D))

    def embedding(self, tokens_M: UInt8Array) -> Int8Array:
        """c(E[k] + ((sum_r sign A_r[k] B_r) >> S)): (M, D)."""
        rows_MD = self.model.tensors["emb"][tokens_M]
        if self.noise is None:
            return clip(rows_MD)
        a_QRO, b_QRI = self.factors("emb")
        tokens_QN = tokens_M.reshape(-1, 2)
        a_QNR = np.take_along_axis(a_QRO.transpose(0, 2, 1), tokens_QN[:, :, None].astype(np.intp), axis=1)
        term_QND = np.einsum("qnr,qri->qni", a_QNR * _SIGNS[None, :, None], b_QRI)
        return clip(rows_MD + (term_QND >> self.shift).reshape(rows_MD.shape))

    def layer_norm(self, name: str, x_MD: Int8Array) -> Int8Array:
        """c((x w) div max(1, (sum |x|) div D))."""
        x32_MD = x_MD.astype(np.int32)
        mean_M = np.maximum(1, np.abs(x32_MD).sum(axis=1) // x_MD.shape[1])
        return clip(x32_MD * self.vector(name) // mean_M[:, None])

    def recurrent(self, block: str, x_MD: Int8Array, state_MD: Int8Array) -> Int8Array:
        """The gated recurrence; returns the new state."""
        u_MD = self.layer_norm(f"{block}.ln1", x_MD)
        state32_MD = state_MD.astype(np.int32)
        gate_MD = self.total(f"{block}.att.Wf", u_MD, f"{block}.att.Uf", state_MD, f"{block}.att.bf") + 127
        passed_MD = ((gate_MD * state32_MD) >> 8).astype(np.int8)
        candidate_MD = self.total(f"{block}.att.Wh", u_MD, f"{block}.att.Uh", passed_MD, f"{block}.att.bh")
        return (state32_MD + ((gate_MD * (candidate_MD - state32_MD)) >> 8)).astype(np.int8)

    def total(self, w: str, x_MD: Int8Array, u: str, s_MD: Int8Array, bias: str) -> Int32Array:
        """c(W x + U s + b), each term an int8 already; widened to int32 for the gate arithmetic."""
        terms = self.matmul(w, x_MD).astype(np.int32) + self.matmul(u, s_MD) + self.vector(bias)
        return clip(terms).astype(np.int32)

    def step(self, tokens_M: UInt8Array, state_MLD: Int8Array) -> Int8Array:
        """Logits (M, 256) int8 after one byte; `state_MLD` is overwritten."""
        state_MLD[tokens_M == 0] = 0
        x_MD = self.embedding(tokens_M)
        for n in range(self.model.shape.layers):
            block = f"blocks.{n}"
            state_MLD[:, n] = self.recurrent(block, x_MD, state_MLD[:, n])
            x_MD = clip(x_MD.astype(np.int32) + state_MLD[:, n])
            hidden = self.matmul(f"{block}.mlp.0", self.layer_norm(f"{block}.ln2", x_MD))
            x_MD = clip(x_MD.astype(np.int32) + self.matmul(f"{block}.mlp.1", hidden))
        return self.matmul("head", self.layer_norm("ln_out", x_MD))

    def run(self, rows_MW: UInt8Array, burn_in: int, state_MLD: Int8Array | None) -> Int32Array:
        """Scores (M,) int32 of positions burn_in .. W - 2."""
        shape = self.model.shape
        if state_MLD is None:
            state_MLD = np.zeros((len(rows_MW), shape.layers, shape.width), np.int8)
        scores_M = np.zeros(len(rows_MW), np.int32)
        for position in range(rows_MW.shape[1] - 1):
            logits_MV = self.step(rows_MW[:, position], state_MLD)
            if position >= burn_in:
                scores_M += score(logits_MV, rows_MW[:, position + 1])
        return scores_M


def score(logits_MV: Int8Array, targets_M: UInt8Array) -> Int32Array:
    """z[target] - LSE(z) with z = logits + 128, in 1/16 bit: (M,) int32."""
    z_MV = logits_MV.astype(np.int32) + 128
    target_M = np.take_along_axis(z_MV, targets_M[:, None].astype(np.intp), axis=1)[:, 0]
    return target_M - log_sum_exp(EXP2_TABLE[z_MV].sum(axis=1))


def splitmix64(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


class ReferenceOps(AbstractOps):
    """NumPy on one thread; `threads` is accepted and left to BLAS."""

    name = "reference"

    def _noise(self, layout: Layout, rank: int, address: NoiseAddress, first_unit: int, num_units: int) -> Noise:
        units_Q = np.arange(first_unit, first_unit + num_units, dtype=np.uint32)
        factors, products = layout.noise_sizes(rank)
        factors_QF = np.empty((num_units, factors), np.int8)
        products_QV = np.empty((num_units, products), np.int16)
        stream = addressing.Stream
        for slot in layout.noise_slots(rank):
            where, index = (address.seed, address.epoch), slot.tensor.index
            if slot.tensor.kind == "matrix":
                a_size, b_size = (rank * size for size in slot.tensor.shape)
                a_QA = addressing.entries(*where, stream.FACTOR_A, index, units_Q, a_size)
                b_QB = addressing.entries(*where, stream.FACTOR_B, index, units_Q, b_size)
                factors_QF[:, slot.first : slot.first + a_size] = a_QA
                factors_QF[:, slot.second : slot.second + b_size] = b_QB
            else:
                size = slot.tensor.size
                u_QD = addressing.entries(*where, stream.VECTOR_U, index, units_Q, size)
                v_QD = addressing.entries(*where, stream.VECTOR_V, index, units_Q, size)
                products_QV[:, slot.first : slot.first + size] = u_QD.astype(np.int16) * v_QD
        return Noise(rank, factors_QF, products_QV)

    def _prepare(self, shape: EggShape, parameters_P: Int8Array) -> PreparedEgg:
        layout = egg.layout(shape.width, shape.layers)
        return PreparedEgg(shape, layout, layout.views(parameters_P.copy()))

    def _member_scores(
        self,
        model: Any,
        noise: Noise,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array,
        burn_in: int,
        state_MLD: Int8Array | None,
    ) -> Int32Array:
        rows_MW = rows_SW[np.repeat(row_of_pair_Q, 2)]
        return _Forward(model, noise).run(rows_MW, burn_in, state_MLD)

    def _scores(self, model: Any, rows_SW: UInt8Array, burn_in: int, state_SLD: Int8Array | None) -> Int32Array:
        return _Forward(model, None).run(rows_SW, burn_in, state_SLD)

    def _logits(self, model: Any, tokens_S: UInt8Array, state_SLD: Int8Array, noise: Noise | None) -> Int8Array:
        return _Forward(model, noise).step(tokens_S, state_SLD)

    def _accumulate(
        self, layout: Layout, noise: Noise, votes_Q: Int8Array, sign_noise: bool, sums_P: Int32Array
    ) -> None:
        factors_QF = np.sign(noise.factors_QF) if sign_noise else noise.factors_QF
        products_QV = np.sign(noise.products_QV) if sign_noise else noise.products_QV
        sums = layout.views(sums_P)
        for slot in layout.noise_slots(noise.rank):
            total = sums[slot.tensor.name]
            if slot.tensor.kind == "vector":
                products_QD = products_QV[:, slot.first : slot.first + slot.tensor.size].astype(np.int32)
                total += votes_Q.astype(np.int32) @ products_QD
                continue
            out_size, in_size = slot.tensor.shape
            for r in range(noise.rank):
                a_QO = factors_QF[:, slot.first + r * out_size : slot.first + (r + 1) * out_size]
                b_QI = factors_QF[:, slot.second + r * in_size : slot.second + (r + 1) * in_size]
                voted_QO = a_QO.astype(np.int16) * votes_Q[:, None]  # -128 has no negative in int8
                total += exact_product(np.ascontiguousarray(voted_QO.T), np.ascontiguousarray(b_QI.T))

    def _apply(self, parameters_P: Int8Array, sums_P: Int32Array, threshold: int) -> int:
        moves_P = 16 * np.abs(sums_P.astype(np.int64)) >= threshold
        step_P = np.where(sums_P > 0, 1, -1) * moves_P
        parameters_P[:] = np.where(moves_P, clip(parameters_P.astype(np.int32) + step_P), parameters_P)
        return int(moves_P.sum())

    def _ternary_nonzeros(self, perturbations: Perturbations, first_unit: int, num_units: int) -> NonZeros:
        return ternary.nonzeros(perturbations, first_unit, num_units)

    def _ternary_step(self, perturbations: Perturbations, votes_U: Int8Array, parameters_P: Int8Array) -> None:
        step_P = np.clip(ternary.sums(perturbations, votes_U), -1, 1)
        parameters_P[:] = np.clip(parameters_P + step_P, -1, 1)

    def _digest(self, layout: Layout, parameters_P: Int8Array) -> int:
        total = 0
        for tensor in layout.tensors:
            data = parameters_P[tensor.offset : tensor.offset + tensor.size].tobytes()
            words = np.frombuffer(data + bytes(-len(data) % 8), "<u8").astype(np.uint64)
            place = np.arange(len(words), dtype=np.uint64) | np.uint64(tensor.index << 40)
            total += int(splitmix64(words ^ splitmix64(place)).sum(dtype=np.uint64))
        return total & 0xFFFFFFFFFFFFFFFF
