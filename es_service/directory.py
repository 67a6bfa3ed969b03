"""The directory of a run: names, paths, and the files beside the journal that are not hashed."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from es_service.config import NAME_PATTERN, RunConfig, explain
from es_service.durable import write_atomically
from es_service.errors import ConfigError, RunError
from es_service.journal_writer import LOCK_FILE

__all__ = ["RunDirectory", "check_name", "next_name", "parse_line"]


def check_name(name: str) -> str:
    """The name, if it can stand for a directory below the runs directory and nothing else; else `ConfigError`."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"name: {name!r} must be 1 to 63 letters, digits, '.', '_' or '-', and start with a letter or digit"
        )
    return name


def next_name(runs_dir: Path, preset: str) -> str:
    """PRESET-n with the least n that no run has."""
    n = 1
    while (runs_dir / f"{preset}-{n}").exists():
        n += 1
    return f"{preset}-{n}"


class RunDirectory:
    """Paths and side files of one run. Reads never need the run to be stopped."""

    def __init__(self, runs_dir: Path, name: str) -> None:
        self.name = check_name(name)
        self.path = runs_dir / name
        self.config_path = self.path / "config.json"
        self.journal_path = self.path / "journal.bin"
        self.keyframes_path = self.path / "keyframes"
        self.metrics_path = self.path / "metrics.jsonl"
        self.events_path = self.path / "events.jsonl"
        self.samples_path = self.path / "samples.jsonl"
        self.workers_path = self.path / "workers.json"
        self.stop_path = self.path / "stop"
        self.scale_path = self.path / "workers"

    def check_new(self) -> None:
        """Raise `RunError` if a run with this name has begun."""
        if self.journal_path.exists():
            raise RunError(
                f"{self.path}: a run with this name exists; resume it with `es-service resume {self.name}`, "
                "or choose another with --name"
            )

    def create(self) -> None:
        """Make the directories of a new run, if this can be written at all."""
        self.check_new()
        try:
            self.keyframes_path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot write here ({error.strerror}); set deployment.runs_dir or --runs-dir to a "
                "directory that can be written"
            ) from error

    def write_config(self, config: RunConfig) -> None:
        """Replace config.json; for whoever holds the journal's lock."""
        try:
            write_atomically(self.config_path, (config.model_dump_json(indent=2) + "\n").encode())
        except OSError as error:
            raise RunError(f"{self.config_path}: cannot be written: {error.strerror}") from error

    def read_config(self) -> RunConfig:
        """The config as resolved at the last start; raises `RunError` if there is no such run or it is damaged."""
        try:
            return RunConfig.model_validate_json(self.config_path.read_bytes())
        except FileNotFoundError as error:
            raise RunError(
                f"{self.path}: no run of this name; `es-service status` lists those in {self.path.parent}"
            ) from error
        except (OSError, ValidationError) as error:
            reason = explain(error) if isinstance(error, ValidationError) else error.strerror
            raise RunError(f"{self.config_path}: cannot be read as a config; put back a copy: {reason}") from error

    def holder(self) -> str | None:
        """Who is writing the journal now on this machine, or None."""
        try:
            lock = os.open(self.path / LOCK_FILE, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            return os.pread(lock, 200, 0).decode(errors="replace").strip() or "another process"
        finally:
            os.close(lock)

    def log_metrics(self, kind: str, **values: Any) -> None:
        """Append one line to metrics.jsonl."""
        _append(self.metrics_path, {"kind": kind, "time": round(time.time(), 3), **values})

    def ask_scale(self, workers: int) -> None:
        """Leave word for the head how many workers to keep."""
        partial = self.scale_path.with_suffix(".tmp")
        partial.write_text(f"{workers}\n")
        partial.replace(self.scale_path)

    def take_scale(self) -> int | None:
        """The number that `ask_scale` left since the last call, if any."""
        taken = self.scale_path.with_suffix(".taken")
        try:
            self.scale_path.replace(taken)  # the next request is another file
        except FileNotFoundError:
            return None
        text = taken.read_text().strip()
        taken.unlink()
        return int(text) if text.isdecimal() else None

    def log_event(self, kind: str, **values: Any) -> None:
        """Append one line to events.jsonl."""
        _append(self.events_path, {"kind": kind, "time": round(time.time(), 3), **values})

    def log_sample(self, **values: Any) -> None:
        """Append one line to samples.jsonl."""
        _append(self.samples_path, {"kind": "sample", "time": round(time.time(), 3), **values})

    def metrics(self) -> Iterator[dict[str, Any]]:
        """Lines of metrics.jsonl; where a generation was evaluated again after a crash, both lines."""
        return (row for row in _lines(self.metrics_path) if isinstance(row.get("generation"), int))

    def events(self) -> Iterator[dict[str, Any]]:
        """Lines of events.jsonl."""
        return _lines(self.events_path)

    def samples(self) -> Iterator[dict[str, Any]]:
        """Lines of samples.jsonl: text that the model of a generation wrote."""
        return (row for row in _lines(self.samples_path) if isinstance(row.get("generation"), int))


def _append(path: Path, values: dict[str, Any]) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")
    except OSError as error:
        raise RunError(
            f"{path}: cannot be written ({error.strerror}); make room or put the directory back, then resume the run"
        ) from error


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if (values := parse_line(line)) is not None:
                yield values


def parse_line(line: str) -> dict[str, Any] | None:
    """The values of one line of a side file, or None if it is damaged."""
    start = max(line.rfind('{"kind": '), 0)  # a crash may leave half a line, without its end, before the next
    try:
        values = json.loads(line[start:])
    except json.JSONDecodeError:
        return None
    return values if isinstance(values, dict) and isinstance(values.get("kind"), str) else None
