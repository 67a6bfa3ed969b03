"""How far the service scales: a discrete-event simulation around the real coordinator (`scale_world`).

Everything that the head computes is what it computes in a run, charged by the CPU seconds it takes on this machine; the
GPUs and the network are predictions and assumptions, printed first. The bottleneck is the part whose absence would
shorten a generation most.

    python -m benchmarks.scale                 # the tables of docs/scale.md, about 10 minutes
    python -m benchmarks.scale --quick         # under a minute
    python -m benchmarks.scale --goal          # the shortest generations at 90 % with 1,024 workers
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from math import inf
from pathlib import Path
from typing import Any

from benchmarks.scale_costs import Costs, fsync_seconds, ray_seconds, step_seconds
from benchmarks.scale_world import Outcome, simulate
from es_service.config import RunConfig, load

GOAL = 0.9
GOAL_WORKERS = 1024
_LONGEST_TEXT = 65_536
FREE = {
    "head's Python": {"head_cpu": 0.0},
    "Ray calls": {"ray_call": 0.0, "wait_ref": 0.0},
    "head's link": {"link": inf},
    "fsync": {"fsync": 0.0},
    "latency": {"latency": 0.0, "fetch": 0.0},
    "updates": {"update": 0.0, "step": 0.0},
    "uneven leases": {"jitter": 0.0},
    "work beside the forward pass": {"host": 0.0},
}
"""What `bottleneck` makes free, one at a time."""


def config_of(workers: int, population: int, text: int, generations: int, **deployment: Any) -> RunConfig:
    """EGG at D = 256, L = 6 on GPUs; each member reads one segment of `text` bytes."""
    config = load("egg-minipile", [f"population={population}", f"segment.bytes={text}"])
    worker = config.deployment.worker.model_copy(update={"num_gpus": 1.0})
    settings = {"sliced_updates": "auto", **deployment}
    return config.with_deployment(workers=workers, worker=worker, generations=generations, detach=True, **settings)


def run(workers: int, population: int, text: int, costs: Costs, **deployment: Any) -> Outcome:
    """One simulated run; `deployment` changes fields of it."""
    generations = 6 if workers <= GOAL_WORKERS else 4
    gc.collect()
    gc.disable()  # the simulator's garbage is not the head's
    try:
        with tempfile.TemporaryDirectory(prefix="scale") as directory:
            return simulate(config_of(workers, population, text, generations, **deployment), costs, Path(directory))
    finally:
        gc.enable()


def bottleneck(outcome: Outcome, costs: Costs) -> tuple[str, float]:
    """(what would shorten the generation most if it were free, by which share of it)."""
    sizes = (outcome.workers, outcome.population, outcome.text)
    seconds = {name: run(*sizes, replace(costs, **free)).seconds for name, free in FREE.items()}
    name = min(seconds, key=lambda key: seconds[key])
    return name, 1 - seconds[name] / outcome.seconds


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


def row(outcome: Outcome, note: str = "") -> str:
    o = outcome
    return (
        f"| {o.workers:,} | {o.population:,} | {o.text:,} | {o.leases:,} | {o.seconds:.3f} | {o.efficiency:.1%} | "
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
        call, wait = ray_seconds()
        costs = replace(costs, ray_call=call, wait_ref=wait)
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
        for bits in (18, 24) if quick else (18, 20, 22, 24):
            yield workers, 1 << bits


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--goal", action="store_true", help="only the shortest generations that reach the goal")
    parser.add_argument("--ray", action="store_true", help="measure Ray's calls on a Ray started for it")
    parser.add_argument("--text", type=int, default=1000, help="bytes that a member reads in a generation")
    parser.add_argument("--disk", type=Path, help="directory whose disk is measured")
    arguments = parser.parse_args(argv)
    costs = measured(arguments)
    print(HEADER)
    if arguments.goal:
        for bits in range(18, 25, 2) if arguments.quick else range(18, 25):
            outcome = shortest(1 << bits, costs)
            print(row(outcome, "{} ({:.1%})".format(*bottleneck(outcome, costs))), flush=True)
        return
    for workers, population in sizes(arguments.quick):
        outcome = run(workers, population, arguments.text, costs)
        note = "" if outcome.efficiency >= GOAL else "{} ({:.0%})".format(*bottleneck(outcome, costs))
        print(row(outcome, note), flush=True)


if __name__ == "__main__":
    main()
