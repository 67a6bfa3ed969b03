"""Files that appear whole or not at all, and names that outlive a crash."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["sync_directory", "write_atomically"]


def sync_directory(directory: Path) -> None:
    """Make names that were created or renamed in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomically(path: Path, *parts: bytes | memoryview) -> None:
    """Replace `path` by a file of these bytes, durably: a crash leaves the old file or the new one.

    Several processes may do so at once: the last one wins.
    """
    partial = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with partial.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
