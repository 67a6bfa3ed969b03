"""Copies of runs in a place that outlives their machine: a directory, a bucket, whatever fsspec has a file system for.

`URL/NAME` holds config.json and keyframes as they are, and the files that only grow (journal, metrics, events) cut into
segments named by the offset at which they start. The last segment is written again, longer, until it is full.
What a lost disk costs is in docs/operations.md.
"""

from __future__ import annotations

import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from es_service import keyframes
from es_service.config import RunConfig
from es_service.directory import RunDirectory, check_name
from es_service.durable import write_atomically
from es_service.errors import ConfigError, RunError, ServiceError
from es_service.journal import Close, encode
from es_service.journal_writer import JournalWriter

__all__ = ["SEGMENT_BYTES", "Storage", "Uploader", "fetch", "open_storage"]

SEGMENT_BYTES = 4 << 20
"""A segment of this size is closed: it is never written again."""

_JOURNAL = "journal.bin"
_HEAD = "head"
_LOGS = ("metrics.jsonl", "events.jsonl", "samples.jsonl")
_CLOSE_BYTES = len(encode(Close(0, 0)))
_LAST_TRIES = 3
_LAST_SECONDS = 60.0
_PACKAGES = {"s3": "'es-service[s3]'", "s3a": "'es-service[s3]'", "gs": "'es-service[gcs]'", "gcs": "'es-service[gcs]'"}


