"""`es-service export`: the model of one generation as a safetensors file that needs no run beside it."""

from __future__ import annotations

from argparse import Namespace

from es_service.commands.sources import directory_of, model_of_run, open_run, parent_exists, save_export
from es_service.wiring import kernels

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Rebuild, write, say what was written."""
    out = parent_exists("--out", arguments.out)
    opened = open_run(directory_of(arguments))
    ops, _ = kernels(arguments.backend)
    model = model_of_run(opened, ops, arguments.generation)
    save_export(out, model, arguments.pack)
    size = out.stat().st_size
    print(f"{out}: generation {model.generation} of {model.name}, digest {model.digest:016x}, {size:,} bytes")
    return 0
