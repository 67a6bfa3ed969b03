"""What the page shows of a run, built from its facts, and what of it a browser has not seen. No files, no threads."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from es_service.page.curve import Curve, Point
from es_service.tail import Facts

__all__ = ["Board", "Seen"]

Row = dict[str, Any]

_KEPT_EVENTS = 300
_KEPT_SAMPLES = 500
_KEPT_WORKERS = 500
_SPEED_COMMITS = 10
_FAULTS = {"fell", "malformed", "mismatch", "diverged"}
_BASELINES = ("unigram", "bigram", "gzip")
_COMMIT = ("seconds", "bits_per_byte", "model_bytes", "votes_plus", "votes_minus", "units")


@dataclass(slots=True)
class Seen:
    """How far one browser has read."""

    curves: dict[str, tuple[int, int]] = field(default_factory=dict)
    logs: dict[str, int] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)


class _Log:
    """The newest rows of a list that only grows."""

    def __init__(self, kept: int) -> None:
        self.rows: deque[Row] = deque(maxlen=kept)
        self.total = 0

    def add(self, row: Row) -> None:
        self.rows.append(row)
        self.total += 1

    def after(self, seen: int) -> list[Row]:
        rows = list(self.rows)
        return rows[max(0, len(rows) - (self.total - seen)) :]


class Board:
    """`about` is what is known from the config: name, goal, and words about the model. Not for two threads at once."""

    def __init__(self, about: Row) -> None:
        self._about = about
        self._baselines: dict[str, float] | None = None
        self._state: Row = {"state": "starting", "reason": ""}
        self._figures: Row = {}
        self._ended: Row | None = None
        self._workers: dict[str, Row] = {}
        self._commits, self._held_out, self._accuracy = Curve(), Curve(), Curve()
        self._events, self._samples = _Log(_KEPT_EVENTS), _Log(_KEPT_SAMPLES)
        self._speed: deque[tuple[float, float]] = deque(maxlen=_SPEED_COMMITS)

    # What has happened.

    def take(self, facts: Facts) -> None:
        """New facts of the run."""
        for row in facts.metrics:
            self._on_metric(row)
        for row in facts.events:
            self._on_event(row)
        for name, row in (facts.workers or {}).items():
            if name in self._workers and isinstance(row, dict):
                figures = {key: row[key] for key in ("leases", "bytes_per_second") if _is_number(row.get(key))}
                self._workers[name] |= figures
        for row in facts.samples:
            if isinstance(row.get("text"), str):
                self._samples.add({"generation": row["generation"], "text": row["text"]})

    def set_baselines(self, values: dict[str, float]) -> None:
        """Bits/byte of simple models on the held-out text."""
        self._baselines = {name: round(value, 4) for name, value in values.items()}

    def set_running(self, running: bool) -> bool:
        """Whether somebody holds the run's journal now; true if that changes the state."""
        before = self._state
        if running:
            self._state = {"state": "running", "reason": ""}
        elif self._ended is None:
            self._state = {"state": "interrupted" if self._events.total else "starting", "reason": ""}
        else:
            reason = str(self._ended.get("reason", ""))
            self._state = {"state": _ending(self._ended, self._about["goal"]), "reason": reason}
        return self._state != before

    def _on_metric(self, row: Row) -> None:
        generation = row["generation"]
        if row["kind"] == "commit" and all(_is_number(row.get(name)) for name in _COMMIT):
            self._commits.add(generation, [row[name] for name in _COMMIT])
            self._speed.append((row["seconds"], row["model_bytes"]))
            self._figures |= self._commit_figures(row)
        elif row["kind"] == "evaluation" and _is_number(row.get("bits_per_byte")):
            self._held_out.add(generation, [row["bits_per_byte"]])
            self._figures |= {"held_out": row["bits_per_byte"], "held_out_generation": generation}
            if _is_number(row.get("accuracy")):
                self._accuracy.add(generation, [row["accuracy"]])
                self._figures["accuracy"] = row["accuracy"]
        elif row["kind"] == "baselines" and all(_is_number(row.get(name)) for name in _BASELINES):
            self.set_baselines({name: row[name] for name in _BASELINES})

    def _commit_figures(self, row: Row) -> Row:
        seconds, model_bytes = (sum(values) for values in zip(*self._speed, strict=True))
        names = ("bits_per_byte", "bits_per_member", "wire_bits_per_member", "workers", "time")
        left = max(0, self._about["goal"] - row["generation"] - 1)
        return {
            "generation": row["generation"] + 1,
            "bytes_per_second": round(model_bytes / seconds, 1) if seconds else None,
            "seconds_left": round(left * seconds / len(self._speed), 1),
            **{name: row[name] for name in names if _is_number(row.get(name))},
        }

    def _on_event(self, row: Row) -> None:
        self._events.add({name: row[name] for name in _EVENT_FIELDS if _is_plain(row.get(name))})
        if row["kind"] in ("finished", "failed"):
            self._ended = row
        elif row["kind"] == "resumed":
            self._ended = None
            self._workers.clear()
        worker = row.get("worker")
        if isinstance(worker, str) and worker:
            self._on_worker(worker, row)

    def _on_worker(self, name: str, row: Row) -> None:
        known = self._workers.setdefault(
            name, {"name": name, "state": "ready", "about": "", "since": None, "faults": 0}
        )
        if row["kind"] == "worker_ready":
            known |= {"state": "ready", "about": str(row.get("about", "")), "since": row.get("time")}
        elif row["kind"] == "quarantined":
            known |= {"state": "quarantined", "about": str(row.get("detail", "")), "since": row.get("time")}
        elif row["kind"] == "worker_gone" and known["state"] != "quarantined":  # which is why it went
            known |= {"state": "gone", "about": str(row.get("reason", "")), "since": row.get("time")}
        elif row["kind"] in _FAULTS:
            known["faults"] += 1
        if len(self._workers) > _KEPT_WORKERS:
            gone = next((n for n, worker in self._workers.items() if worker["state"] != "ready"), None)
            self._workers.pop(gone or next(iter(self._workers)))

    # What a browser has not seen.

    def news(self, seen: Seen) -> Row:
        """What changed since the last call with `seen`, as JSON values; empty if nothing did."""
        parts: dict[str, Any] = {
            "about": self._about,
            "baselines": self._baselines,
            "now": self._state | self._figures,
            "workers": list(self._workers.values()),
        }
        changed: Row = {}
        for name, value in parts.items():
            text = json.dumps(value)
            if seen.parts.get(name) != text:
                seen.parts[name] = text
                changed[name] = value
        curves = {"commits": self._commits, "held_out": self._held_out, "accuracy": self._accuracy}
        for name, curve in curves.items():
            if (rows := _unseen(seen, name, curve, _commit_point if name == "commits" else _mean_point)) is not None:
                changed[name] = rows
        for name, log in (("events", self._events), ("samples", self._samples)):
            if new := log.after(seen.logs.get(name, 0)):
                seen.logs[name] = log.total
                changed[name] = new
        return changed


