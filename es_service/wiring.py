"""What the commands take from outside this package, by import path: nothing here imports `workers` by name."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType

from es_service.types import Ops

__all__ = ["golden", "kernels", "shipped_vectors"]

_OPS = "workers.ops"
_GOLDEN = "workers.golden"
_VECTORS = ("workers", "vectors")


def kernels(backend: str, threads: int = 0) -> tuple[Ops, str]:
    """The kernels of a backend and one line that says which and why; 0 threads are all cores.

    Raises `BackendError` if they cannot be had here.
    """
    found: tuple[Ops, str] = importlib.import_module(_OPS).resolve(backend, threads or len(os.sched_getaffinity(0)))
    return found


def golden() -> ModuleType:
    """Reading and comparing of recorded vectors: `read(path)` and `compare(golden, ops)`."""
    return importlib.import_module(_GOLDEN)


@contextmanager
def shipped_vectors() -> Iterator[list[Path]]:
    """The recorded vectors that are part of the package, as files, by name."""
    package, folder = _VECTORS
    with resources.as_file(resources.files(package) / folder) as path:
        yield sorted(path.glob("*.npz"))
