"""Canonical parameters in memory that processes of one node share, so that a node makes each update once.

Two slots: generation g lies in slot g mod 2. The writer is never more than one generation ahead of a reader that has an
open lease; whatever a reader finds is checked by its digest before it counts.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np

from es_service.errors import RunError
from es_service.types import Int8Array

__all__ = ["SharedParameters", "read_shared"]

_MEMORY = Path("/dev/shm")


class SharedParameters:
    """The writing end. `path` is a file of 2 P bytes, in memory where the system has a place for that."""

    def __init__(self, run_directory: Path, size: int) -> None:
        _sweep()
        tag = hashlib.sha256(str(run_directory.absolute()).encode()).hexdigest()[:16]
        try:
            self.path, self._held = _allocate(_MEMORY / f"es-service-{tag}.parameters", 2 * size)
        except OSError:  # no such place, or it is full
            self.path, self._held = _allocate_beside(run_directory / "shared.parameters", 2 * size)
        self._slots_2P: Int8Array = np.memmap(self.path, np.int8, "r+", shape=(2, size))

    def publish(self, generation: int, parameters_P: Int8Array) -> None:
        """Make a generation readable."""
        self._slots_2P[generation % 2] = parameters_P

    def close(self) -> None:
        """Remove the file; who has it open may go on reading."""
        self.path.unlink(missing_ok=True)
        self._held.close()


def _sweep() -> None:
    """Remove what killed heads left in memory, of any run: files that nobody holds a lock on."""
    for path in _MEMORY.glob("es-service-*.parameters"):
        with suppress(OSError), path.open("rb") as file:  # another's, gone meanwhile, or in use
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def _allocate(path: Path, size: int) -> tuple[Path, BinaryIO]:
    """A file whose blocks exist, so that no later write can fail for want of room, and the lock that keeps it.

    An old file of this name is not touched: a worker of a killed head may still read it.
    """
    partial = path.with_suffix(".new")  # `_sweep` sees no file before it is locked
    partial.unlink(missing_ok=True)
    file = partial.open("xb")
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.posix_fallocate(file.fileno(), 0, size)
        return partial.replace(path), file
    except OSError:
        file.close()
        partial.unlink(missing_ok=True)
        raise


def _allocate_beside(path: Path, size: int) -> tuple[Path, BinaryIO]:
    try:
        return _allocate(path, size)
    except OSError as error:
        raise RunError(f"{path}: no room for {size} bytes: {error.strerror}; make room on this disk") from error


def read_shared(path: Path, generation: int, size: int) -> Int8Array:
    """A copy (P,) int8 of what lies in the slot of a generation; raises `OSError` if the file is not there."""
    slots_2P = np.memmap(path, np.int8, "r", shape=(2, size))
    return np.array(slots_2P[generation % 2], np.int8)
