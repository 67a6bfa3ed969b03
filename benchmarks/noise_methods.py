"""What the noise_step experiments compare: noise_step by the service's own code, and four baselines.

Every method sees the batches of the same seed in the same order, and is judged by its ternary weights. A method is a
generator: it yields, before each step, the training loss in nats, the ternary weights, and the k of the step.

noise_step takes its alignments from one reverse-mode gradient g: the derivative along a perturbation v is g . v, the
same number as by forward mode but for rounding, at 3 F in place of (1 + S) F. Its operations are counted as (1 + S) F,
as in the service; `differing_votes` counts the votes that forward mode, by the service's task, casts otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.noise_problem import TASKS, Problem, loss, torch_batch
from es_service.algorithms.base import Past
from es_service.algorithms.noise_step import NoiseStep
from es_service.models.ternary_net import Net
from es_service.problem import initial_parameters
from es_service.types import Int8Array, NonZeros
from workers.tasks.ternary import CHUNK, TernaryTask

__all__ = ["EGGROLL", "METHODS", "PAIRS", "Method", "S", "State", "differing_votes", "eggroll"]

_THIRD = 1 / 3


class State(NamedTuple):
    """Before a step: loss of the training batch in nats, ternary weights, k of the step (0 for other methods)."""

    loss: float
    weights_P: Int8Array
    nonzeros: int


class _Gradient:
    """Stands in for the task's `Judge`: the same alignments from one gradient."""

    def __init__(self, net: Net, problem: Problem) -> None:
        self.net, self.problem = net, problem

    def use_one_thread(self) -> None:
        torch.set_num_threads(1)

    def prepare_derivatives(self) -> None:
        pass

    def look_at(self, parameters_P: Int8Array, inputs_BI: Any, targets_B: Any) -> float:
        flat = torch.from_numpy(parameters_P.astype(np.float32)).requires_grad_()
        inputs = torch.from_numpy(inputs_BI.astype(np.int64 if self.net.embedding else np.float32))
        inputs = inputs if self.net.embedding else inputs / self.net.white
        value = loss(torch, self.problem, flat, (inputs, torch.from_numpy(targets_B.astype(np.int64))))
        value.backward()
        self.gradient_P = flat.grad.numpy()
        return float(value.detach())

    def derivatives(self, found: NonZeros) -> np.ndarray:
        unit_N = np.repeat(np.arange(len(found.starts_U1) - 1), np.diff(found.starts_U1))
        sums_U = np.bincount(unit_N, self.gradient_P[found.positions_N] * found.signs_N, CHUNK)
        return -sums_U.astype(np.float32)


def task_of(problem: Problem, forward_mode: bool = False) -> TernaryTask:
    """The service's task, with alignments from a gradient unless `forward_mode`."""
    task = TernaryTask(problem.config, problem.corpus.train, problem.ops)
    if not forward_mode:
        task.judge = _Gradient(problem.net, problem)
    return task


def differing_votes(problem: Problem, weights_P: Int8Array, generation: int, nonzeros: int) -> int:
    """Votes of a generation that differ between forward mode, by the service's task, and the gradient."""
    records = []
    for forward_mode in (False, True):
        task = task_of(problem, forward_mode)
        task.prepare(weights_P)
        algorithm = task.algorithm
        payload = algorithm.encode(task.evaluate(generation, nonzeros, 0, algorithm.units).values)
        records.append(algorithm.votes(algorithm.close([payload])))
    return int((records[0] != records[1]).sum())


def noise_step(problem: Problem, steps: int, forward_mode: bool = False) -> Iterator[State]:
    """Generations as the coordinator makes them, in this process."""
    task = task_of(problem, forward_mode)
    algorithm: NoiseStep = task.algorithm
    weights_P, history = initial_parameters(problem.config), []
    for generation in range(steps):
        nonzeros = algorithm.threshold(generation, history)
        task.prepare(weights_P)
        outcome = task.evaluate(generation, nonzeros, 0, algorithm.units)
        past = Past(algorithm.units, nonzeros, outcome.score_sum, outcome.score_min, outcome.score_max)
        yield State(-past.score_min * np.log(2) / (16 * algorithm.batch), weights_P, nonzeros)
        record = algorithm.close([algorithm.encode(outcome.values)])
        algorithm.update(problem.ops, weights_P, generation, nonzeros, record)
        history.append(past)
    yield State(float("nan"), weights_P, 0)


def _ternary(latents: Any) -> Any:
    """-1 below -1/3, +1 above 1/3, 0 between."""
    return (latents > _THIRD).float() - (latents < -_THIRD).float()


def _int8(latents: Any) -> Int8Array:
    return _ternary(latents.detach()).numpy().astype(np.int8)


def _latents(problem: Problem, spread: bool) -> Any:
    """The ternary weights of generation 0; `spread`: each uniform over the third of [-1, 1] that rounds to it."""
    flat = torch.from_numpy(initial_parameters(problem.config).astype(np.float32))
    if spread:
        uniform = torch.rand(flat.shape, generator=torch.Generator().manual_seed(problem.config.seed))
        flat = (2 * flat + 2 * uniform - 1) / 3
    return flat


