"""The experiments of docs/noise-step-experiments.md: noise_step and baselines on three tasks, equal data.

    python -m benchmarks.noise_step tune      settings of EGGROLL, one line of JSON for each that is tried
    python -m benchmarks.noise_step run       each (task, method, seed) that the results lack, one line of JSON each
    python -m benchmarks.noise_step report    tables on standard output, plots into docs/
    python -m benchmarks.noise_step time      seconds a step on this machine, alignments by forward mode

`tune` and `run` can be stopped at any time: what is finished is kept, and the next call goes on with the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import noise_report, noise_tuning
from benchmarks.noise_methods import METHODS, differing_votes, noise_step
from benchmarks.noise_problem import TASKS, open_problem

RESULTS = Path(__file__).parents[1] / "docs" / "noise-step-experiments.jsonl"
TRIALS = RESULTS.with_name("noise-step-tuning.jsonl")
TUNED = ("digits", "text")
CHECKED = (0, 100)
"""Generations whose votes are cast by forward mode, too, with the first seed."""


def load_results(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines()]


def run_one(
    task: str,
    name: str,
    seed: int,
    steps: int,
    every: int,
    checked: tuple[int, ...] = (),
    overrides: Iterable[str] = (),
) -> dict[str, Any]:
    """One run. Losses are means over the `every` steps from each entry's step on."""
    method = METHODS[name]
    problem = open_problem(task, seed, *method.overrides, *overrides)
    losses, nonzeros, held_out, differing = [], [], [], {}
    for step, state in enumerate(method.train(problem, steps)):
        losses.append(state.loss)
        if step % every == 0:
            found = problem.held_out(state.weights_P)
            held_out.append([step, round(found.bits_per_byte, 4), round(found.accuracy or 0.0, 4)])
            nonzeros.append(state.nonzeros)
        if step in checked and state.nonzeros:
            differing[step] = differing_votes(problem, state.weights_P, step, state.nonzeros)
    edges = range(0, steps + 1, every)
    return {
        "task": task,
        "method": name,
        "seed": seed,
        "steps": steps,
        "every": every,
        "weights": problem.layout.size,
        "batch": problem.config.feeding.size,
        "forward_flops": problem.forward_flops,
        "loss": [round(sum(losses[a:b]) / every, 4) for a, b in pairwise(edges)],
        "nonzeros": nonzeros[:-1],
        "held_out": held_out,
        "differing_votes": differing,
    }


def pending(results: list[dict[str, Any]], arguments: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    done = {(r["task"], r["method"], r["seed"]) for r in results if r["steps"] == arguments.steps}
    for seed in range(arguments.seeds):
        for task in arguments.tasks:
            for name in arguments.methods:
                if task in METHODS[name].tasks and (task, name, seed) not in done:
                    yield task, name, seed


def run(arguments: argparse.Namespace) -> None:
    for task, name, seed in pending(load_results(arguments.results), arguments):
        began = time.perf_counter()
        checked = CHECKED if seed == 0 else ()
        result = run_one(task, name, seed, arguments.steps, arguments.every, checked)
        with arguments.results.open("a") as file:
            file.write(json.dumps(result, separators=(",", ":")) + "\n")
        step, bits, accuracy = result["held_out"][-1]
        seconds = time.perf_counter() - began
        print(f"{task} {name} seed {seed}: {step} steps, {bits} bits, {accuracy} right, {seconds:.0f} s", flush=True)


def measure(arguments: argparse.Namespace) -> None:
    """Seconds a step, the least of some; noise_step judges by forward mode, as the service does.

    What lies between the first two states is left out, as something is set up there, and between the last two, where
    nothing is judged. All on one thread, so that the seconds of the CPU say what a step takes also on a busy machine.
    """
    print(f"{noise_report.machine()}, load {os.getloadavg()[0]:.1f}\n")
    print("| task | method | seconds of the clock | of the CPU |\n|---|---|---|---|")
    for task in arguments.tasks:
        for name in arguments.methods:
            method = METHODS[name]
            problem = open_problem(task, 0, *method.overrides)
            steps = 6
            states = noise_step(problem, steps, True) if method.train is noise_step else method.train(problem, steps)
            times = [(time.perf_counter(), time.process_time()) for _ in states]
            least = [min(b - a for a, b in list(pairwise(clock))[1:-1]) for clock in zip(*times, strict=True)]
            print(f"| {task} | {method.label} | {least[0]:.3f} | {least[1]:.3f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["tune", "run", "report", "time"])
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=10, help="steps between evaluations; divides --steps")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "report":
        noise_report.report(load_results(arguments.results), arguments.results.parent)
        noise_tuning.table(TRIALS, [task for task in arguments.tasks if task in TUNED], arguments.steps)
    elif arguments.command == "tune":
        noise_tuning.tune(TRIALS, [task for task in arguments.tasks if task in TUNED], arguments.steps)
    else:
        {"run": run, "time": measure}[arguments.command](arguments)


if __name__ == "__main__":
    main()