_EVENT_FIELDS = ("kind", "time", "worker", "generation", "detail", "reason", "about", "bytes")


def _unseen(seen: Seen, name: str, curve: Curve, wire: Callable[[Point], Sequence[float]]) -> Row | None:
    version, count = seen.curves.get(name, (-1, 0))
    reset = version != curve.version
    first = 0 if reset else count
    seen.curves[name] = (curve.version, len(curve.points))
    if not reset and first == len(curve.points):
        return None
    return {"reset": reset, "rows": [wire(point) for point in curve.points[first:]]}


def _commit_point(point: Point) -> list[float]:
    """Generation, bits/byte, model-bytes/s, and the shares of votes +1, 0 and -1."""
    seconds, bits, model_bytes, plus, minus, units = point.sums
    shares = (plus / units, (units - plus - minus) / units, minus / units) if units else (0.0, 0.0, 0.0)
    speed = model_bytes / seconds if seconds else 0.0
    return [point.generation, round(bits / point.count, 4), round(speed), *(round(share, 4) for share in shares)]


def _mean_point(point: Point) -> list[float]:
    return [point.generation, round(point.sums[0] / point.count, 4)]


def _ending(row: Row, goal: int) -> str:
    if row["kind"] == "failed":
        return "failed"
    generation = row.get("generation")
    return "finished" if isinstance(generation, int) and generation >= goal else "stopped"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value)
