"""The tasks of the noise_step experiments, with the data, batches, networks and held-out sets of the service."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service.aggregator import HeldOut
from es_service.config import RunConfig, load
from es_service.data import Corpus
from es_service.data.examples import Examples, batch_indices
from es_service.keeper import held_out
from es_service.models.ternary_net import EPSILON, Net
from es_service.problem import examples_of, layout_of, net_of
from es_service.session import held_out_rows, with_corpus
from es_service.types import Int8Array, Layout, Ops
from es_service.wiring import kernels

__all__ = ["TASKS", "Problem", "open_problem"]

_ROWS = ("deployment.evaluation_rows=64", "deployment.evaluation_bytes=128")
TASKS = {
    "digits": ("noise-step-digits", ()),
    "text": ("noise-step-text", ("model.width=128", *_ROWS)),
    "headers": (
        "noise-step-text",
        ("model.width=96", "model.layers=3", "model.context=16", "model.embedding=16", "data.kind=files", *_ROWS),
    ),
}
"""Preset and changes of each task. Nothing was chosen on `headers`: other text, other depth, width and context."""


def _headers() -> str:
    """The C++ headers that PyTorch brings along, as an override."""
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return f"data.paths=['{Path(found.origin).parent / 'include' / 'torch'}']"


@dataclass(frozen=True, eq=False)
class Problem:
    """One task with one seed. `batch` and `held_out` are those of the service."""

    task: str
    config: RunConfig
    corpus: Corpus
    ops: Ops

    @cached_property
    def net(self) -> Net:
        return net_of(self.config)

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.config)

    @cached_property
    def examples(self) -> Examples:
        return examples_of(self.config, self.corpus.train)

    @cached_property
    def rows(self) -> npt.NDArray[np.uint8]:
        return held_out_rows(self.config, self.corpus)

    @property
    def forward_flops(self) -> int:
        """F: operations of one forward pass over a batch."""
        return self.net.flops() * self.config.feeding.size

    def batch(self, generation: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
        """Inputs and targets of a generation, as its workers take them."""
        size = self.config.feeding.size
        return self.examples.take(batch_indices(self.config.seed, generation, size, len(self.examples)))

    def held_out(self, parameters_P: Int8Array) -> HeldOut:
        return held_out(self.config, self.ops, parameters_P, self.rows)


def open_problem(task: str, seed: int, *overrides: str) -> Problem:
    preset, changes = TASKS[task]
    if task == "headers":
        changes = (*changes, _headers(), "data.patterns=['**/*.h']")
    config, corpus = with_corpus(load(preset, [*changes, f"seed={seed}", *overrides]))
    return Problem(task, config, corpus, kernels("auto", 1)[0])


def torch_batch(torch: Any, problem: Problem, generation: int) -> tuple[Any, Any]:
    """The same batch as tensors."""
    inputs_BI, targets_B = problem.batch(generation)
    inputs = torch.from_numpy(inputs_BI.astype(np.int64 if problem.net.embedding else np.float32))
    return (inputs if problem.net.embedding else inputs / problem.net.white), torch.from_numpy(targets_B.astype("i8"))


def loss(torch: Any, problem: Problem, flat: Any, batch: tuple[Any, Any]) -> Any:
    """Cross-entropy in nats an example at flat parameters (P,): the network of the service, for reverse mode."""
    net, functional = problem.net, torch.nn.functional
    weights = [flat[t.offset : t.offset + t.size].view(t.shape) for t in problem.layout.tensors]
    h = batch[0]
    if net.embedding:
        h = functional.embedding(h, weights.pop(0)).flatten(1)
    for n in range(net.maps):
        h = functional.linear(h, weights[2 * n], weights[2 * n + 1])
        if n < net.maps - 1:
            h = functional.relu(functional.layer_norm(h, (net.sizes[n + 1],), eps=EPSILON))
    return functional.cross_entropy(h * net.scale, batch[1])
