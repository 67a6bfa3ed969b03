"""`es-service sample`: text from a model."""

from __future__ import annotations

import unicodedata
from argparse import Namespace

from es_service.commands.sources import Model, load_model, model_of_run, open_run
from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.models.sampling import generate
from es_service.problem import shape_of
from es_service.wiring import kernels

__all__ = ["run", "sample_run", "visible"]

_SHOWN_AS_THEY_ARE = "\n\t"
_CONTROL_PICTURES = 0x2400
_HIDDEN = ("C", "Zl", "Zp")
"""Unicode categories that could disturb a terminal: controls, formats such as text direction, line separators."""


def run(arguments: Namespace) -> int:
    """Print the prompt and what follows it."""
    ops, _ = kernels(arguments.backend)
    model = load_model(arguments, ops)
    prompt = arguments.prompt.encode("utf-8", "surrogateescape")
    values = (prompt, arguments.bytes, arguments.temperature, arguments.seed)
    text = prompt + generate(ops, shape_of(model.config), model.parameters_P, *values)
    print(visible(text))
    return 0


def sample_run(
    directory: RunDirectory, config: RunConfig, prompt: bytes, count: int, temperature: float = 1.0, seed: int = 1
) -> str:
    """The prompt and `count` bytes after it from the newest generation of a run, fit for a terminal."""
    ops, _ = kernels(config.deployment.aggregator_backend)
    model: Model = model_of_run(open_run(directory), ops)
    text = prompt + generate(ops, shape_of(model.config), model.parameters_P, prompt, count, temperature, seed)
    return visible(text)


def visible(text: bytes) -> str:
    """UTF-8 with what cannot be shown replaced: control characters by their pictures, the rest by U+FFFD."""
    return "".join(_visible(character) for character in text.decode("utf-8", "replace"))


def _visible(character: str) -> str:
    if character in _SHOWN_AS_THEY_ARE or not unicodedata.category(character).startswith(_HIDDEN):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
