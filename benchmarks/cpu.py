"""Speed of the CPU kernels on EGG, beside this CPU's measured int8 peak, the NumPy reference, torch and nano-egg.

    python -m benchmarks.cpu [--quick] [--json FILE] [--threads N] [--nano-egg DIR] [--corpus FILE]

Bytes/s count every member: N members that read T bytes are N T bytes. The peak is the throughput of the instruction
set's own dot product on registers, measured in the same run; the percentage is the share of it, over the threads used,
that the matrix products of the forward pass amount to (12 L D^2 + 256 D multiply-adds a byte; noise is overhead).
Each figure is the best of five, as other work on the machine only ever slows a run.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np

from es_service.models import egg
from es_service.types import EggShape, Layout, NoiseAddress, UInt8Array
from workers.ops.native import NativeOps
from workers.ops.reference import ReferenceOps

WIDTHS, DEPTHS, POPULATIONS = (64, 128, 256, 512), (2, 6), (1024, 4096, 16384)
QUICK_SECONDS = 36.0
LEASE_PAIRS = 2048  # noise of one lease is in memory at a time
REPEATS = 5

Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """Sizes of one measurement: width D, depth L, members N, bytes T."""

    width: int
    layers: int
    members: int
    length: int

    @property
    def layout(self) -> Layout:
        """Tensors of the model."""
        return egg.layout(self.width, self.layers)

    @property
    def work(self) -> int:
        """Multiply-adds of one byte of one member."""
        return 12 * self.layers * self.width**2 + egg.VOCABULARY * self.width

    @property
    def bytes(self) -> int:
        """Bytes that all members read together."""
        return self.members * self.length

    def row(self, op: str, ops: NativeOps | None, seconds: float, peak: float | None) -> Row:
        """One line of the report; `peak` in multiply-adds a second of all threads together."""
        share = self.bytes * self.work / seconds / peak if peak else None
        sizes = {"D": self.width, "L": self.layers, "N": self.members, "T": self.length}
        who = {"backend": "native", "isa": ops.isa, "threads": ops.threads} if ops else {"backend": "reference"}
        speed = {"bytes_per_second": self.bytes / seconds, "peak_fraction": share, "seconds": seconds}
        return {"op": op, "isa": None, "threads": None} | who | sizes | speed


def best(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Least seconds of several runs."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def measure_peak(ops: NativeOps) -> float:
    """Multiply-adds a second of one thread, all operands in registers; 0 where there is no instruction to measure."""
    rounds = 1000
    if not ops.peak(rounds):
        return 0.0
    while best(partial(ops.peak, rounds), 1) < 0.05:
        rounds *= 4
    return ops.peak(rounds) / best(partial(ops.peak, rounds), 10)


def corpus_rows(corpus: UInt8Array, rows: int, length: int) -> UInt8Array:
    """(rows, length + 1) consecutive pieces of a corpus, repeated where it is too short."""
    return np.resize(corpus, (rows, length + 1))


class Stopwatch:
    """Adds up the seconds of named parts."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys(("noise", "forward", "update"), 0.0)

    def __call__(self, part: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function on the account of a part."""
        start = time.perf_counter()
        result = function(*arguments)
        self.seconds[part] += time.perf_counter() - start
        return result


def generation(ops: NativeOps, case: Case, corpus: UInt8Array, number: int) -> dict[str, float]:
    """Seconds of the parts of one generation, lease by lease."""
    layout, shape, timed = case.layout, EggShape(case.width, case.layers, 4), Stopwatch()
    parameters, sums = egg.initial_parameters(layout, 0), np.zeros(layout.size, np.int32)
    pairs = case.members // 2
    rows = corpus_rows(corpus, max(1, pairs // 4), case.length)
    model = timed("update", ops.prepare, shape, parameters)
    for first in range(0, pairs, LEASE_PAIRS):
        count = min(LEASE_PAIRS, pairs - first)
        row_of_pair = (np.arange(first, first + count) % len(rows)).astype(np.int32)
        noise = timed("noise", ops.noise, layout, 1, NoiseAddress(0, number), first, count)
        scores = timed("forward", ops.member_scores, model, noise, rows, row_of_pair, 0)
        votes = np.sign(scores[::2] - scores[1::2]).astype(np.int8)
        timed("update", ops.accumulate, layout, noise, votes, False, sums)
    timed("update", ops.apply, parameters, sums, 13 * isqrt(pairs) * 256)  # about generation 100's
    timed("update", ops.digest, layout, parameters)
    return timed.seconds


def native_rows(ops: NativeOps, case: Case, corpus: UInt8Array, peak_of_one: float) -> list[Row]:
    """Forward, forward with update, update and noise of one case."""
    repeats, peak = REPEATS if peak_of_one else 1, peak_of_one * ops.threads  # the baseline is slow: once will do
    runs = [generation(ops, case, corpus, number) for number in range(repeats)]
    parts = {part: min(run[part] for run in runs) for part in runs[0]}
    whole = sum(parts.values())
    seconds = {"forward": parts["forward"], "forward+update": whole, "update": parts["update"], "noise": parts["noise"]}
    rows = [case.row(op, ops, taken, peak if "forward" in op else None) for op, taken in seconds.items()]
    for row in rows:
        row["share_of_generation"] = row["seconds"] / whole
    return rows


def cases(quick: bool, threads: int, peak: float) -> Iterator[Case]:
    """All sizes; in a quick run one population and so few bytes that each case takes about a second."""
    for width in WIDTHS:
        for layers in DEPTHS:
            for members in POPULATIONS[:1] if quick else POPULATIONS:
                one = Case(width, layers, members, 1)
                affordable = int(0.3 * (peak or 6e9) * threads / (one.work * members)) if quick else 100
                yield Case(width, layers, members, max(2, min(100, affordable)))


def reference_row(case: Case, corpus: UInt8Array) -> Row:
    """The NumPy reference on few members; its speed hardly depends on how many there are."""
    small = Case(case.width, case.layers, 64, 2)
    ops, layout = ReferenceOps(), small.layout
    model = ops.prepare(EggShape(small.width, small.layers, 4), egg.initial_parameters(layout, 0))
    noise = ops.noise(layout, 1, NoiseAddress(0, 0), 0, small.members // 2)
    rows, row_of_pair = corpus_rows(corpus, 1, small.length), np.zeros(small.members // 2, np.int32)
    return small.row("forward", None, best(lambda: ops.member_scores(model, noise, rows, row_of_pair, 0), 2), None)


def torch_row(case: Case, threads: int) -> Row | None:
    """`torch._int_mm` on the same matrix products, one call a matrix and nothing else; None without torch."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(threads)
    width, members = case.width, min(case.members, 1024)
    square, wide, long, head = (width, width), (4 * width, width), (width, 4 * width), (egg.VOCABULARY, width)
    shapes = [*[square] * 4, wide, long] * case.layers + [head]
    weights = [torch.randint(-40, 41, shape, dtype=torch.int8).t() for shape in shapes]
    inputs = {size: torch.randint(-40, 41, (members, size), dtype=torch.int8) for size in (width, 4 * width)}

    def one_byte() -> None:
        for weight in weights:
            torch._int_mm(inputs[weight.shape[0]], weight)

    one_byte()
    row = Case(width, case.layers, members, 1).row("forward", None, best(one_byte), None)
    return row | {"backend": f"torch {torch.__version__} _int_mm", "threads": threads}


def nano_egg_row(folder: Path, case: Case, corpus: UInt8Array) -> Row:
    """The public JAX program at `folder` on the same bytes: generation 10 of 11, as it prints it."""
    with tempfile.TemporaryDirectory() as data:
        for split in ("train", "valid", "test"):
            np.save(Path(data) / f"{split}.npy", np.resize(corpus, max(len(corpus), 8 * case.bytes)))
        sizes = {
            "n_embd": case.width, "n_layer": case.layers, "parallel_generations_per_gpu": case.members,
            "tokens_per_update": case.length, "num_epochs": 11, "dir_path": data, "validation_batch_size": 16,
        } | {f"{split}_output_path": f"{split}.npy" for split in ("train", "valid", "test")}  # fmt: skip
        words = [f"--{name}={value}" for name, value in sizes.items()]
        environment = os.environ | {"WANDB_MODE": "disabled", "JAX_PLATFORMS": "cpu"}
        result = subprocess.run(
            [sys.executable, "run.py", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )
    found = re.findall(r"generate time: ([0-9.e-]+); update time: ([0-9.e-]+)", result.stdout)
    if len(found) < 2:
        raise SystemExit(f"{folder}/run.py printed no times (exit {result.returncode}): {result.stderr[-2000:]}")
    return case.row("forward", None, float(found[-1][0]), None) | {"backend": "nano-egg"}


def scaling_rows(case: Case, threads: int, corpus: UInt8Array, peak: float) -> list[Row]:
    """Forward on 1, 2, 4 .. threads."""
    counts = sorted({1, threads} | {1 << k for k in range(threads.bit_length()) if 1 << k <= threads})
    return [native_rows(NativeOps(count), case, corpus, peak)[0] for count in counts]


def show(row: Row, note: str = "") -> None:
    share = f"{row['peak_fraction']:6.1%}" if row["peak_fraction"] is not None else " " * 6
    name = f"{row['backend']} {row['isa'] or ''} {row['threads'] or '-'}"
    sizes = f"D={row['D']:<4} L={row['L']} N={row['N']:<6} T={row['T']:<4}"
    print(f"{row['op']:<15} {name:<22} {sizes} {row['bytes_per_second']:>13,.0f} B/s {share}  {note}", flush=True)


def compare(case: Case, native: Row, arguments: argparse.Namespace, corpus: UInt8Array) -> list[Row]:
    """The peers at one size, each with the ratio of our speed to its."""
    rows = [reference_row(case, corpus)]
    torch = torch_row(case, arguments.threads)
    if torch is None:
        print("torch is not installed: no comparison with torch._int_mm")
    else:
        rows.append(torch)
    if arguments.nano_egg:
        rows.append(nano_egg_row(arguments.nano_egg, Case(case.width, case.layers, 256, 10), corpus))
    for row in rows:
        show(row, f"native is {native['bytes_per_second'] / row['bytes_per_second']:,.1f} times as fast")
    return rows


def run(arguments: argparse.Namespace) -> list[Row]:
    ops, start = NativeOps(arguments.threads), time.perf_counter()
    corpus = np.fromfile(arguments.corpus, np.uint8) if arguments.corpus else random_corpus()
    peak = measure_peak(ops)
    print(f"{machine()}; {ops.isa}, {ops.threads} threads; peak of one thread {peak / 1e9:,.1f} G multiply-adds/s")
    print("op, backend, instruction set, threads, sizes, bytes/s of all members, share of the peak")
    chosen, rows, reported = Case(256, 6, POPULATIONS[0 if arguments.quick else 1], 100), [], None
    for case in cases(arguments.quick, ops.threads, peak):
        if arguments.quick and time.perf_counter() - start > QUICK_SECONDS:
            print("out of time: the remaining sizes are left out")
            break
        for row in native_rows(ops, case, corpus, peak):
            rows.append(row)
            show(row, f"{row['share_of_generation']:.1%} of a generation")
            if row["op"] == "forward" and (case.width, case.layers, case.members) == (256, 6, chosen.members):
                reported, chosen = row, case
    if reported:
        for row in (scaled := scaling_rows(chosen, ops.threads, corpus, peak)):
            show(row, f"{row['bytes_per_second'] / scaled[0]['bytes_per_second']:.2f} times one thread")
        fastest = max(reported, scaled[-1], key=lambda row: float(row["bytes_per_second"]))
        rows += scaled + compare(chosen, fastest, arguments, corpus)
    print(f"{time.perf_counter() - start:.0f} s")
    return rows


def random_corpus() -> UInt8Array:
    """A mebibyte of letters; the kernels' speed does not depend on the text."""
    return np.random.default_rng(0).integers(97, 123, 1 << 20, np.uint8)


def machine() -> str:
    """The CPU's name and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*: (.*)", info.read_text())
        name = found[1] if found else name
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one population, few bytes: within 50 seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--nano-egg", type=Path, metavar="DIR", help="a checkout of the public JAX program, to time beside"
    )
    parser.add_argument("--corpus", type=Path, metavar="FILE", help="bytes to read (default: random letters)")
    arguments = parser.parse_args()
    rows = run(arguments)
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
