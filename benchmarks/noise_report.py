"""Tables and plots of the noise_step experiments, from the lines that benchmarks/noise_step.py has written."""

from __future__ import annotations

import os
import platform
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.noise_methods import METHODS, S

__all__ = ["machine", "report"]

NAMES = {
    "digits": "scikit-learn digits 8x8, not MNIST",
    "text": "ternary byte-level language model, Python's sources",
    "headers": "ternary byte-level language model, PyTorch's C++ headers",
}
TARGETS = {"digits": ("accuracy", 0.9), "text": ("bits", 4.5), "headers": ("bits", 5.3)}
"""The level of held-out accuracy, or of bits a byte, at which costs are compared."""
_LINES = (
    ("#d55e00", "-"), ("#e69f00", "-"), ("#0072b2", "-"), ("#56b4e9", "--"), ("#56b4e9", ":"), ("#882255", "--"),
    ("#882255", "-"), ("#999999", "-"), ("#000000", "-"), ("#009e73", "-"), ("#cc79a7", "--"), ("#cc79a7", "-"),
)  # fmt: skip
LINES = dict(zip(METHODS, _LINES, strict=True))
"""Colour and style of each method."""

COMPARED = [(other, "automatic") for other in ("published", "staged", "constant-4", "constant-1")]
COMPARED += [("constant-4", "columns-4")]
DIFFERENCES = (
    "| task | method | against | last held-out bits | mean held-out bits | training loss, last 100 steps, nats |\n"
    "|---|---|---|---|---|---|"
)

Results = list[dict[str, Any]]


def machine() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    import torch

    return f"{model}, {len(os.sched_getaffinity(0))} cores, PyTorch {torch.__version__}, one thread"


def _grouped(results: Results) -> dict[str, dict[str, Results]]:
    """By task and method: runs, in the order of the experiments."""
    found: dict[str, dict[str, Results]] = {task: defaultdict(list) for task in NAMES}
    for result in sorted(results, key=lambda r: (list(METHODS).index(r["method"]), r["seed"])):
        found[result["task"]][result["method"]].append(result)
    return found


