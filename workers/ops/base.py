"""What every backend shares: the checks of shapes, dtypes and ranges, in front of its kernels.

A backend subclasses `AbstractOps`, sets `name` and implements the methods with a leading underscore; it may trust
what the public method has checked. Public signatures are documented once, in `es_service.types.Ops`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service import ternary
from es_service.errors import BackendError
from es_service.models import egg
from es_service.noise import MAX_UNITS
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

WIDTH_MULTIPLE = 16
MAX_WIDTH = 1024
_UPDATE_NOISE_BYTES = 32 << 20
"""Noise held at once while an update is summed."""


class AbstractOps(ABC):
    """Checks, then kernels. `threads` is how many CPU threads the kernels may use."""

    name: str
    lazy_noise = False

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise BackendError(f"threads is {threads}: give 1 or more")
        self.threads = threads

    def noise(self, layout: Layout, rank: int, address: NoiseAddress, first_unit: int, num_units: int) -> Noise:
        """See `es_service.types.Ops.noise`."""
        if rank < 1 or num_units < 1 or first_unit < 0 or first_unit + num_units > MAX_UNITS:
            raise BackendError(f"noise of rank {rank} for units {first_unit} + {num_units} cannot be addressed")
        return self._noise(layout, rank, address, first_unit, num_units)

    def wave_pairs(self, shape: EggShape, rank: int) -> int:
        """See `es_service.types.Ops.wave_pairs`."""
        return self._wave_pairs(shape, rank)

    def prepare(self, shape: EggShape, parameters_P: Int8Array) -> Any:
        """See `es_service.types.Ops.prepare`."""
        if shape.width % WIDTH_MULTIPLE or not 0 < shape.width <= MAX_WIDTH or shape.layers < 1:
            raise BackendError(
                f"width {shape.width} and {shape.layers} layers: width must be a multiple of {WIDTH_MULTIPLE} "
                f"up to {MAX_WIDTH}, with 1 layer or more"
            )
        if not 0 <= shape.sigma_shift <= 16:
            raise BackendError(f"sigma_shift {shape.sigma_shift} is outside 0 .. 16")
        check("parameters", parameters_P, np.int8, (egg.layout(shape.width, shape.layers).size,))
        return self._prepare(shape, parameters_P)

    def member_scores(
        self,
        model: Any,
        noise: Noise,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array,
        burn_in: int,
        state_MLD: Int8Array | None = None,
    ) -> Int32Array:
        """See `es_service.types.Ops.member_scores`."""
        shape: EggShape = model.shape
        pairs = self._check_noise(shape, noise)
        _check_rows(rows_SW, burn_in)
        check("row_of_pair", row_of_pair_Q, np.int32, (pairs,))
        if row_of_pair_Q.min() < 0 or row_of_pair_Q.max() >= len(rows_SW):
            raise BackendError(f"row_of_pair points outside the {len(rows_SW)} rows")
        if state_MLD is not None:
            check("state", state_MLD, np.int8, (2 * pairs, shape.layers, shape.width))
        return self._member_scores(model, noise, rows_SW, row_of_pair_Q, burn_in, state_MLD)

    def scores(self, model: Any, rows_SW: UInt8Array, burn_in: int, state_SLD: Int8Array | None = None) -> Int32Array:
        """See `es_service.types.Ops.scores`."""
        _check_rows(rows_SW, burn_in)
        if state_SLD is not None:
            check("state", state_SLD, np.int8, (len(rows_SW), model.shape.layers, model.shape.width))
        return self._scores(model, rows_SW, burn_in, state_SLD)

    def logits(self, model: Any, tokens_S: UInt8Array, state_SLD: Int8Array, noise: Noise | None = None) -> Int8Array:
        """See `es_service.types.Ops.logits`."""
        members = len(tokens_S) if noise is None else 2 * self._check_noise(model.shape, noise)
        check("tokens", tokens_S, np.uint8, (members,))
        check("state", state_SLD, np.int8, (members, model.shape.layers, model.shape.width))
        return self._logits(model, tokens_S, state_SLD, noise)

    def accumulate(
        self, layout: Layout, noise: Noise, votes_Q: Int8Array, sign_noise: bool, sums_P: Int32Array
    ) -> None:
        """See `es_service.types.Ops.accumulate`."""
        pairs = len(noise.factors_QF)
        factors, products = layout.noise_sizes(noise.rank)
        check("factors", noise.factors_QF, np.int8, (pairs, factors))
        check("products", noise.products_QV, np.int16, (pairs, products))
        _check_votes(votes_Q, pairs)
        check("sums", sums_P, np.int32, (layout.size,))
        self._accumulate(layout, noise, votes_Q, sign_noise, sums_P)

    def apply(self, parameters_P: Int8Array, sums_P: Int32Array, threshold: int) -> int:
        """See `es_service.types.Ops.apply`."""
        check("parameters", parameters_P, np.int8, sums_P.shape)
        check("sums", sums_P, np.int32, sums_P.shape)
        _check_threshold(threshold)
        return self._apply(parameters_P, sums_P, threshold)

    def update(
        self,
        layout: Layout,
        rank: int,
        address: NoiseAddress,
        votes_Q: Int8Array,
        sign_noise: bool,
        threshold: int,
        parameters_P: Int8Array,
    ) -> int:
        """See `es_service.types.Ops.update`."""
        if rank < 1 or not 0 < len(votes_Q) <= MAX_UNITS:
            raise BackendError(f"noise of rank {rank} for {len(votes_Q)} units cannot be addressed")
        _check_votes(votes_Q, len(votes_Q))
        check("parameters", parameters_P, np.int8, (layout.size,))
        _check_threshold(threshold)
        return self._update(layout, rank, address, votes_Q, sign_noise, threshold, parameters_P)

    def ternary_nonzeros(self, perturbations: Perturbations, first_unit: int, num_units: int) -> NonZeros:
        """See `es_service.types.Ops.ternary_nonzeros`."""
        _check_perturbations(perturbations)
        if first_unit < 0 or num_units < 1 or first_unit + num_units > perturbations.units:
            raise BackendError(f"perturbations {first_unit} + {num_units} of {perturbations.units}")
        return self._ternary_nonzeros(perturbations, first_unit, num_units)

    def ternary_step(self, perturbations: Perturbations, votes_U: Int8Array, parameters_P: Int8Array) -> int:
        """See `es_service.types.Ops.ternary_step`."""
        _check_perturbations(perturbations)
        check("votes", votes_U, np.int8, (perturbations.units,))
        check("parameters", parameters_P, np.int8, (perturbations.layout.size,))
        for name, values in (("votes", votes_U), ("parameters", parameters_P)):
            if values.min() < -1 or values.max() > 1:
                raise BackendError(f"{name} must be -1, 0 or +1")
        before_P = parameters_P.copy()
        self._ternary_step(perturbations, votes_U, parameters_P)
        return int((parameters_P != before_P).sum())

    def digest(self, layout: Layout, parameters_P: Int8Array) -> int:
        """See `es_service.types.Ops.digest`."""
        check("parameters", parameters_P, np.int8, (layout.size,))
        return self._digest(layout, parameters_P)

    @staticmethod
    def _check_noise(shape: EggShape, noise: Noise) -> int:
        pairs = len(noise.factors_QF)
        factors, products = egg.layout(shape.width, shape.layers).noise_sizes(noise.rank)
        check("factors", noise.factors_QF, np.int8, (pairs, factors))
        check("products", noise.products_QV, np.int16, (pairs, products))
        return pairs

    @abstractmethod
    def _noise(self, layout: Layout, rank: int, address: NoiseAddress, first_unit: int, num_units: int) -> Noise: ...

    def _wave_pairs(self, shape: EggShape, rank: int) -> int:  # noqa: ARG002 - a CPU takes any number
        return 0

    @abstractmethod
    def _prepare(self, shape: EggShape, parameters_P: Int8Array) -> Any: ...

    @abstractmethod
    def _member_scores(
        self,
        model: Any,
        noise: Noise,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array,
        burn_in: int,
        state_MLD: Int8Array | None,
    ) -> Int32Array: ...

    @abstractmethod
    def _scores(self, model: Any, rows_SW: UInt8Array, burn_in: int, state_SLD: Int8Array | None) -> Int32Array: ...

    @abstractmethod
    def _logits(self, model: Any, tokens_S: UInt8Array, state_SLD: Int8Array, noise: Noise | None) -> Int8Array: ...

    @abstractmethod
    def _accumulate(
        self, layout: Layout, noise: Noise, votes_Q: Int8Array, sign_noise: bool, sums_P: Int32Array
    ) -> None: ...

    @abstractmethod
    def _apply(self, parameters_P: Int8Array, sums_P: Int32Array, threshold: int) -> int: ...

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
        """Sums of all units, in parts that bound the noise held at once, then the step; a backend may fuse them."""
        sums_P = np.zeros(layout.size, np.int32)
        factors, products = layout.noise_sizes(rank)
        at_once = max(1, _UPDATE_NOISE_BYTES // (factors + 2 * products))
        for first in range(0, len(votes_Q), at_once):
            part_Q = votes_Q[first : first + at_once]
            noise = self._noise(layout, rank, address, first, len(part_Q))
            self._accumulate(layout, noise, part_Q, sign_noise, sums_P)
        return self._apply(parameters_P, sums_P, threshold)

    @abstractmethod
    def _ternary_nonzeros(self, perturbations: Perturbations, first_unit: int, num_units: int) -> NonZeros: ...

    @abstractmethod
    def _ternary_step(self, perturbations: Perturbations, votes_U: Int8Array, parameters_P: Int8Array) -> None: ...

    @abstractmethod
    def _digest(self, layout: Layout, parameters_P: Int8Array) -> int: ...


def check(name: str, array: npt.NDArray[Any], dtype: npt.DTypeLike, shape: tuple[int, ...]) -> None:
    """Raise `BackendError` unless the array is C-contiguous with this dtype and shape."""
    if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
        raise BackendError(
            f"{name}: need contiguous {np.dtype(dtype)} {shape}, got {array.dtype} {array.shape}"
            + ("" if array.flags.c_contiguous else ", not contiguous")
        )


def _check_votes(votes_Q: Int8Array, units: int) -> None:
    check("votes", votes_Q, np.int8, (units,))
    if votes_Q.min() < -1 or votes_Q.max() > 1:
        raise BackendError("votes must be -1, 0 or +1")


def _check_threshold(threshold: int) -> None:
    if not 0 <= threshold < 1 << 62:
        raise BackendError(f"threshold {threshold} is outside 0 .. 2^62")


def _check_perturbations(p: Perturbations) -> None:
    room = ternary.places(p.support, p.layout)
    if not 0 < p.units <= MAX_UNITS or not 0 < p.nonzeros < 1 << 31:
        raise BackendError(f"{p.units} perturbations of {p.nonzeros} non-zeros cannot be addressed")
    if p.nonzeros * (1 if p.support == "bernoulli" else p.units) > room:
        raise BackendError(f"{p.units} perturbations of {p.nonzeros} non-zeros do not fit {room} ({p.support})")


def _check_rows(rows_SW: UInt8Array, burn_in: int) -> None:
    if rows_SW.ndim != 2 or not len(rows_SW) or not 0 <= burn_in <= rows_SW.shape[1] - 2:
        raise BackendError(f"rows {rows_SW.shape} with burn_in {burn_in}: need (rows, burn_in + scored + 1)")
    check("rows", rows_SW, np.uint8, rows_SW.shape)
