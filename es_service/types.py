"""Small values shared by every part, and the protocol that the array backends implement.

Shape suffixes: P parameters of a model (flat), Q units (antithetic pairs), M = 2Q members, S rows of text,
W bytes in a row, L layers, D width, F factor entries a unit, V vector entries a unit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

Int8Array = npt.NDArray[np.int8]
Int16Array = npt.NDArray[np.int16]
Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
UInt8Array = npt.NDArray[np.uint8]

TensorKind = Literal["matrix", "vector"]
Support = Literal["bernoulli", "exact", "columns"]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a model, in canonical order. `offset` counts int8 elements in the flat parameter array.

    A matrix has shape (out, in) and takes noise factors A (out, rank) and B (in, rank); the embedding is the
    matrix (256, D). A vector has shape (d,) and takes the product of two entries for each element.
    """

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    index: int
    offset: int

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Part:
    """Rows `first` .. `stop` - 1 of one tensor; the rows of a vector are its elements."""

    tensor: TensorSpec
    first: int
    stop: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the part."""
        return self.stop - self.first, *self.tensor.shape[1:]

    @property
    def size(self) -> int:
        """Number of elements, which lie together in the flat parameter array."""
        return math.prod(self.shape)

    @property
    def start(self) -> int:
        """First element, counted from the start of the tensor."""
        return self.first * (self.tensor.size // self.tensor.shape[0])


@dataclass(frozen=True, slots=True)
class NoiseSlot:
    """Where the noise of one tensor lies in a unit's noise.

    Matrix: `first` is the offset of A, entry r * out + o, and `second` that of B, entry r * in + i, both in
    `Noise.factors_QF`. Vector: `first` is the offset in `Noise.products_QV`, `second` is -1.
    """

    tensor: TensorSpec
    first: int
    second: int


@dataclass(frozen=True)
class Layout:
    """The tensors of a model in canonical order (specs/formats.md); defines the flat parameter array."""

    tensors: tuple[TensorSpec, ...]

    @property
    def size(self) -> int:
        """Number of parameters P."""
        last = self.tensors[-1]
        return last.offset + last.size

    def views(self, flat_P: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Views of a flat array of P elements (any dtype), by tensor name."""
        return {t.name: flat_P[t.offset : t.offset + t.size].reshape(t.shape) for t in self.tensors}

    def noise_slots(self, rank: int) -> Iterator[NoiseSlot]:
        """Offsets of every tensor's noise for factors of this rank, in canonical order."""
        factor = product = 0
        for tensor in self.tensors:
            if tensor.kind == "matrix":
                out_size, in_size = tensor.shape
                yield NoiseSlot(tensor, factor, factor + rank * out_size)
                factor += rank * (out_size + in_size)
            else:
                yield NoiseSlot(tensor, product, -1)
                product += tensor.size

    def noise_sizes(self, rank: int) -> tuple[int, int]:
        """(F, V): factor entries and vector entries of one unit."""
        matrices = sum(sum(t.shape) for t in self.tensors if t.kind == "matrix")
        return rank * matrices, sum(t.size for t in self.tensors if t.kind == "vector")


