"""What a driver shows while it waits for a run, and what it does at Ctrl-C."""

from __future__ import annotations

import sys
import time
from typing import Any

from es_service.errors import RunError
from es_service.events import Finish
from es_service.handles import Handle
from es_service.telemetry import Status

__all__ = ["follow"]

_BEAT_SECONDS = 0.5
_LINE_SECONDS = 5.0


def follow(handle: Handle) -> Finish:
    """Beat and show progress until the run ends. The first Ctrl-C stops it at its last commit, a second gives up."""
    show = _Bar() if sys.stdout.isatty() else _Lines()
    asked, alarm = 0, ""
    with show:
        while True:
            try:
                finish = handle.wait(_BEAT_SECONDS)
                if finish is not None:
                    show.show(handle.heartbeat(), last=True)
                    return finish
                status = handle.heartbeat()
                show.show(status)
                if status.alarm != alarm:
                    alarm = status.alarm
                    if alarm:
                        show.note(f"warning: {alarm}")
            except KeyboardInterrupt:
                asked += 1
                if asked > 1:
                    raise RunError("gave up waiting for the head; what was committed is safe: resume the run") from None
                show.note("stopping at the last commit; press Ctrl-C again to give up waiting")
                handle.stop("interrupted")


def figures(status: Status) -> str:
    """The numbers of a status in one line."""
    parts = [f"generation {status.generation}/{status.goal}"]
    if status.bits_per_byte is not None:
        parts.append(f"{status.bits_per_byte:.3f} {status.unit}")
    if status.held_out is not None:
        parts.append(f"held-out {status.held_out:.3f}")
    if status.accuracy is not None:
        parts.append(f"accuracy {status.accuracy:.1%}")
    if status.bytes_per_second is not None:
        parts.append(f"{status.bytes_per_second:,.0f} {status.unit.removeprefix('bits/')}s/s")
    if status.bits_per_member is not None:
        parts.append(f"{status.bits_per_member:.2f} bits/member")
    parts.append(f"{status.workers} worker{'' if status.workers == 1 else 's'}")
    if status.unplaced:
        parts.append(f"{status.unplaced} waiting for a place")
    if status.storage:
        parts.append(f"NOT STORED: {status.storage}")
    return ", ".join(parts)


class _Lines:
    """Plain lines, for logs: one every few seconds, and one for each held-out evaluation."""

    def __init__(self) -> None:
        self._shown: tuple[int, int | None] | None = None
        self._at = 0.0

    def __enter__(self) -> _Lines:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def show(self, status: Status, last: bool = False) -> None:
        now, key = time.monotonic(), (status.generation, status.held_out_generation)
        evaluated = self._shown is None or key[1] != self._shown[1]
        if key != self._shown and (last or evaluated or now - self._at > _LINE_SECONDS):
            self._shown, self._at = key, now
            print(figures(status), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)


class _Bar:
    """A rich progress bar."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns: tuple[Any, ...] = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), Remaining(), transient=False)
        self._task = self._progress.add_task("starting", total=None)

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, status: Status, last: bool = False) -> None:
        text = figures(status).partition(", ")[2]
        self._progress.update(self._task, total=status.goal, completed=status.generation, description=text)
        if last:
            self._progress.refresh()

    def note(self, text: str) -> None:
        self._progress.console.print(text)
