"""The CUDA kernels on this machine's GPU: right first, then how fast, as shares of what this GPU can do.

Golden vectors; random shapes against the fastest other backend here; compute-sanitizer where it is installed; then
bytes/s of a generation's forward pass, alone and with the update, beside the int8 peak and the memory bandwidth
measured in the same run (a large product and a large copy through torch). Needs NumPy, CuPy and torch; no Ray, no
network. A first wrong result ends the run. What its time is too short for is named and left out.

    python -m benchmarks.gpu [--quick] [--json gpu.json]
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from es_service.errors import BackendError
from es_service.models import egg
from es_service.types import EggShape, NoiseAddress
from workers.ops.base import AbstractOps
from workers.ops.cuda import CudaOps, _launch
from workers.ops.cuda._ops import AbstractDeviceOps
from workers.ops.reference import ReferenceOps

__all__ = ["Row", "check_goldens", "check_shapes", "main", "measure"]

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
LAYERS = 6
MEMBERS, WIDTHS = (4_096, 32_768, 262_144), (256, 512, 1024)
MEMBERS_PER_ROW = 64

# width, layers, rank, pairs: every tile, K that is padded, divisors that are no power of two, ragged ends.
SHAPES = [
    (16, 1, 1, 3),
    (48, 2, 4, 7),
    (80, 1, 2, 33),
    (144, 2, 1, 70),
    (256, 2, 1, 300),
    (512, 1, 1, 40),
    (1024, 1, 1, 9),
]
SANITIZED = SHAPES[:4]

SECONDS, QUICK_SECONDS = 420.0, 90.0
"""Time in which work is begun; what is under way then ends within seconds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement; bytes are bytes of text times members."""

    members: int
    width: int
    layers: int
    tile: int
    steps: int
    seconds: float
    update_seconds: float
    bytes_per_second: float
    bytes_per_second_with_update: float
    share_of_int8_peak: float | None
    share_of_memory_bandwidth: float | None


@dataclass(frozen=True, slots=True)
class Peaks:
    """What torch reaches here: int8 operations (2 for a multiply-add) and bytes read plus written, a second."""

    int8_operations: float
    memory_bytes: float


class Budget:
    """Time that is left."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; 0 when there are none."""
        return max(0.0, self._end - time.monotonic())


# ---- right -------------------------------------------------------------------------------------------------------


def check_goldens(ops: AbstractOps) -> int:
    """Compare with every recorded file; how many there are."""
    from workers import golden

    files = sorted(GOLDEN.glob("*.npz"))
    for path in files:
        difference = golden.compare(golden.read(path), ops)
        if difference:
            raise SystemExit(f"benchmarks.gpu: {path.name}: {difference}")
    return len(files)


def other_backend() -> AbstractOps:
    """The native kernels where they were built, otherwise the reference."""
    try:
        from workers.ops.native import NativeOps
    except ImportError:
        return ReferenceOps()
    return NativeOps(threads=8)


def check_shapes(ops: AbstractOps, other: AbstractOps, shapes: list[tuple[int, int, int, int]]) -> int:
    """Compare every operation on random models; how many shapes."""
    for shape in shapes:
        for what, expected, got in zip(
            ("scores", "state", "sums", "weights", "updated", "digest"),
            _run(other, shape),
            _run(ops, shape),
            strict=True,
        ):
            if not np.array_equal(expected, got):
                raise SystemExit(
                    f"benchmarks.gpu: width, layers, rank, pairs = {shape}: {what} differ from {other.name}"
                )
    return len(shapes)


def _run(ops: AbstractOps, shape: tuple[int, int, int, int]) -> Iterator[Any]:
    width, layers, rank, pairs = shape
    rng = np.random.default_rng(shape)
    layout, address = egg.layout(width, layers), NoiseAddress(int(rng.integers(1 << 62)), int(rng.integers(1 << 31)))
    parameters_P = rng.integers(-127, 128, layout.size, dtype=np.int8)
    rows, row_of_pair = rng.integers(0, 256, (5, 6), dtype=np.uint8), rng.integers(0, 5, pairs).astype(np.int32)
    state, sums_P = np.zeros((2 * pairs, layers, width), np.int8), np.zeros(layout.size, np.int32)
    noise = ops.noise(layout, rank, address, 11, pairs)
    yield ops.member_scores(ops.prepare(EggShape(width, layers, 4), parameters_P), noise, rows, row_of_pair, 1, state)
    yield state
    ops.accumulate(layout, noise, rng.integers(-1, 2, pairs).astype(np.int8), False, sums_P)
    yield sums_P
    ops.apply(parameters_P, sums_P, 13 * isqrt(pairs) * 256)
    yield parameters_P
    ops.update(layout, rank, address, rng.integers(-1, 2, pairs).astype(np.int8), True, isqrt(pairs), parameters_P)
    yield parameters_P
    yield ops.digest(layout, parameters_P)


def sanitize(tools: tuple[str, ...], budget: Budget) -> list[str]:
    """One line a tool of compute-sanitizer, a third of the time left for each; an error that it finds ends the run."""
    program = shutil.which("compute-sanitizer")
    if program is None:
        return ["compute-sanitizer: not installed"]
    lines = []
    for tool in tools:
        command = [
            program,
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-m",
            "benchmarks.gpu",
            "--equality-only",
        ]
        seconds = budget.left() / 3
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds)
        except subprocess.TimeoutExpired:
            lines.append(f"compute-sanitizer {tool}: no verdict within {seconds:.0f} s")
            continue
        if done.returncode:
            raise SystemExit(f"benchmarks.gpu: compute-sanitizer {tool}:\n{(done.stdout + done.stderr)[-3000:]}")
        lines.append(f"compute-sanitizer {tool}: no errors")
    return lines


