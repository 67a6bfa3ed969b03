"""Corpora on disk, one folder for each content hash; a folder is complete or absent.

- `<cache>/corpora/<content hash>/train.npy`, `held_out.npy`: uint8, read memory-mapped;
- `corpus.json` beside them: name, sizes and SHA-256 of both;
- `verified.json` beside them: sizes and times of the files when they were last hashed;
- `<cache>/index/<fingerprint>`: content hash of the corpus that a config gave the last time.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from es_service.data.corpus import Corpus, content_hash, split_digest
from es_service.data.writer import HEADER_BYTES, SPLITS, CorpusWriter, npy_header
from es_service.durable import sync_directory, write_atomically
from es_service.errors import DataError
from es_service.types import UInt8Array

_log = logging.getLogger(__name__)


def default_cache_dir() -> Path:
    """ES_SERVICE_CACHE, or ~/.cache/es-service."""
    return Path(os.environ.get("ES_SERVICE_CACHE") or "~/.cache/es-service").expanduser()


class _DamagedError(Exception):
    """A cached corpus that does not hold what its name says."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Corpora under the folder `root`, which need not exist yet. Make one for each load: it remembers damage."""

    root: Path
    _damaged: set[str] = field(default_factory=set, init=False, repr=False)

    def open(self, wanted: str) -> Corpus | None:
        """The corpus with this content hash, memory-mapped; None, with a warning if damaged, if it is not here.

        The bytes are hashed again unless sizes and times are those of the last check.
        """
        folder = self._folder(wanted)
        if wanted in self._damaged or not folder.is_dir():
            return None
        try:
            return _read(folder, wanted)
        except (_DamagedError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("the cached corpus %s is damaged and will be built again: %s", folder, error)
            self._damaged.add(wanted)
            return None

    def find(self, fingerprint: str) -> Corpus | None:
        """The corpus that a config with this fingerprint gave the last time; None if it is not here."""
        try:
            wanted = (self.root / "index" / fingerprint).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return None
        return self.open(wanted) if len(wanted) == 64 and wanted.isalnum() else None

    def remember(self, fingerprint: str, wanted: str) -> None:
        """Let `find` know what a config gives."""
        index = self.root / "index"
        index.mkdir(parents=True, exist_ok=True)
        write_atomically(index / fingerprint, f"{wanted}\n".encode())

    @contextmanager
    def writer(self, fingerprint: str, max_bytes: int | None) -> Iterator[CorpusWriter]:
        """A writer in a fresh folder, which is gone at the end unless `store` took it.

        To be used under `lock`: what a killed writer of this machine left is removed.
        """
        folder = self.root / "corpora" / f"building-{fingerprint[:16]}-{platform.node()}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            with CorpusWriter(folder, max_bytes) as writer:
                yield writer
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def lock(self, fingerprint: str) -> Iterator[None]:
        """Held while a corpus is built: the other workers of a node wait and then find it."""
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with (self.root / "locks" / fingerprint).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def store(self, writer: CorpusWriter, name: str) -> Corpus:
        """Finish what was written and move it to its place; a sound copy that is there already stays."""
        built = writer.finish(name)
        with self.lock(built):
            corpus = self.open(built)
            if corpus is None:
                self._put(writer.folder, self._folder(built))
                self._damaged.discard(built)
                corpus = self.open(built)
        if corpus is None:
            raise DataError(f"cache: what was written to {self.root} reads back damaged; check the disk")
        return corpus

    def _put(self, written: Path, folder: Path) -> None:
        sync_directory(written)
        if folder.exists():
            folder.rename(written / "damaged")
        written.rename(folder)
        shutil.rmtree(folder / "damaged", ignore_errors=True)
        sync_directory(folder.parent)

    def _folder(self, wanted: str) -> Path:
        return self.root / "corpora" / wanted


def _read(folder: Path, wanted: str) -> Corpus:
    about = json.loads((folder / "corpus.json").read_text())
    splits = [_map(folder / f"{split}.npy") for split in SPLITS]
    stamp = _stamp(folder)
    if _verified(folder) != {"content_hash": wanted, "files": stamp}:
        _check(splits, wanted)
        # A cache that cannot be written to still serves; it is only hashed at every start.
        with suppress(OSError):
            write_atomically(folder / "verified.json", json.dumps({"content_hash": wanted, "files": stamp}).encode())
    train, held_out = splits
    return Corpus(train, held_out, wanted, str(about["name"]))


def _map(path: Path) -> UInt8Array:
    """Memory-map a .npy file, read-only, after a look at its header."""
    size = path.stat().st_size - HEADER_BYTES
    with path.open("rb") as file:
        if size < 0 or file.read(HEADER_BYTES) != npy_header(size):
            raise _DamagedError(f"{path.name} is cut or is not an array of bytes")
    array: UInt8Array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    return array


def _check(splits: list[UInt8Array], wanted: str) -> None:
    train, held_out = ((split.size, split_digest(split)) for split in splits)
    found = content_hash(train, held_out)
    if found != wanted:
        raise _DamagedError(f"its bytes have the hash {found}")


def _stamp(folder: Path) -> dict[str, list[int]]:
    """Size and times of the arrays: the change time also moves when a tool sets the other one back."""
    stats = {split: (folder / f"{split}.npy").stat() for split in SPLITS}
    return {split: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for split, stat in stats.items()}


def _verified(folder: Path) -> Any:
    try:
        return json.loads((folder / "verified.json").read_text())
    except (OSError, ValueError):
        return None