def _mean(values: Any, digits: int) -> str:
    """Mean and its standard error."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return f"{values.mean():.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1) / len(values) ** 0.5:.{digits}f}"


def _flops(run: dict[str, Any]) -> float:
    return METHODS[run["method"]].forwards * run["forward_flops"]


def _first_step(run: dict[str, Any], task: str) -> float:
    """The first evaluation from which two in a row are at the level, or infinity."""
    kind, level = TARGETS[task]
    good = [right >= level if kind == "accuracy" else bits <= level for _, bits, right in run["held_out"]]
    steps = [row[0] for row in run["held_out"]]
    return next((step for step, a, b in zip(steps, good, good[1:], strict=False) if a and b), float("inf"))


def _reach(runs: Results, task: str) -> str:
    steps = [_first_step(run, task) for run in runs]
    if np.isinf(steps).all():
        return "never | -"
    missed = f" ({int(np.isinf(steps).sum())} never)" if np.isinf(steps).any() else ""
    mean = float(np.mean([step for step in steps if step < np.inf]))
    return f"{mean:.0f}{missed} | {mean * _flops(runs[0]):.1e}"


def _table(task: str, methods: dict[str, Results]) -> None:
    kind, level = TARGETS[task]
    goal = f"{level:.0%} right" if kind == "accuracy" else f"{level} bits"
    first = next(iter(methods.values()))[0]
    print(f"\n### {NAMES[task]}\n")
    print(f"P = {first['weights']:,} weights, batch {first['batch']:,}, F = {first['forward_flops']:.3g} operations.\n")
    print(
        f"| method | seeds | held-out bits | held-out right | mean held-out bits of the run | steps to {goal} | "
        "operations to there | F a step | bits sent a step |\n|---|---|---|---|---|---|---|---|---|"
    )
    for name, runs in methods.items():
        last = np.array([run["held_out"][-1] for run in runs])
        mean = [_whole(run) for run in runs]
        method = METHODS[name]
        print(
            f"| {method.label} | {len(runs)} | {_mean(last[:, 1], 3)} | {_mean(last[:, 2], 3)} | {_mean(mean, 3)} | "
            f"{_reach(runs, task)} | {method.forwards} | {method.sent(first['weights']):,.0f} |"
        )


def _differences(task: str, methods: dict[str, Results]) -> None:
    """Rows of how one method differs from another seed by seed: the batches of a seed are the same."""
    for other, name in COMPARED:
        if not (methods.get(name) and methods.get(other)):
            continue
        pairs = list(zip(methods[other], methods[name], strict=False))
        gaps = [_mean([pick(a) - pick(b) for a, b in pairs], 3) for pick in (_last, _whole, _trained)]
        print(f"| {task} | {METHODS[name].label} | {METHODS[other].label} | {' | '.join(gaps)} |")


def _last(run: dict[str, Any]) -> float:
    return float(run["held_out"][-1][1])


def _whole(run: dict[str, Any]) -> float:
    return float(np.mean([bits for _, bits, _ in run["held_out"][1:]]))


def _trained(run: dict[str, Any]) -> float:
    return float(np.mean(run["loss"][-10:]))


def _checks(results: Results) -> None:
    counted = [count for run in results for count in run["differing_votes"].values()]
    if counted:
        print(f"\nVotes that forward mode casts otherwise: {sum(counted)} of {S * len(counted):,}.")


def report(results: Results, folder: Path) -> None:
    grouped = _grouped(results)
    for task, methods in grouped.items():
        if methods:
            _table(task, methods)
            _draw(task, methods, folder / f"noise-step-{task}.png")
    print(f"\n{DIFFERENCES}")
    for task, methods in grouped.items():
        _differences(task, methods)
    _checks(results)


def _draw(task: str, methods: dict[str, Results], out: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 11), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(3, 2)
    for name, runs in methods.items():
        _curves(axes, name, runs)
    for axis, across, label, log in (
        (axes[0, 0], "steps", "held-out accuracy", False),
        (axes[0, 1], "floating-point operations", "held-out accuracy", False),
        (axes[1, 0], "steps", "held-out bits", task == "digits"),
        (axes[1, 1], "floating-point operations", "held-out bits", task == "digits"),
        (axes[2, 0], "steps", "training loss, nats", task == "digits"),
        (axes[2, 1], "steps", "non-zeros k of a perturbation", True),
    ):
        axis.set(xlabel=across, ylabel=label, xscale="linear" if across == "steps" else "log")
        axis.set_yscale("log" if log else "linear")
        axis.grid(alpha=0.25)
    if task == "digits":
        axes[2, 0].set_ylim(bottom=1e-3)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=9)
    seeds = sorted({len(runs) for runs in methods.values()})
    figure.suptitle(f"{NAMES[task]}: mean and standard error of {' or '.join(map(str, seeds))} seeds")
    figure.savefig(out)


def _curves(axes: Any, name: str, runs: Results) -> None:
    flops = _flops(runs[0])
    line = dict(zip(("color", "ls"), LINES[name], strict=True))
    curves = np.array([run["held_out"] for run in runs])
    steps = curves[0, :, 0]
    for row, column in ((0, 2), (1, 1)):
        _band(axes[row, 0], steps, curves[:, :, column], line, METHODS[name].label)
        _band(axes[row, 1], steps[1:] * flops, curves[:, 1:, column], line)
    _band(axes[2, 0], steps[:-1], np.array([run["loss"] for run in runs]), line)
    if runs[0]["nonzeros"][0]:
        counts = np.exp(np.log(np.array([run["nonzeros"] for run in runs])).mean(axis=0))
        axes[2, 1].step(steps[:-1], counts, where="post", lw=1.6, **line)


def _band(axis: Any, x: Any, values_RX: Any, line: dict[str, str], label: str | None = None) -> None:
    """Mean and standard error over the runs."""
    mean, runs = values_RX.mean(axis=0), len(values_RX)
    error = values_RX.std(axis=0, ddof=1) / runs**0.5 if runs > 1 else np.zeros(len(mean))
    axis.plot(x, mean, lw=1.6, label=label, **line)
    axis.fill_between(x, mean - error, mean + error, color=line["color"], alpha=0.2, lw=0)
