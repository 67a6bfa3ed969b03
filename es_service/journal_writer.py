"""The one writer of a journal: lock, epoch, append, fsync. The guarantees are in docs/journal.md."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from es_service.durable import write_atomically
from es_service.errors import ConfigError, JournalError, RunError
from es_service.journal import (
    MAGIC,
    Close,
    Commit,
    Header,
    JournalContents,
    Record,
    encode,
    misfit,
    scan,
)

__all__ = ["EPOCH_FILE", "LOCK_FILE", "JournalWriter", "check_spec"]

LOCK_FILE = "journal.lock"
EPOCH_FILE = "epoch"
_LOCK_SECONDS = 1.0

_REMEDIES = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space within the quota",
    errno.EFBIG: "raise the file size limit (ulimit -f)",
    errno.ENOENT: "put its directory back",
    errno.EROFS: "mount its disk writable",
    errno.EACCES: "make its directory writable",
}


class JournalWriter:
    """Appends records to one journal, alone. Not for use from two threads at once.

    After any failure to append, nothing more is written until the journal is opened again.
    """

    path: Path
    bytes: int
    """Size of the journal: everything before it is durable."""
    generation: int
    """The generation that the next commit has."""
    fsync_seconds: float
    """Duration of the last fsync."""

    def __init__(self, path: Path, lock: int, epoch: str, contents: JournalContents) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.bytes = contents.append_offset
        self._close_bytes = contents.valid_bytes - contents.append_offset
        self.generation = len(contents.commits)
        self.fsync_seconds = 0.0
        self._header = contents.header
        self._closed = False
        self._failure = ""
        self._lock, self._epoch = lock, epoch
        self._fd = os.open(path, os.O_RDWR)

    @classmethod
    def create(cls, path: Path, header: Header) -> JournalWriter:
        """Begin a journal with its header, in a directory that exists; `RunError` if there is one already."""
        head = MAGIC + encode(header)
        with _locked(path) as lock:
            if path.exists():
                raise RunError(f"{path} exists: resume that run, or choose another name")
            epoch = _take_epoch(path.parent)
            write_atomically(path, head)
            return cls(path, lock, epoch, scan(path))

    @classmethod
    def open(cls, path: Path, expected_spec: dict[str, Any] | None = None) -> tuple[JournalWriter, JournalContents]:
        """Return the writer, and what the journal held before a torn tail was cut off.

        A close record stays until the first record is appended in its place: a resume that fails changes nothing.
        `ConfigError` if the spec that the next generation would have is not `expected_spec`, but for what may change.
        """
        with _explained(path, "cannot be looked at"):
            if not path.is_file():
                raise RunError(f"{path}: there is no journal here; check the run's name")
        with _locked(path) as lock:
            epoch = _take_epoch(path.parent)
            contents = scan(path)
            if expected_spec is not None:
                check_spec(path, contents.spec_at(len(contents.commits)), expected_spec)
            _cut_tail(path, contents.valid_bytes)
            return cls(path, lock, epoch, contents), contents

    def append(self, record: Record) -> None:
        """Write one record and make it durable before returning.

        Raises `JournalError` if it does not fit or cannot be written (the file is cut back to where it was), and
        `RunError` if another head took the run over.
        """
        if self._failure:
            raise JournalError(f"{self.path}: nothing is written since a failure ({self._failure}); resume the run")
        data = encode(record)
        problem = "the run is closed" if self._closed else misfit(record, self._header, self.generation)
        if problem:
            raise JournalError(f"{self.path}, byte {self.bytes}: {problem}; the record was not written")
        try:
            self._check_epoch()
            self._check_file()
            self._reopen()
            self._write(memoryview(data))
        except OSError as error:
            self._failure = error.strerror or str(error)
            remedy = _REMEDIES.get(error.errno or 0, "check its disk")
            raise JournalError(
                f"{self.path}, byte {self.bytes}: a record of {len(data)} bytes was not written: {self._failure}; "
                f"nothing before it is lost: {remedy}, then resume the run"
            ) from error
        self.bytes += len(data)
        self.generation += isinstance(record, Commit)
        self._closed = isinstance(record, Close)

    def close(self) -> None:
        """Give up the lock. Writes nothing; may be called twice."""
        for fd in (self._fd, self._lock):
            if fd >= 0:
                os.close(fd)
        self._fd = self._lock = -1
        self._failure = self._failure or "the writer was closed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_epoch(self) -> None:
        owner = (self.path.parent / EPOCH_FILE).read_text()
        if owner != self._epoch:
            self._failure = "another head took over"
            raise RunError(f"{self.path}: another head took over (epoch {owner.strip()}); this one writes nothing more")

    def _check_file(self) -> None:
        named, held = self.path.stat(), os.fstat(self._fd)
        same = (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
        if not same or held.st_size != self.bytes + self._close_bytes:
            self._failure = "the file was changed by another program"
            raise RunError(
                f"{self.path}: the file was replaced or is {held.st_size} bytes where this head left {self.bytes}: "
                "another program changed it; this head writes nothing more. Resume the run to check the file"
            )

    def _reopen(self) -> None:
        """Cut off the close record, as the run goes on."""
        if self._close_bytes:
            os.ftruncate(self._fd, self.bytes)
            self._close_bytes = 0

    def _write(self, data: memoryview) -> None:
        """At a fixed offset, so that a head that was overtaken cannot push its successor's records along."""
        try:
            done = 0
            while done < len(data):  # a second turn only tells why the first was short
                done += os.pwrite(self._fd, data[done:], self.bytes + done)
            start = time.perf_counter()
            os.fsync(self._fd)
            self.fsync_seconds = time.perf_counter() - start
        except BaseException as error:
            self._failure = f"interrupted by {type(error).__name__}"
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        """Cut off what a failed append left. Where that fails too, a torn tail stays, and the next open cuts it."""
        try:
            self._check_epoch()
            os.ftruncate(self._fd, self.bytes)
            os.fsync(self._fd)
        except (OSError, RunError):
            return


