"""Documents from the source of the running Python's standard library.

Left out: installed packages, the library's own tests (Linux distributions do not ship them with Python), and the
build records `_sysconfigdata*` and `config-*` (they differ from machine to machine).
"""

from __future__ import annotations

import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from es_service.data.documents import Document
from es_service.data.files import read_text, stat_state

_SKIPPED_FOLDERS = frozenset({"__pycache__", "dist-packages", "idle_test", "site-packages", "test", "tests"})


@dataclass(frozen=True, slots=True)
class StdlibSource:
    """Source of `kind = "stdlib"`. `root` is the folder of the standard library."""

    root: Path

    @classmethod
    def of_this_python(cls) -> StdlibSource:
        """Source of the running interpreter's library."""
        return cls(Path(sysconfig.get_path("stdlib")))

    @property
    def name(self) -> str:
        """Which Python."""
        return f"standard library of Python {platform.python_version()}"

    @property
    def field(self) -> str:
        """Where the documents come from."""
        return "data.kind"

    @property
    def held_out_field(self) -> str:
        """What chooses the held-out documents."""
        return "data.held_out_percent"

    def state(self) -> list[object] | None:
        """Path, size and time of every file."""
        return stat_state(self._files())

    def documents(self) -> Iterator[Document]:
        """Every file is a document, by POSIX relative path; undecodable files are left out."""
        for path in self._files():
            text = read_text(path)
            if text is not None:
                yield Document(text)

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = [s for s in subfolders if s not in _SKIPPED_FOLDERS and not s.startswith("config-")]
            sources = (name for name in names if name.endswith(".py") and not name.startswith("_sysconfigdata"))
            found += [Path(folder, name) for name in sources]
        files = (file for file in found if file.is_file())  # not what a broken link names
        return sorted(files, key=lambda file: file.relative_to(self.root).as_posix())
