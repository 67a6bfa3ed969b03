"""Writes the two splits of a corpus as they come, without holding them in memory."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from es_service.data.corpus import content_hash

SPLITS = ("train", "held_out")
HEADER_BYTES = 128


class CorpusWriter:
    """Appends documents to `folder`/train.npy and held_out.npy; `finish` makes them readable.

    max_bytes: the training split ends there, within a document if need be.
    """

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.folder = folder
        self._splits = [_SplitWriter(folder / f"{SPLITS[0]}.npy", max_bytes), _SplitWriter(folder / f"{SPLITS[1]}.npy")]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for split in self._splits:
            split.close()

    @property
    def sizes(self) -> tuple[int, int]:
        """Bytes so far: (training, held-out)."""
        return self._splits[0].size, self._splits[1].size

    @property
    def train_is_full(self) -> bool:
        """Whether max_bytes is reached."""
        return self._splits[0].is_full

    def add(self, text: bytes, held_out: bool) -> None:
        """Append a byte 0 and the text; a document without text is left out."""
        if text:
            split = self._splits[held_out]
            split.append(b"\0")
            split.append(text)

    def add_raw(self, data: bytes, held_out: bool) -> None:
        """Append bytes of a split as they are."""
        self._splits[held_out].append(data)

    def finish(self, name: str) -> str:
        """Complete the files, with corpus.json, on disk; returns the content hash."""
        train, held_out = (split.finish() for split in self._splits)
        hashed = content_hash(train, held_out)
        about = {
            "content_hash": hashed,
            "name": name,
            "splits": {
                split: {"bytes": size, "sha256": digest.hex()}
                for split, (size, digest) in zip(SPLITS, (train, held_out), strict=True)
            },
        }
        with (self.folder / "corpus.json").open("w") as file:
            json.dump(about, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        return hashed


class _SplitWriter:
    """One .npy file of uint8 whose size is known only at the end: its header is written last."""

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        self.size = 0
        self._max_bytes = max_bytes
        self._digest = hashlib.sha256()
        self._file = path.open("wb")
        self._file.write(bytes(HEADER_BYTES))

    @property
    def is_full(self) -> bool:
        return self._max_bytes is not None and self.size >= self._max_bytes

    def append(self, data: bytes) -> None:
        if self._max_bytes is not None:
            data = data[: self._max_bytes - self.size]
        self._file.write(data)
        self._digest.update(data)
        self.size += len(data)

    def finish(self) -> tuple[int, bytes]:
        """(size, SHA-256) of the bytes, which are on disk."""
        self._file.seek(0)
        self._file.write(npy_header(self.size))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.size, self._digest.digest()

    def close(self) -> None:
        self._file.close()


def npy_header(size: int) -> bytes:
    """Header of a one-dimensional uint8 array in the .npy format 1.0, 128 bytes whatever the size."""
    fields = f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({size},), }}"
    magic = b"\x93NUMPY\x01\x00"
    body = fields.encode().ljust(HEADER_BYTES - len(magic) - 3) + b"\n"
    return magic + len(body).to_bytes(2, "little") + body