@contextmanager
def _explained(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = _REMEDIES.get(error.errno or 0, "check its disk")
        raise RunError(f"{path}: {what}: {error.strerror}; {remedy} and try again") from error


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    """Hold the lock beside `path`; it is given up only if the body fails."""
    lock_path = path.parent / LOCK_FILE
    with _explained(path, "cannot open the run for writing"):
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(lock, lock_path)
            yield lock
        except BaseException:
            os.close(lock)
            raise


def _lock(lock: int, lock_path: Path) -> None:
    """Take the lock; waits a little, as `status` holds it for a moment and a killed head until it is gone."""
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError as error:
            if time.monotonic() < deadline:
                time.sleep(_LOCK_SECONDS / 20)
                continue
            holder = os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
            raise RunError(
                f"{lock_path.parent}: the run is in use by {holder}; stop that first, or choose another name"
            ) from error
    me = f"{_me()}\n".encode()
    os.pwrite(lock, me, 0)
    os.ftruncate(lock, len(me))


def _cut_tail(path: Path, size: int) -> None:
    with path.open("rb+") as file:
        if os.fstat(file.fileno()).st_size != size:
            file.truncate(size)
            os.fsync(file.fileno())


def _take_epoch(directory: Path) -> str:
    """Raise the epoch on disk and return its line: number, owner, and a token in case two raise it at once."""
    path = directory / EPOCH_FILE
    try:
        number = int(path.read_text().split()[0])
    except FileNotFoundError:
        number = 0
    except (ValueError, IndexError) as error:
        raise RunError(f"{path}: not an epoch number; if no head of this run is alive, remove the file") from error
    line = f"{number + 1} {_me()} {secrets.token_hex(8)}\n"
    write_atomically(path, line.encode())
    return line


def _me() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def check_spec(path: Path, journaled: dict[str, Any], expected: dict[str, Any]) -> None:
    """Raise `ConfigError`, naming the fields, unless the two specs are the same but for the population."""
    fields = "; ".join(_differences(journaled, expected | {"population": journaled.get("population")}, ""))
    if fields:
        raise ConfigError(
            f"the config is not the one of {path}: {fields}. Resume with the run's own config; only the population may "
            "change"
        )


def _differences(journaled: dict[str, Any], expected: dict[str, Any], prefix: str) -> Iterator[str]:
    for key in sorted(journaled.keys() | expected.keys()):
        old, new = journaled.get(key), expected.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} is {old!r} in the journal and {new!r} in the config"