class Storage:
    """The files of one run below a URL, named relative to it. Errors are those of the file system."""

    def __init__(self, url: str, name: str) -> None:
        """Raises `ConfigError` if there is no file system for the URL."""
        import fsspec

        self.url = f"{url.rstrip('/')}/{check_name(name)}"
        protocol = url.partition("://")[0]
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            package = _PACKAGES.get(protocol, "the package that fsspec names")
            raise ConfigError(f"deployment.storage_url: {url!r}: {error}; pip install {package}") from error
        self._local = protocol in ("file", "local")

    def exists(self) -> bool:
        """Whether a run's journal is here."""
        return next(self.segments(_JOURNAL), None) is not None

    def read(self, name: str) -> bytes:
        """The whole file."""
        data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Put or replace a file; a reader sees the old one or the new one."""
        path = f"{self._root}/{name}"
        if not self._local:
            self._files.pipe_file(path, data)
            return
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(Path(path), data)

    def remove(self, name: str) -> None:
        """Remove a file."""
        self._files.rm_file(f"{self._root}/{name}")

    def names(self, folder: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of the files in a folder, by name; none if it is missing."""
        self._files.invalidate_cache()
        try:
            listed: list[dict[str, Any]] = self._files.ls(f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return
        for entry in sorted(listed, key=lambda entry: str(entry["name"])):
            if entry["type"] == "file":
                yield str(entry["name"]).rpartition("/")[2], int(entry["size"])

    def segments(self, file: str) -> Iterator[tuple[int, int]]:
        """(start, bytes) of the segments of a growing file that follow on each other from its beginning."""
        end = 0
        for name, size in self.names(file):
            if re.fullmatch(r"[0-9]{20}", name) and int(name) == end:
                yield end, size
                end += size

    def segment(self, file: str, start: int) -> str:
        """Name of the segment that starts at an offset."""
        return f"{file}/{start:020d}"


def open_storage(config: RunConfig, name: str, resume: bool) -> Storage | None:
    """The storage of a run that has one. It must answer; for a new run it must hold none of this name."""
    url = config.deployment.storage_url
    if not url:
        return None
    with _answering(url):
        storage = Storage(url, name)
        taken = storage.exists()
    if taken and not resume:
        raise RunError(
            f"{storage.url} holds a run of this name: go on with it by `es-service resume {name} --from {url}` or "
            "`es-service train --or-resume`, or choose another --name"
        )
    return storage


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Around what a run needs of its storage at its start: whatever a file system raises becomes a `RunError`."""
    try:
        yield
    except ServiceError:
        raise
    except Exception as error:
        raise RunError(
            f"deployment.storage_url: {url} cannot be read ({_reason(error)}); check the URL, the credentials "
            "and the network, or go on without it: --set deployment.storage_url=''"
        ) from error


def fetch(url: str, name: str, directory: RunDirectory) -> str:
    """Rebuild a run's directory from storage; one line about it. `RunError` if there is one already, or nothing there.

    The journal is written last: a directory that has one is whole.
    """
    if directory.journal_path.exists():
        raise RunError(f"{directory.path}: the run is here already; leave out --from to use it, or move it away")
    storage = Storage(url, name)
    try:
        return _fetch(storage, directory)
    except RunError:
        raise
    except Exception as error:
        raise RunError(f"{storage.url} cannot be fetched to {directory.path}: {_reason(error)}; try again") from error


def _fetch(storage: Storage, directory: RunDirectory) -> str:
    if not storage.exists():
        raise RunError(f"{storage.url}: there is no run here; check --from and the run's name")
    directory.create()
    saved = _keyframe_names(storage)
    for name in saved:
        write_atomically(directory.keyframes_path / name, storage.read(f"keyframes/{name}"))
    write_atomically(directory.config_path, storage.read("config.json"))
    size = 0
    for file in (*_LOGS, _JOURNAL):
        parts = [storage.read(storage.segment(file, start)) for start, _ in storage.segments(file)]
        write_atomically(directory.path / file, *parts)
        size = sum(map(len, parts))
    return f"fetched {storage.url} to {directory.path}: {size:,} bytes of journal, {len(saved)} keyframes"


def _keyframe_names(storage: Storage) -> list[str]:
    return [name for name, _ in storage.names("keyframes") if re.fullmatch(r"[0-9]{1,20}\.safetensors", name)]


class Uploader:
    """Keeps the storage of one run up to date, in a thread of its own; nothing that it meets stops the run.

    While the storage fails, `problem` says how, and every round tries again. An outage is two events.
    """

    problem: str

    def __init__(self, storage: Storage, config: RunConfig, directory: RunDirectory, writer: JournalWriter) -> None:
        """Raises `RunError` if the storage does not answer, or holds another run, or more of this than `directory`."""
        self.problem = ""
        self._storage, self._directory, self._writer = storage, directory, writer
        self._every_seconds = config.deployment.storage_every_seconds
        self._keep = config.deployment.keep_keyframes
        self._config = b""
        self._mark = secrets.token_hex(8).encode()
        self._marked = False
        self._starts: dict[str, int] = {}
        """Where the last segment of each growing file begins; all before it is closed."""
        self._ends: dict[str, int] = {}
        """What is stored of each growing file."""
        with _answering(storage.url):
            self._take_stock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="storage", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Store what is left; gives up after a minute."""
        self._closing.set()
        self._thread.join(_LAST_SECONDS)
        if self._thread.is_alive():
            self._failed("the last files were not stored in time")

    # What is there when the run starts.

    def _take_stock(self) -> None:
        self._check_journal()
        for file in _LOGS:
            start, length = max(self._storage.segments(file), default=(0, 0))
            self._position(file, *((start, length) if start + length <= self._size(file) else (0, 0)))
        self._saved = set(_keyframe_names(self._storage))

    def _position(self, file: str, start: int, length: int) -> None:
        closed = length == SEGMENT_BYTES
        self._ends[file] = start + length
        self._starts[file] = start + length if closed else start

    def _check_journal(self) -> None:
        """The stored journal must be the beginning of the one here, but for a close record at its end.

        Here anything may stand in its place by now, so the last bytes there, as many as such a record has, are not
        compared and are stored again.
        """
        size, storage = self._writer.bytes, self._storage
        segments = list(storage.segments(_JOURNAL))
        end = max(sum(length for _, length in segments) - _CLOSE_BYTES, 0)
        if end > size:
            raise RunError(
                f"{storage.url} holds {end:,} bytes of the journal and {self._directory.journal_path} only {size:,}: "
                f"the run went on elsewhere. Move {self._directory.path} away and resume with --from"
            )
        start, _ = max((part for part in segments if part[0] < end), default=(0, 0))
        there = storage.read(storage.segment(_JOURNAL, start))[: end - start] if end else b""
        if self._read(_JOURNAL, start, end) != there:
            raise RunError(f"{storage.url} holds another run: choose another name or deployment.storage_url")
        self._position(_JOURNAL, start, end - start)

    # The thread.

    def _run(self) -> None:
        while not self._closing.wait(self._every_seconds):
            self._attempt()
        for _ in range(_LAST_TRIES):
            if self._attempt():
                return
            time.sleep(1)

    def _attempt(self) -> bool:
        started, generation = time.monotonic(), self._writer.generation
        try:
            stored = self._sync()
        except Exception as error:  # whatever a file system raises: the run goes on and the next round tries again
            self._failed(_reason(error))
            return False
        with suppress(RunError):  # a full disk is the journal's to report
            if self.problem:
                self.problem = ""
                self._directory.log_event("storage_recovered", url=self._storage.url)
            if stored:
                seconds = round(time.monotonic() - started, 3)
                self._directory.log_metrics("stored", generation=generation, bytes=stored, seconds=seconds)
        return True

    def _failed(self, reason: str) -> None:
        news, self.problem = not self.problem, reason
        if news:
            with suppress(RunError):
                self._directory.log_event("storage_failed", url=self._storage.url, reason=reason)

    def _sync(self) -> int:
        """Store what is new; returns the bytes written, but for the logs, which are only stored along with the rest."""
        self._check_head()
        stored = self._sync_config() + self._sync_growing(_JOURNAL, self._writer.bytes)
        stored += self._sync_keyframes()  # after the journal, which needs none of them
        if stored or self._closing.is_set():
            for file in _LOGS:
                self._sync_growing(file, self._size(file))
        return stored

    def _check_head(self) -> None:
        """The head that started last stores; one before it would cut what that one has stored."""
        if not self._marked:
            self._storage.write(_HEAD, self._mark)
            self._marked = True
        elif self._storage.read(_HEAD) != self._mark:
            raise RunError("another head stores this run now; stop this one")

    def _sync_config(self) -> int:
        config = self._directory.config_path.read_bytes()
        if config == self._config:
            return 0
        self._storage.write("config.json", config)
        self._config = config
        return len(config)

    def _sync_keyframes(self) -> int:
        """New ones are stored; those that are too old are removed, and those that were set aside here."""
        folder, stored = self._directory.keyframes_path, 0
        here = [f"{generation}.safetensors" for generation in keyframes.list_generations(folder)]
        for name in here:
            if name not in self._saved:
                try:
                    data = (folder / name).read_bytes()
                except FileNotFoundError:
                    continue  # no longer among the newest
                self._storage.write(f"keyframes/{name}", data)
                self._saved.add(name)
                stored += len(data)
        old = sorted(self._saved, key=lambda name: int(name.partition(".")[0]))[: -self._keep] if self._keep else []
        for name in {*old, *(name for name in self._saved if (folder / f"{name}.wrong").exists())}:
            with suppress(FileNotFoundError):
                self._storage.remove(f"keyframes/{name}")
            self._saved.discard(name)
        return stored

    def _sync_growing(self, file: str, end: int) -> int:
        stored = 0
        while self._ends[file] < end:
            start = self._starts[file]
            data = self._read(file, start, min(end, start + SEGMENT_BYTES))
            if start + len(data) <= self._ends[file]:
                break  # the file became shorter: somebody else changes it
            self._storage.write(self._storage.segment(file, start), data)
            stored += len(data)
            self._ends[file] = start + len(data)
            if len(data) == SEGMENT_BYTES:
                self._starts[file] += SEGMENT_BYTES
        return stored

    def _read(self, file: str, start: int, end: int) -> bytes:
        with (self._directory.path / file).open("rb") as stream:
            stream.seek(start)
            return stream.read(end - start)

    def _size(self, file: str) -> int:
        """Bytes of a log as it is now."""
        path = self._directory.path / file
        return path.stat().st_size if path.exists() else 0


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
