"""One function a kernel: sizes, grid and shared memory, then the launch. Shapes are those of `es_service.types`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service import noise as addressing
from es_service.errors import BackendError
from es_service.types import EggShape, Int8Array, Layout, NoiseAddress
from workers.ops.cuda._device import AbstractDevice

__all__ = [
    "TILES",
    "CounterRange",
    "DeviceEgg",
    "Forward",
    "Step",
    "Votes",
    "accumulate",
    "address_key",
    "apply",
    "blocks",
    "choose_tile",
    "digest",
    "fill_noise",
    "forward",
    "in_whole_counters",
    "prepare",
    "shared_bytes",
    "step_to",
    "vectors",
]

TILES = (128, 64, 32, 16)
"""Members of a block of egg_forward_*."""
_TILE_OVERHEAD = 32
"""What a byte costs a block whatever its tile, in members: streaming the weights, barriers. A guess to be measured."""
_FULL_GRID = 1 << 15


@dataclass(frozen=True, slots=True)
class CounterRange:
    """Units of one generation, by their counters."""

    layout: Layout
    rank: int
    address: NoiseAddress
    first: int
    units: int

    def part(self, first: int, units: int) -> CounterRange:
        """`units` of them from the `first`-th on."""
        return CounterRange(self.layout, self.rank, self.address, self.first + first, units)


@dataclass(frozen=True)
class DeviceEgg:
    """A snapshot of the parameters on the device, packed for the tensor cores."""

    shape: EggShape
    parameters: Any
    packed: Any


@dataclass(frozen=True)
class Forward:
    """One launch of the forward pass; see struct Lease in forward.cu. `factors` is None without noise."""

    model: DeviceEgg
    rank: int
    factors: Any
    vectors: Any
    rows: Any
    row_of_pair: Any
    state: Any
    scores: Any
    logits: Any
    members: int
    burn_in: int


@dataclass(frozen=True)
class Votes:
    """Units that voted +1 or -1, and where their noise comes from: counters, or arrays on the device."""

    layout: Layout
    rank: int
    address: NoiseAddress
    first_unit: int
    units: Any
    votes: Any
    sign_noise: bool
    factors: Any = None
    products: Any = None


@dataclass(frozen=True)
class Step:
    """The end of a generation: weights with |Z| >= `least` move by one, and `moved`, (1,) uint64, counts them."""

    parameters: Any
    moved: Any
    least: int


def blocks(work: int, threads: int, limit: int = _FULL_GRID) -> int:
    """Blocks for a grid-stride loop over `work` items."""
    return max(1, min(limit, -(-work // threads)))


def address_key(address: NoiseAddress) -> tuple[int, int, int]:
    """key0, key1, epoch as kernels take them."""
    return address.seed & 0xFFFFFFFF, address.seed >> 32, address.epoch


# ---- noise -------------------------------------------------------------------------------------------------------


def noise_jobs(layout: Layout, rank: int) -> npt.NDArray[np.int64]:
    """(jobs, 4) int64: stream << 24 | tensor, whether a vector, offset, size."""
    stream, jobs = addressing.Stream, []
    for slot in layout.noise_slots(rank):
        index = slot.tensor.index
        if slot.tensor.kind == "vector":
            jobs.append((stream.VECTOR_U << 24 | index, 1, slot.first, slot.tensor.size))
            continue
        out_size, in_size = slot.tensor.shape
        jobs.append((stream.FACTOR_A << 24 | index, 0, slot.first, rank * out_size))
        jobs.append((stream.FACTOR_B << 24 | index, 0, slot.second, rank * in_size))
    return np.array(jobs, np.int64)


def fill_noise(device: AbstractDevice, table: Any, units: CounterRange, factors: Any, products: Any) -> None:
    """Write the noise of all units; `table` is `es_service.noise.TABLE` on the device."""
    jobs = noise_jobs(units.layout, units.rank)
    largest = int(jobs[:, 3].max()) + 15
    device.launch(
        "noise_fill",
        (len(jobs), blocks(units.units * (largest // 16), 256)),
        256,
        device.upload(jobs),
        table,
        factors,
        products,
        *address_key(units.address),
        units.first,
        units.units,
        int(factors.shape[1]),
        int(products.shape[1]),
    )


# ---- forward -----------------------------------------------------------------------------------------------------


def packed_bytes(shape: EggShape) -> int:
    """Bytes of the packed weights; mirrors egg.cuh."""

    def matrix(out_size: int, in_size: int) -> int:
        return -(-out_size // 32) * -(-in_size // 32) * 1024

    width = shape.width
    layer = 4 * matrix(width, width) + matrix(4 * width, width) + matrix(width, 4 * width)
    return shape.layers * layer + matrix(256, width)


def prepare(device: AbstractDevice, shape: EggShape, parameters_P: Int8Array) -> DeviceEgg:
    """Upload and pack."""
    parameters, packed = device.upload(parameters_P), device.empty((packed_bytes(shape),), np.uint8)
    grid = (6 * shape.layers + 1, blocks(4 * shape.width * shape.width // 16, 256, 256))
    device.launch("egg_pack", grid, 0, parameters, packed, shape.width, shape.layers)
    return DeviceEgg(shape, parameters, packed)


def vectors(device: AbstractDevice, model: DeviceEgg, products: Any, pairs: int) -> Any:
    """(2 pairs, V) int8, or (1, V) without noise: every member's vectors, constant over the bytes."""
    shape = model.shape
    size = (4 * shape.layers + 1) * shape.width
    result = device.empty((2 * pairs if products is not None else 1, size), np.int8)
    grid = (-(-size // 256), max(1, min(pairs, 1 << 12)))
    arguments = (model.parameters, products, result, shape.width, shape.layers, 4 + shape.sigma_shift, pairs)
    device.launch("egg_vectors", grid, 0, *arguments)
    return result


def shared_bytes(rows: int, width: int, rank: int) -> int:
    """Shared memory of a tile; mirrors struct Plan in forward.cu, which checks it under emulation."""
    padded = -(-width // 32) * 32
    operand = padded + 16
    plain = padded + 32
    area = max(2 * operand + 2 * plain, 4 * width + 16, 256 + 16)
    return rows * (plain + operand + area + 12 * rank + 12) + 640


def choose_tile(device: AbstractDevice, shape: EggShape, rank: int, members: int) -> int:
    """Members of a block: the tile with the least time, rounds over the multiprocessors x (tile + overhead)."""
    fits = [rows for rows in TILES if shared_bytes(rows, shape.width, rank) <= device.shared_limit]
    if not fits:
        raise BackendError(
            f"width {shape.width} with rank {rank} needs {shared_bytes(TILES[-1], shape.width, rank)} bytes of shared "
            f"memory, this GPU gives {device.shared_limit}"
        )
    return min(fits, key=lambda rows: -(-members // (rows * device.multiprocessors)) * (rows + _TILE_OVERHEAD))


def _divisor(in_size: int) -> tuple[int, int]:
    """16 isqrt(in), and the rounded 2^30 / divisor; 0 where a shift does it."""
    divisor = 16 * isqrt(in_size)
    return divisor, 0 if divisor & (divisor - 1) == 0 else ((1 << 30) + divisor // 2) // divisor


def _scale(shape: EggShape, rank: int, in_size: int) -> int:
    """2^S where the accumulator times 2^S plus the noise stays within int32 and the divisor is a power of two, or 0."""
    dot = in_size * 128 * 128
    scale = 1 << (4 + shape.sigma_shift)
    return scale if _divisor(in_size)[1] == 0 and dot * scale + rank * dot * 128 < 1 << 31 else 0


def forward(device: AbstractDevice, call: Forward, tile: int | None = None) -> None:
    """Run all bytes of all members; state, scores and logits are written."""
    shape = call.model.shape
    for name, array in (("factors", call.factors), ("vectors", call.vectors), ("state", call.state)):
        if array is not None and array.nbytes >= 1 << 32:
            raise BackendError(f"{name}: {array.nbytes} bytes in one launch, the kernels address less than 4 GB")
    row_bytes = int(call.rows.shape[1])
    steps = row_bytes - 1 if call.scores is not None else row_bytes
    rows = tile or choose_tile(device, shape, call.rank, call.members)
    device.launch(
        f"egg_forward_{rows}",
        (min(-(-call.members // rows), device.multiprocessors), 1),
        shared_bytes(rows, shape.width, call.rank),
        call.model.parameters,
        call.model.packed,
        call.vectors,
        call.factors,
        call.rows,
        call.row_of_pair,
        call.state,
        call.scores,
        call.logits,
        shape.width,
        shape.layers,
        call.rank,
        call.members,
        4 + shape.sigma_shift,
        row_bytes,
        steps,
        call.burn_in,
        *_divisor(shape.width),
        *_divisor(4 * shape.width),
        _scale(shape, call.rank, shape.width),
        _scale(shape, call.rank, 4 * shape.width),
        -(-(1 << 32) // shape.width),
        0 if call.factors is None else int(call.factors.shape[1]),
        0 if call.factors is None else int(call.vectors.shape[1]),
    )


# ---- update ------------------------------------------------------------------------------------------------------

_TILE_EDGE, _MATRIX_SHARED, _VECTOR_SHARED = 128, 256 + 2 * 128 * 80, 256 + 4 * 4 * 16


def _vote_tiles(layout: Layout, rank: int) -> Iterator[tuple[int, ...]]:
    for slot in layout.noise_slots(rank):
        if slot.tensor.kind == "matrix":
            out_size, in_size = slot.tensor.shape
            for row in range(0, out_size, _TILE_EDGE):
                for column in range(0, in_size, _TILE_EDGE):
                    place = (slot.tensor.offset, slot.first, slot.second, slot.tensor.index)
                    yield out_size, in_size, *place, row, column


def _vote_blocks(layout: Layout, rank: int) -> Iterator[tuple[int, ...]]:
    for slot in layout.noise_slots(rank):
        if slot.tensor.kind == "vector":
            for element in range(0, slot.tensor.size, 16):
                yield slot.tensor.size, slot.tensor.offset, slot.first, slot.tensor.index, element


def in_whole_counters(layout: Layout) -> bool:
    """Whether rows of 16 factor entries never share a counter, which is what vote_matrix rebuilds them by."""
    return all(size % 16 == 0 for t in layout.tensors if t.kind == "matrix" for size in t.shape)


def accumulate(device: AbstractDevice, table: Any, votes: Votes, sums: Any, step: Step | None) -> None:
    """Add the Z of the units that voted to `sums`; or, with a step, take it on Z + sums (None: 0) and write no sums."""
    active, shared_tail = len(votes.units), (int(votes.sign_noise), *address_key(votes.address), votes.first_unit)
    factors, products = votes.layout.noise_sizes(votes.rank)
    source = (votes.units, votes.votes)
    target = (sums, step.parameters, step.moved, step.least) if step else (sums, None, None, 0)
    tiles = list(_vote_tiles(votes.layout, votes.rank))
    if tiles:
        pointers = (device.upload(np.array(tiles, np.int64)), table, votes.factors, *source, *target)
        numbers = (active, votes.rank, *shared_tail, factors)
        device.launch("vote_matrix", (len(tiles), 1), _MATRIX_SHARED, *pointers, *numbers)
    pieces = list(_vote_blocks(votes.layout, votes.rank))
    if pieces:
        pointers = (device.upload(np.array(pieces, np.int64)), table, votes.products, *source, *target)
        device.launch("vote_vector", (len(pieces), 1), _VECTOR_SHARED, *pointers, active, *shared_tail, products)


def step_to(device: AbstractDevice, parameters: Any, threshold: int) -> Step:
    """The step for 16 |Z| >= threshold; beyond the largest |Z|, 2^31, nothing moves."""
    return Step(parameters, device.zeros((1,), np.uint64), min(-(-threshold // 16), (1 << 32) - 1))


def apply(device: AbstractDevice, step: Step, sums: Any) -> None:
    """Take the step on these sums."""
    size = len(step.parameters)
    grid = (blocks(size, 256, 1 << 12), 1)
    device.launch("apply_step", grid, 0, step.parameters, sums, step.moved, size, step.least)


def digest(device: AbstractDevice, layout: Layout, parameters: Any) -> Any:
    """(1,) uint64 on the device."""
    total = device.zeros((1,), np.uint64)
    tensors = np.array([(t.offset, t.size, t.index) for t in layout.tensors], np.int64)
    grid = (blocks(int(tensors[:, 1].max()) // 8, 256, 64), len(tensors))
    device.launch("digest_words", grid, 0, parameters, device.upload(tensors), total)
    return total
