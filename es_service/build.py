"""Which code is installed: the version, and a hash of its files, so that two builds of one version differ."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from es_service import __version__

__all__ = ["identity"]

_PACKAGES = ("es_service", "workers")
_SUFFIXES = (".py", ".cu", ".cuh", ".toml")
"""What runs; compiled kernels differ by machine and are held to the recorded vectors instead."""


@cache
def identity() -> str:
    """For example `0.1.0 (build 3f5c9a0b12de)`: equal on two nodes exactly where they run the same code."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        spec = find_spec(package)
        folder = Path(spec.origin).parent if spec and spec.origin else Path(package)
        for path in sorted(folder.rglob("*")):
            if path.suffix in _SUFFIXES:
                digest.update(f"{package}/{path.relative_to(folder).as_posix()}\0".encode())
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"{__version__} (build {digest.hexdigest()[:12]})"