@dataclass(frozen=True, slots=True)
class NoiseAddress:
    """What all units of one generation share in the counter (specs/formats.md, Randomness).

    `epoch` is e: generation div noise_reuse, or 0 if noise_reuse = 0.
    """

    seed: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise of Q consecutive units for the even member (sign +1), as kernels take it.

    factors_QF: (Q, F) int8 in -127 .. 127, C-contiguous, matrices only, laid out by `Layout.noise_slots`.
    products_QV: (Q, V) int16, C-contiguous, the product u v of each vector element.
    """

    rank: int
    factors_QF: Int8Array
    products_QV: Int16Array


@dataclass(frozen=True, slots=True)
class Perturbations:
    """The ternary perturbations of one generation; `es_service.ternary` defines their supports and signs.

    `nonzeros` is k: the exact number of non-zeros of each of the `units` perturbations, for `bernoulli` the expected
    number.
    """

    support: Support
    address: NoiseAddress
    layout: Layout
    units: int
    nonzeros: int


@dataclass(frozen=True, slots=True)
class NonZeros:
    """The non-zeros of consecutive ternary perturbations, and nothing else of them.

    starts_U1: (U + 1,) int64; perturbation u has entries starts[u] .. starts[u + 1] - 1 of the other two.
    positions_N: (N,) int64 places in the flat parameters. signs_N: (N,) int8, -1 or +1.
    """

    starts_U1: Int64Array
    positions_N: Int64Array
    signs_N: Int8Array


@dataclass(frozen=True, slots=True)
class EggShape:
    """Sizes of an EGG model (specs/egg.md). `sigma_shift` scales its noise: S = 4 + sigma_shift."""

    width: int
    layers: int
    sigma_shift: int


class Ops(Protocol):
    """The kernels of one backend. `reference` is the definition; the others equal it bit for bit.

    All arrays are C-contiguous NumPy arrays on the host. Accumulators are int32 modulo 2^32.
    Bad shapes, dtypes or values raise `BackendError`.
    """

    name: str

    threads: int
    """CPU threads that the kernels may use."""

    lazy_noise: bool
    """`noise` only remembers the addresses, so that any number of units may be asked for at once."""

    def noise(self, layout: Layout, rank: int, address: NoiseAddress, first_unit: int, num_units: int) -> Noise:
        """Noise of units first_unit .. first_unit + num_units - 1 from counters (streams 1 to 4)."""
        ...

    def wave_pairs(self, shape: EggShape, rank: int) -> int:
        """Pairs that fill the device once: fewer leave some of it idle. 0 where any number is as good."""
        ...

    def prepare(self, shape: EggShape, parameters_P: Int8Array) -> Any:
        """An opaque snapshot of the parameters in the form that the forward kernels want (once a generation)."""
        ...

    def member_scores(
        self,
        model: Any,
        noise: Noise,
        rows_SW: UInt8Array,
        row_of_pair_Q: Int32Array,
        burn_in: int,
        state_MLD: Int8Array | None = None,
    ) -> Int32Array:
        """Scores (M,) int32 in 1/16 bit of M = 2Q perturbed members; member 2q + 1 has the opposite sign.

        Both members of pair q read row `row_of_pair_Q[q]`: inputs [:-1], targets [1:]; the first `burn_in`
        positions move the state and are not scored. `state_MLD` int8 is read and overwritten; None starts at 0.
        """
        ...

    def scores(self, model: Any, rows_SW: UInt8Array, burn_in: int, state_SLD: Int8Array | None = None) -> Int32Array:
        """Scores (S,) int32 of the unperturbed model, one for each row."""
        ...

    def logits(self, model: Any, tokens_S: UInt8Array, state_SLD: Int8Array, noise: Noise | None = None) -> Int8Array:
        """Logits (S, 256) int8 after one byte; the state is overwritten. With noise, S = 2Q members."""
        ...

    def accumulate(
        self, layout: Layout, noise: Noise, votes_Q: Int8Array, sign_noise: bool, sums_P: Int32Array
    ) -> None:
        """sums_P += Z of these units (specs/egg.md, Votes and update), int32 modulo 2^32."""
        ...

    def apply(self, parameters_P: Int8Array, sums_P: Int32Array, threshold: int) -> int:
        """Move each weight with 16 |Z| >= threshold by one (up if Z > 0, else down), saturating; how many moved.

        `threshold` is K isqrt(units) F, an int64. A weight that saturation holds in place counts as moved.
        """
        ...

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
        """A generation's step: `accumulate` of units 0 .. Q - 1 from their counters, then `apply`; how many moved.

        `parameters_P` changes in place. A backend that fuses the two keeps no sums.
        """
        ...

    def ternary_nonzeros(self, perturbations: Perturbations, first_unit: int, num_units: int) -> NonZeros:
        """The non-zeros of ternary perturbations first_unit .. first_unit + num_units - 1 from counters."""
        ...

    def ternary_step(self, perturbations: Perturbations, votes_U: Int8Array, parameters_P: Int8Array) -> int:
        """Weights := clamp(weights + clamp(sum of vote x perturbation)), clamp to -1 .. 1; how many changed.

        `parameters_P` holds -1, 0 and +1 and changes in place; there is a vote for every perturbation.
        """
        ...

    def digest(self, layout: Layout, parameters_P: Int8Array) -> int:
        """64-bit digest of the parameters (specs/formats.md, Digest)."""
        ...
