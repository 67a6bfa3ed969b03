"""`es-service sample`: text from a model."""

from __future__ import annotations

from argparse import Namespace

from es_service.commands.sources import Model, load_model, model_of_run, open_run
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.models.sampling import visible
from es_service.problem import write_text
from es_service.wiring import kernels

__all__ = ["run", "sample_run"]


def run(arguments: Namespace) -> int:
    """Print the prompt and what follows it."""
    ops, _ = kernels(arguments.backend)
    model = load_model(arguments, ops)
    prompt = arguments.prompt.encode("utf-8", "surrogateescape")
    values = (prompt, arguments.bytes, arguments.temperature, arguments.seed)
    text = prompt + write_text(model.config, ops, model.parameters_P, *values)
    print(visible(text))
    return 0


def sample_run(
    directory: RunDirectory, config: RunConfig, prompt: bytes, count: int, temperature: float = 1.0, seed: int = 1
) -> str:
    """The prompt and `count` bytes after it from the newest generation of a run, fit for a terminal."""
    ops, _ = kernels(config.deployment.aggregator_backend)
    model: Model = model_of_run(open_run(directory), ops)
    text = prompt + write_text(model.config, ops, model.parameters_P, prompt, count, temperature, seed)
    return visible(text)
