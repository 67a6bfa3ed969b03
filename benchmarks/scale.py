"""How far the service scales: a discrete-event simulation around the real coordinator (`scale_world`).

Everything that the head computes is what it computes in a run, charged by the CPU seconds it takes on this machine; the
GPUs and the network are predictions and assumptions, printed first. The bottleneck is the part whose absence would
shorten a generation most.

    python -m benchmarks.scale                 # 1 to 10,000 workers, N = 2^18 to 2^24
    python -m benchmarks.scale --goal          # the shortest generations at 90 % with 1,024 workers
    python -m benchmarks.scale --bites         # from how many workers on each part costs more than a tenth
    python -m benchmarks.scale --quick         # fewer sizes, with any of them
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from functools import cache
from math import inf, sqrt
from pathlib import Path
from typing import Any

from benchmarks.scale_costs import Costs, fsync_seconds, ray_seconds, step_seconds
from benchmarks.scale_world import Outcome, simulate
from es_service.config import RunConfig, load
from es_service.problem import plan_of

GOAL = 0.9
GOAL_WORKERS = 1024
_LONGEST_TEXT = 65_536
MOST_GENERATIONS = 40
"""Enough that audits are as many as usual."""
_MEMORY = "/dev/shm"
BITE = 0.1
"""Share of a generation that a part must cost to bite."""
MOST_WORKERS = 10_000
FREE: dict[str, dict[str, float]] = {
    "head's Python": {"head_cpu": 0.0},
    "Ray calls": {"ray_call": 0.0, "wait_ref": 0.0, "relayed": 0.0},
    "head's link": {"link": inf},
    "fsync": {"fsync": 0.0},
    "latency": {"latency": 0.0, "fetch": 0.0, "relay": 0.0, "window": 0.0},
    "updates": {"update": 0.0, "step": 0.0},
    "uneven leases": {"jitter": 0.0},
    "work beside the forward pass": {"host": 0.0},
    "audits": {"audit_share": 0.0},
}
"""What `without` makes free, one at a time: costs, or a setting of the deployment."""


def config_of(workers: int, population: int, text: int, generations: int, **deployment: Any) -> RunConfig:
    """EGG at D = 256, L = 6 on GPUs; each member reads one segment of `text` bytes."""
    config = load("egg-minipile", [f"population={population}", f"segment.bytes={text}"])
    worker = config.deployment.worker.model_copy(update={"num_gpus": 1.0})
    return config.with_deployment(workers=workers, worker=worker, generations=generations, detach=True, **deployment)


def run(workers: int, population: int, text: int, costs: Costs, seed: int = 1, **deployment: Any) -> Outcome:
    """One simulated run; `deployment` changes fields of it."""
    config = config_of(workers, population, text, 3, **deployment)
    generations = 4 + min(MOST_GENERATIONS, 5_000 // len(plan_of(config)))
    gc.collect()
    gc.disable()  # the simulator's garbage is not the head's
    try:
        memory = _MEMORY if os.access(_MEMORY, os.W_OK) else None  # the disk's time is charged, not waited for
        with tempfile.TemporaryDirectory(prefix="scale", dir=memory) as directory:
            return simulate(config.with_deployment(generations=generations), costs, Path(directory), seed)
    finally:
        gc.enable()


def without(name: str, outcome: Outcome, costs: Costs, seed: int = 1) -> float:
    """The share of a generation that a part costs: by so much it would be shorter if that were free."""
    free = dict(FREE[name])
    deployment = {key: free.pop(key) for key in ("audit_share",) if key in free}
    sizes = (outcome.workers, outcome.population, outcome.text)
    return 1 - run(*sizes, replace(costs, **free), seed, **deployment).seconds / outcome.seconds


def bottleneck(outcome: Outcome, costs: Costs, seed: int = 1) -> tuple[str, float]:
    """(what costs most of a generation, which share of it)."""
    shares = {name: without(name, outcome, costs, seed) for name in FREE}
    name = max(shares, key=lambda key: shares[key])
    return name, shares[name]


def fewest(bites: Callable[[int], bool], most: int = MOST_WORKERS) -> int | None:
    """The fewest workers at which it bites, to two fifths: steps of four until it does, then halves. None: nowhere."""
    low, high = 0, 1
    while not bites(high):
        if high == most:
            return None
        low, high = high, min(4 * high, most)
    while high > max(1.42 * low, low + 1):
        middle = round(sqrt(max(low, 1) * high)) if high > 2 * low + 1 else (low + high) // 2
        low, high = (low, middle) if bites(middle) else (middle, high)
    return high


def bite_sizes(population: int, text: int, costs: Costs, most: int = MOST_WORKERS) -> dict[str, int | None]:
    """From how many workers on each part costs more than `BITE` of a generation; first, less than `GOAL` evaluates."""
    base = cache(lambda workers: run(workers, population, text, costs))
    sizes = {f"less than {GOAL:.0%} evaluating": fewest(lambda workers: base(workers).efficiency < GOAL, most)}
    for name in FREE:

        def costly(workers: int, name: str = name) -> bool:
            return without(name, base(workers), costs) > BITE

        sizes[name] = fewest(costly, most)
    return sizes


def shortest(population: int, costs: Costs, workers: int = GOAL_WORKERS, **deployment: Any) -> Outcome:
    """The run with the shortest text, so the shortest generation, that reaches the goal; else with the longest text."""
    text = 64
    while True:
        outcome = run(workers, population, text, costs, **deployment)
        if outcome.efficiency >= GOAL or text == _LONGEST_TEXT:
            return outcome
        lost = outcome.seconds * (1 - outcome.efficiency)
        wanted = GOAL / (1 - GOAL) * lost / (outcome.seconds * outcome.efficiency / text)
        text = min(max(text + 1, int(1.01 * wanted)), 10 * text, _LONGEST_TEXT)


def row(outcomes: list[Outcome], note: str = "") -> str:
    """One line: the means over runs with other seeds, and the spread of the first two columns of results."""
    o = Outcome(*(statistics.fmean(getattr(one, field.name) for one in outcomes) for field in fields(Outcome)))
    spread = [statistics.pstdev(getattr(one, name) for one in outcomes) for name in ("seconds", "efficiency")]
    return (
        f"| {o.workers:,.0f} | {o.population:,.0f} | {o.text:,.0f} | {o.leases:,.0f} | "
        f"{o.seconds:.3f} ± {spread[0]:.3f} | {o.efficiency:.1%} ± {spread[1]:.1%} | "
        f"{o.rate:.1%} | {o.results:,.0f} | {o.down / 1e6:,.1f} | {o.up / 1e6:,.2f} | {o.head_busy:.1%} | {note} |"
    )


HEADER = (
    "| workers | population | bytes | leases | seconds | evaluating | of full rate | results/s | MB/s down | MB/s up | "
    "head busy | bottleneck |\n|---|---|---|---|---|---|---|---|---|---|---|---|"
)


def measured(arguments: argparse.Namespace) -> Costs:
    """The costs, with those parts measured here that can be."""
    costs = Costs()
    if arguments.ray:
        costs = replace(costs, **ray_seconds())
    with tempfile.TemporaryDirectory(prefix="scale", dir=arguments.disk) as directory:
        costs = replace(costs, step=step_seconds(config_of(1, 1 << 20, 100, 2)))
        costs = replace(costs, fsync=fsync_seconds(config_of(1, 1 << 20, 100, 2), Path(directory)))
    print(f"machine: {platform.machine()}, {os.cpu_count()} cores, {_cpu()}")
    print("costs: " + ", ".join(f"{key} {value:.6g}" for key, value in asdict(costs).items()), flush=True)
    return costs


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def sizes(quick: bool) -> Iterator[tuple[int, int]]:
    """(workers, population) of the sweep."""
    for workers in (1, 64, 1024) if quick else (1, 8, 64, 256, 1024, 4096, 10_000):
        for population in populations(quick):
            yield workers, population


def populations(quick: bool) -> list[int]:
    """The sizes N that are simulated."""
    return [1 << bits for bits in ((18, 24) if quick else (18, 20, 22, 24))]


def sweep(arguments: argparse.Namespace, costs: Costs) -> None:
    """Print the tables of all sizes."""
    print(HEADER)
    for workers, population in sizes(arguments.quick):
        seeds = range(1, arguments.seeds + 1)
        outcomes = [run(workers, population, arguments.text, costs, seed) for seed in seeds]
        reached = statistics.fmean(outcome.efficiency for outcome in outcomes) >= GOAL
        note = "" if reached else "{} ({:.0%})".format(*bottleneck(outcomes[0], costs))
        print(row(outcomes, note), flush=True)


def goal(arguments: argparse.Namespace, costs: Costs) -> None:
    """Print the shortest generations that reach the goal."""
    print(HEADER)
    for population in populations(arguments.quick):
        first = shortest(population, costs)
        seeds = range(2, arguments.seeds + 1)
        outcomes = [first, *(run(GOAL_WORKERS, population, first.text, costs, seed) for seed in seeds)]
        print(row(outcomes, "{} ({:.1%})".format(*bottleneck(first, costs))), flush=True)


def bites(arguments: argparse.Namespace, costs: Costs) -> None:
    """Print from how many workers on each part bites."""
    columns, most = {}, GOAL_WORKERS if arguments.quick else MOST_WORKERS
    for population in populations(arguments.quick):
        columns[f"N = {population:,}"] = bite_sizes(population, arguments.text, costs, most)
    print("| workers from which on | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name in next(iter(columns.values())):
        cells = [column[name] for column in columns.values()]
        print(f"| {name} | " + " | ".join("-" if cell is None else f"{cell:,}" for cell in cells) + " |")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--goal", action="store_true", help="only the shortest generations that reach the goal")
    parser.add_argument("--bites", action="store_true", help="only from how many workers on each part bites")
    parser.add_argument("--ray", action="store_true", help="measure Ray's calls on a Ray started for it")
    parser.add_argument("--text", type=int, default=1000, help="bytes that a member reads in a generation")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each size, with other audits and lease times")
    parser.add_argument("--disk", type=Path, help="directory whose disk is measured")
    arguments = parser.parse_args(argv)
    table = goal if arguments.goal else bites if arguments.bites else sweep
    table(arguments, measured(arguments))


if __name__ == "__main__":
    main()
