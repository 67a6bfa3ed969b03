"""How commands show tables, JSON and progress: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["bits", "print_json", "print_table", "progress"]

_LINE_SECONDS = 5.0


def print_json(values: Any) -> None:
    """Indented JSON."""
    print(json.dumps(values, indent=2, allow_nan=False))


def bits(value: float | None, places: int = 3) -> str:
    """A figure in bits, or a dash where it is not known."""
    return "-" if value is None else f"{value:.{places}f}"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """One line for each row; the last column may be long."""
    if sys.stdout.isatty():
        _print_rich_table(columns, rows)
        return
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that shows how many of `total` are done: a bar on a terminal, else a line every few seconds."""
    if not sys.stdout.isatty():
        yield _lines(what, total)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


def _lines(what: str, total: int) -> Callable[[int], None]:
    shown = time.monotonic()

    def show(done: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > _LINE_SECONDS:
            shown = time.monotonic()
            print(f"{what}: {done}/{total}", flush=True)

    return show
