"""`es-service presets`: the configs that come with es-service."""

from __future__ import annotations

from argparse import Namespace

from es_service.commands.display import print_table
from es_service.config import PRESETS, load, preset_names
from es_service.problem import scored

__all__ = ["about", "run"]


def run(arguments: Namespace) -> int:  # noqa: ARG001 - every command takes its arguments
    """A row for each preset; all are validated on the way."""
    columns = ("preset", "population N", "width D", "layers L", "T or batch", "generations")
    print_table(columns, [_row(name) for name in preset_names()])
    print()
    for name in preset_names():
        print(f"{name}: {about(name)}")
    print("\ntrain one with: es-service train PRESET")
    return 0


def about(name: str) -> str:
    """What a preset is for: the comment in its first line."""
    first, _, _ = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").partition("\n")
    return first.removeprefix("#").strip()


def _row(name: str) -> tuple[str, ...]:
    config = load(name)
    numbers = (config.population, config.model.width, config.model.layers, scored(config))
    return (name, *(f"{number:,}" for number in numbers), f"{config.deployment.generations:,}")