# ---- fast --------------------------------------------------------------------------------------------------------


def peaks() -> Peaks | None:
    """Medians of ten runs, between events; None without torch."""
    try:
        import torch
    except ImportError:
        return None

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(13):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            work()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end) / 1000)
        return float(median(times[3:]))  # the first three warm up

    size = 8192
    left = torch.randint(-127, 128, (size, size), dtype=torch.int8, device="cuda")
    right = torch.randint(-127, 128, (size, size), dtype=torch.int8, device="cuda").t()
    source = torch.randint(0, 256, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    product = seconds(lambda: torch._int_mm(left, right))
    return Peaks(2 * size**3 / product, 2 * source.numel() / seconds(lambda: target.copy_(source)))


def operations(width: int) -> int:
    """int8 operations of a byte and member: two for each weight outside the embedding."""
    return 2 * (LAYERS * 12 * width * width + 256 * width)


def memory_bytes(width: int) -> int:
    """Bytes a byte and member must move: half a pair's factors, its own vectors, its states in and out."""
    factors, vectors = egg.layout(width, LAYERS).noise_sizes(1)
    return factors // 2 + vectors + 2 * LAYERS * width


def measure(
    ops: AbstractDeviceOps,
    members: int,
    width: int,
    repeats: int,
    peak: Peaks | None,
    budget: Budget,
    work: float = 2e7,
) -> Row:
    """One generation of `members`: seconds of its forward pass and of its update, medians of at most `repeats`."""
    shape, layout, address = EggShape(width, LAYERS, 4), egg.layout(width, LAYERS), NoiseAddress(42, 0)
    steps = int(max(4, min(100, work * (256 / width) ** 2 / members)))
    rng = np.random.default_rng(members)
    rows = rng.integers(1, 256, (max(1, members // MEMBERS_PER_ROW), steps + 1), dtype=np.uint8)
    row_of_pair = (np.arange(members // 2) * 2 // MEMBERS_PER_ROW % len(rows)).astype(np.int32)
    parameters_P = egg.initial_parameters(layout, 42)
    forward, update = [], []
    for repeat in range(repeats + 1):
        began = time.perf_counter()
        noise = ops.noise(layout, 1, address, 0, members // 2)
        scores_M = ops.member_scores(ops.prepare(shape, parameters_P), noise, rows, row_of_pair, 0)
        scored = time.perf_counter()
        votes_Q = np.sign(scores_M[0::2] - scores_M[1::2]).astype(np.int8)
        ops.update(layout, 1, address, votes_Q, False, 0, parameters_P.copy())
        if repeat:  # the first one warms up
            forward.append(scored - began)
            update.append(time.perf_counter() - scored)
            if not budget.left():
                break
    seconds, text = median(forward), members * steps
    speed = text / seconds
    return Row(
        members,
        width,
        LAYERS,
        _launch.choose_tile(ops.device, shape, 1, min(members, 2 * ops.wave_pairs(shape, 1))),
        steps,
        seconds,
        median(update),
        speed,
        text * 100 / steps / (seconds * 100 / steps + median(update)),
        speed * operations(width) / peak.int8_operations if peak else None,
        speed * memory_bytes(width) / peak.memory_bytes if peak else None,
    )


def table(rows: list[Row]) -> str:
    """The measurements as text; the update is counted once for every 100 bytes."""
    lines = ["members  width  tile  M bytes/s  with update  of int8 peak  of memory bandwidth"]
    for row in rows:
        shares = [
            f"{100 * s:.1f} %" if s is not None else "-"
            for s in (row.share_of_int8_peak, row.share_of_memory_bandwidth)
        ]
        speeds = f"{row.bytes_per_second / 1e6:9.2f}  {row.bytes_per_second_with_update / 1e6:11.2f}"
        lines.append(f"{row.members:7d}  {row.width:5d}  {row.tile:4d}  {speeds}  {shares[0]:>12}  {shares[1]:>19}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two minutes: width 256, one tool of compute-sanitizer")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    parser.add_argument(
        "--equality-only", action="store_true", help="only small random shapes: what compute-sanitizer runs"
    )
    options = parser.parse_args(arguments)
    budget = Budget(QUICK_SECONDS if options.quick else SECONDS)
    try:
        ops = CudaOps()
    except BackendError as error:
        raise SystemExit(f"benchmarks.gpu: {error}") from error
    if options.equality_only:
        check_shapes(ops, ReferenceOps(), SANITIZED)
        return
    print(f"golden files: {check_goldens(ops)} exact")
    other = other_backend()
    print(f"random shapes: {check_shapes(ops, other, SHAPES)} equal to {other.name}")
    for line in sanitize(("memcheck",) if options.quick else ("memcheck", "racecheck", "synccheck"), budget):
        print(line)
    peak = peaks()
    widths, repeats = (WIDTHS[:1], 3) if options.quick else (WIDTHS, 5)
    rows = []
    for width, members in itertools.product(widths, MEMBERS):
        if budget.left():
            rows.append(measure(ops, members, width, repeats, peak, budget))
        else:
            print(f"no time left for {members} members of width {width}")
    print(table(rows))
    if options.json:
        numbers = {"peaks": asdict(peak) if peak else None, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