def straight_through(
    problem: Problem, steps: int, rate: float, spread: bool, adam: bool, decay: bool
) -> Iterator[State]:
    """Reverse mode at ternarised latents, the gradient passed on to the latents as it is; latents stay in [-1, 1].

    Adam with PyTorch's defaults, or steps of `rate` along the sign of the gradient. `decay`: the rate falls linearly
    to 0 over the steps.
    """
    torch.set_num_threads(1)
    latents = _latents(problem, spread)
    optimizer = torch.optim.Adam([latents], lr=rate) if adam else torch.optim.SGD([latents], lr=rate)
    for step in range(steps):
        weights = _ternary(latents).requires_grad_()
        value = loss(torch, problem, weights, torch_batch(torch, problem, step))
        value.backward()
        yield State(float(value.detach()), _int8(latents), 0)
        optimizer.param_groups[0]["lr"] = rate * (1 - step / steps if decay else 1)
        latents.grad = weights.grad if adam else weights.grad.sign()
        optimizer.step()
        latents.clamp_(-1, 1)
    yield State(float("nan"), _int8(latents), 0)


def eggroll(
    problem: Problem, steps: int, pairs: int, sigma: float, rate: float, scored: bool = False
) -> Iterator[State]:
    """EGGROLL on latents in [-1, 1], which are ternarised after they are perturbed.

    Pair q: a rank-1 matrix a b^T of standard normals for each matrix, normals for each vector; both signs times sigma
    are added to the latents, ternarised, and judged on the batch. Its weight is the difference of losses over the root
    mean square of all pairs' if `scored`, else the sign of it. Latents move by rate / sqrt(pairs) times the sum of
    weight x noise, and are clamped; the rate falls linearly to 0.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(problem.config.seed)
    latents = _latents(problem, spread=True)
    for step in range(steps):
        batch = torch_batch(torch, problem, step)
        with torch.no_grad():
            value = float(loss(torch, problem, _ternary(latents), batch))
        yield State(value, _int8(latents), 0)
        noises = [_low_rank(problem, generator) for _ in range(pairs)]
        ends = [[latents + sign * sigma * noise for sign in (1, -1)] for noise in noises]
        with torch.no_grad():
            losses = torch.tensor([[loss(torch, problem, _ternary(end), batch) for end in both] for both in ends])
        gaps = losses[:, 1] - losses[:, 0]
        weights = gaps / gaps.square().mean().sqrt().clamp(min=1e-12) if scored else gaps.sign()
        step_size = rate * (1 - step / steps) / pairs**0.5
        latents = (latents + step_size * weights @ torch.stack(noises)).clamp(-1, 1)
    yield State(float("nan"), _int8(latents), 0)


def searched_eggroll(problem: Problem, steps: int) -> Iterator[State]:
    """EGGROLL with the settings that `python -m benchmarks.noise_step tune` has found for the task."""
    return eggroll(problem, steps, PAIRS, **EGGROLL[problem.task])


def _low_rank(problem: Problem, generator: Any) -> Any:
    parts = []
    for tensor in problem.layout.tensors:
        draws = [torch.randn(size, generator=generator) for size in tensor.shape]
        parts.append(torch.outer(*draws).view(-1) if len(draws) == 2 else draws[0])
    return torch.cat(parts)


@dataclass(frozen=True)
class Method:
    """A method with its settings. Per step: `forwards` F operations; `sent` bits of all workers' results together."""

    label: str
    train: Any
    overrides: tuple[str, ...] = ()
    forwards: int = 3
    sent: Any = None
    """Function of the number of weights."""
    tasks: tuple[str, ...] = tuple(TASKS)


S, PAIRS = 128, 16
EGGROLL = {
    "digits": {"sigma": 0.03, "rate": 0.1, "scored": False},
    "text": {"sigma": 0.3, "rate": 0.2, "scored": True},
}
"""The best settings of docs/noise-step-tuning.jsonl."""


def _noise(label: str, *overrides: str) -> Method:
    return Method(label, noise_step, tuple(f"algorithm.{text}" for text in overrides), 1 + S, lambda _: 9 * S)


def _ste(label: str, bits: int, **settings: Any) -> Method:
    return Method(label, partial(straight_through, **settings), sent=lambda weights: bits * weights)


def _eggroll(label: str, train: Any) -> Method:
    forwards, sent = 1 + 2 * PAIRS, PAIRS * 8 / 5
    return Method(f"EGGROLL on latents, {label}", train, (), forwards, lambda _: sent, tuple(EGGROLL))


METHODS = {
    "published": _noise(
        "noise_step as published: Bernoulli, 16/4/1 by loss", "support=bernoulli", "density.kind=staged"
    ),
    "staged": _noise("noise_step, exact k, 16/4/1 by loss", "density.kind=staged"),
    "automatic": _noise("noise_step, exact k, automatic density", "density.kind=automatic"),
    "constant-4": _noise("noise_step, exact k, always 4", "density.kind=constant", "density.nonzeros=4"),
    "constant-1": _noise("noise_step, exact k, always 1", "density.kind=constant", "density.nonzeros=1"),
    "columns-4": _noise(
        "noise_step, columns, always 4", "support=columns", "density.kind=constant", "density.nonzeros=4"
    ),
    "columns": _noise(
        "noise_step, columns, automatic density from 4",
        "support=columns",
        "density.kind=automatic",
        "density.nonzeros=4",
        "density.most=4",
    ),
    "ste-adam-weak": _ste("STE-Adam, published start", 32, rate=1e-3, spread=False, adam=True, decay=False),
    "ste-adam": _ste("STE-Adam, tuned", 32, rate=3e-2, spread=True, adam=True, decay=True),
    "signsgd": _ste("SignSGD with STE, tuned", 1, rate=3e-2, spread=True, adam=False, decay=True),
    "eggroll-plain": _eggroll("sigma 0.1, rate 0.05", partial(eggroll, pairs=PAIRS, sigma=0.1, rate=0.05)),
    "eggroll": _eggroll("settings by search", searched_eggroll),
}
