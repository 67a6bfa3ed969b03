"""Documents from local files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from es_service.data.config import FilesDataConfig
from es_service.data.documents import Document
from es_service.errors import DataError

_SETTLED_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class FilesSource:
    """Source of `kind = "files"`."""

    config: FilesDataConfig

    @property
    def name(self) -> str:
        """The paths."""
        return "files " + " ".join(str(path) for path in self.config.paths)

    @property
    def field(self) -> str:
        """Where the documents come from."""
        return "data.paths"

    @property
    def held_out_field(self) -> str:
        """What chooses the held-out documents."""
        return "data.held_out_paths" if self.config.held_out_paths else "data.held_out_percent"

    def state(self) -> list[object] | None:
        """Path, size and time of every file."""
        return stat_state([*self._files(self.config.paths, "data.paths"), *self._held_out_files()])

    def documents(self) -> Iterator[Document]:
        """Each file is a document; of files that are named twice the first counts."""
        held_out = self._held_out_files()
        yield from self._read(held_out, True)
        training = self._files(self.config.paths, "data.paths")
        split = False if self.config.held_out_paths else None
        yield from self._read({path: named for path, named in training.items() if path not in held_out}, split)

    def _held_out_files(self) -> dict[Path, bool]:
        return self._files(self.config.held_out_paths or (), "data.held_out_paths")

    def _files(self, paths: Iterable[Path], field: str) -> dict[Path, bool]:
        """Map resolved files, in order, to whether the config names the file itself."""
        files: dict[Path, bool] = {}
        for path in (path.expanduser() for path in paths):
            if path.is_dir():
                for file in self._in_folder(path):
                    files.setdefault(file.resolve(), False)
            elif path.is_file():
                files.setdefault(path.resolve(), True)
            else:
                raise DataError(
                    f"{field}: there is no file or folder {path} (looked from {Path.cwd()}); correct the path, "
                    "or put the files there on every machine of the cluster"
                )
        return files

    def _in_folder(self, folder: Path) -> list[Path]:
        found = {file.relative_to(folder) for pattern in self.config.patterns for file in folder.glob(pattern)}
        visible = (file for file in found if not any(part.startswith(".") for part in file.parts))
        return [folder / file for file in sorted(visible, key=Path.as_posix) if (folder / file).is_file()]

    def _read(self, files: dict[Path, bool], held_out: bool | None) -> Iterator[Document]:
        for path, named in files.items():
            text = read_text(path)
            if text is not None:
                yield Document(text, held_out)
            elif named:
                raise DataError(f"{self.field}: {path} is not UTF-8 text; convert it or leave it out")


def read_text(path: Path) -> bytes | None:
    """Bytes of a UTF-8 text file; None if it is binary: undecodable, or with a byte 0."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise DataError(f"data: cannot read {path}: {error.strerror}; make it readable or leave it out") from error
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return None
    return None if b"\0" in text else text


def stat_state(files: Iterable[Path]) -> list[object] | None:
    """[path, size, mtime] of every file; None if one is missing or so new that another write might keep its time."""
    try:
        stats = [(file, file.stat()) for file in files]
    except OSError:
        return None  # reading it will say what is wrong
    newest = max((stat.st_mtime for _, stat in stats), default=0.0)
    if newest > time.time() - _SETTLED_SECONDS:
        return None
    return [[os.fspath(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
