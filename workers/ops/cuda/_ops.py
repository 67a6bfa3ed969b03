"""The operations on any device: what is uploaded, launched in which order, and brought back."""

from __future__ import annotations

from typing import Any

import numpy as np

from es_service import noise as addressing
from es_service import ternary
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
from workers.ops.cuda import _launch
from workers.ops.cuda._device import AbstractDevice
from workers.ops.cuda._launch import CounterRange, DeviceEgg, Forward, Votes
from workers.ops.cuda._noise import counters_of, lazy_noise
from workers.ops.cuda.ternary import TernaryKernels

__all__ = ["AbstractDeviceOps"]

_NOISE_BYTES = 1 << 30
"""Noise and vectors of members held on the device at once."""
_MAX_DEPTH = (1 << 31) - 64
"""Units times rank of one launch of the update: its loops count in 32 bits, 64 at a time."""


class AbstractDeviceOps(AbstractOps):
    """Kernels on one device. A subclass says which."""

    lazy_noise = True
    """`noise` makes nothing: a whole generation of units can be asked for and accumulated at once."""

    def __init__(self, device: AbstractDevice, threads: int = 1) -> None:
        super().__init__(threads)
        self.device = device
        self.table = device.upload(addressing.TABLE)

    def _wave_pairs(self, shape: EggShape, rank: int) -> int:
        """One tile of the largest size that fits, on every multiprocessor."""
        tile = _launch.choose_tile(self.device, shape, rank, 1 << 30)
        return tile // 2 * self.device.multiprocessors

    # ---- noise ---------------------------------------------------------------------------------------------------

    def _noise(self, layout: Layout, rank: int, address: NoiseAddress, first_unit: int, num_units: int) -> Noise:
        return lazy_noise(CounterRange(layout, rank, address, first_unit, num_units), self._host_noise)

    def _host_noise(self, counters: CounterRange) -> Noise:
        factors, products = self._device_noise(counters)
        return Noise(counters.rank, self.device.download(factors), self.device.download(products))

    def _device_noise(self, counters: CounterRange) -> tuple[Any, Any]:
        factors, products = counters.layout.noise_sizes(counters.rank)
        factors_QF = self.device.empty((counters.units, factors), np.int8)
        products_QV = self.device.empty((counters.units, products), np.int16)
        _launch.fill_noise(self.device, self.table, counters, factors_QF, products_QV)
        return factors_QF, products_QV

    def _part_on_device(self, noise: Noise, first: int, units: int) -> tuple[Any, Any]:
        counters = counters_of(noise)
        if counters is not None:
            return self._device_noise(counters.part(first, units))
        part = slice(first, first + units)
        return self.device.upload(noise.factors_QF[part]), self.device.upload(noise.products_QV[part])

    # ---- forward -------------------------------------------------------------------------------------------------

    def _prepare(self, shape: EggShape, parameters_P: Int8Array) -> DeviceEgg:
        return _launch.prepare(self.device, shape, parameters_P)

    def _pairs_at_once(self, shape: EggShape, noise: Noise) -> int:
        """Whole waves of the largest tile that keep within the memory set aside for noise."""
        pair_bytes: int = noise.factors_QF.shape[1] + 4 * noise.products_QV.shape[1]
        wave = self.wave_pairs(shape, noise.rank)
        return max(1, _NOISE_BYTES // (pair_bytes * wave)) * wave

    def _member_scores(
        self,
        model: Any,
        noise: Noise,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array,
        burn_in: int,
        state_MLD: Int8Array | None,
    ) -> Int32Array:
        pairs, step = len(row_of_pair_Q), self._pairs_at_once(model.shape, noise)
        rows, row_of_pair = self.device.upload(rows_SW), self.device.upload(row_of_pair_Q)
        scores = self.device.empty((2 * pairs,), np.int32)
        state = self._state(model, 2 * pairs, state_MLD)
        for first in range(0, pairs, step):
            units = min(step, pairs - first)
            factors, products = self._part_on_device(noise, first, units)
            members = slice(2 * first, 2 * (first + units))
            vectors = _launch.vectors(self.device, model, products, units)
            reads = (vectors, rows, row_of_pair[first : first + units])
            writes = (state[members], scores[members], None)
            call = Forward(model, noise.rank, factors, *reads, *writes, 2 * units, burn_in)
            _launch.forward(self.device, call)
        self._bring_back(state, state_MLD)
        return self.device.download(scores)

    def _scores(self, model: Any, rows_SW: UInt8Array, burn_in: int, state_SLD: Int8Array | None) -> Int32Array:
        scores = self.device.empty((len(rows_SW),), np.int32)
        state = self._state(model, len(rows_SW), state_SLD)
        vectors, rows = _launch.vectors(self.device, model, None, 0), self.device.upload(rows_SW)
        call = Forward(model, 0, None, vectors, rows, None, state, scores, None, len(rows_SW), burn_in)
        _launch.forward(self.device, call)
        self._bring_back(state, state_SLD)
        return self.device.download(scores)

    def _logits(self, model: Any, tokens_S: UInt8Array, state_SLD: Int8Array, noise: Noise | None) -> Int8Array:
        members = len(tokens_S)
        logits = self.device.empty((members, 256), np.int8)
        state = self._state(model, members, state_SLD)
        rank, factors, products = 0, None, None
        if noise is not None:
            rank = noise.rank
            factors, products = self._part_on_device(noise, 0, members // 2)
        vectors = _launch.vectors(self.device, model, products, members // 2)
        rows = self.device.upload(tokens_S[:, None])
        call = Forward(model, rank, factors, vectors, rows, None, state, None, logits, members, 0)
        _launch.forward(self.device, call)
        self._bring_back(state, state_SLD)
        return self.device.download(logits)

    def _state(self, model: DeviceEgg, members: int, state: Int8Array | None) -> Any:
        if state is not None:
            return self.device.upload(state)
        return self.device.zeros((members, model.shape.layers, model.shape.width), np.int8)

    def _bring_back(self, state: Any, to: Int8Array | None) -> None:
        if to is not None:
            to[:] = self.device.download(state)

    # ---- update --------------------------------------------------------------------------------------------------

    def _accumulate(
        self, layout: Layout, noise: Noise, votes_Q: Int8Array, sign_noise: bool, sums_P: Int32Array
    ) -> None:
        sums = self.device.upload(sums_P)
        self._add(layout, noise, votes_Q, sign_noise, sums)
        sums_P[:] = self.device.download(sums)

    def _add(
        self,
        layout: Layout,
        noise: Noise,
        votes_Q: Int8Array,
        sign_noise: bool,
        sums: Any,
        step: _launch.Step | None = None,
    ) -> None:
        """Z of all units to `sums` or into the step: one launch, or as many as memory and 32-bit depths ask for."""
        counters = counters_of(noise) if _launch.in_whole_counters(layout) else None
        unit_bytes: int = 0 if counters else noise.factors_QF.shape[1] + 2 * noise.products_QV.shape[1]
        at_once = max(1, min(_MAX_DEPTH // noise.rank, _NOISE_BYTES // max(1, unit_bytes)))
        if sums is None and len(votes_Q) > at_once:
            sums = self.device.zeros((layout.size,), np.int32)
        for first in range(0, len(votes_Q), at_once):
            part_Q = votes_Q[first : first + at_once]
            active_K = np.flatnonzero(part_Q).astype(np.int32)
            last_step = step if first + at_once >= len(votes_Q) else None
            if not len(active_K) and not last_step:
                continue
            address, first_unit, source = NoiseAddress(0, 0), 0, (None, None)
            if counters:
                address, first_unit = counters.address, counters.first + first
            else:
                source = self._part_on_device(noise, first, len(part_Q))
            units, votes = self.device.upload(active_K), self.device.upload(part_Q[active_K])
            call = Votes(layout, noise.rank, address, first_unit, units, votes, sign_noise, *source)
            _launch.accumulate(self.device, self.table, call, sums, last_step)

    def _apply(self, parameters_P: Int8Array, sums_P: Int32Array, threshold: int) -> int:
        if not len(parameters_P):
            return 0
        step = _launch.step_to(self.device, self.device.upload(parameters_P), threshold)
        _launch.apply(self.device, step, self.device.upload(sums_P))
        return self._taken(step, parameters_P)

    def _update(
        self,
        layout: Layout,
        rank: int,
        address: NoiseAddress,
        votes_Q: Int8Array,
        sign_noise: bool,
        threshold: int,
        parameters_P: Int8Array,
    ) -> int:
        step = _launch.step_to(self.device, self.device.upload(parameters_P), threshold)
        noise = self._noise(layout, rank, address, 0, len(votes_Q))
        self._add(layout, noise, votes_Q, sign_noise, None, step)
        return self._taken(step, parameters_P)

    def _taken(self, step: _launch.Step, parameters_P: Int8Array) -> int:
        parameters_P[:] = self.device.download(step.parameters)
        return int(self.device.download(step.moved)[0])

    # ---- ternary perturbations -----------------------------------------------------------------------------------

    def _ternary_nonzeros(self, perturbations: Perturbations, first_unit: int, num_units: int) -> NonZeros:
        if perturbations.support == "bernoulli":  # dense to find, wherever that is done
            return ternary.nonzeros(perturbations, first_unit, num_units)
        return TernaryKernels(self.device).nonzeros(perturbations, first_unit, num_units)

    def _ternary_step(self, perturbations: Perturbations, votes_U: Int8Array, parameters_P: Int8Array) -> None:
        TernaryKernels(self.device).step(perturbations, votes_U, parameters_P)

    def _digest(self, layout: Layout, parameters_P: Int8Array) -> int:
        total = _launch.digest(self.device, layout, self.device.upload(parameters_P))
        return int(self.device.download(total)[0])
