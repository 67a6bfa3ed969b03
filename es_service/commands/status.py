"""`es-service status`: one run, or all, read from their directories; the runs notice nothing."""

from __future__ import annotations

import textwrap
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from es_service import journal
from es_service.commands.display import bits, print_json, print_table
from es_service.commands.journal import bits_per_member, wire_bits_per_member
from es_service.commands.sources import directory_of
from es_service.directory import RunDirectory
from es_service.errors import ConfigError, ServiceError
from es_service.launch import look
from es_service.problem import figure_of

__all__ = ["run", "run_status"]

_SPEED_COMMITS = 10
"""Newest generations over which bytes/s is taken."""


def run(arguments: Namespace) -> int:
    """One run in detail, or a table of all."""
    if arguments.address:
        listed = look(arguments.address, arguments.name, run_status)
    elif arguments.name is not None:
        listed = [run_status(directory_of(arguments))]
    else:
        runs_dir = arguments.runs_dir or Path("runs")
        listed = [_status_or_error(runs_dir, name) for name in _names(runs_dir)]
    if arguments.name is not None:
        values = listed[0]
        print_json(values) if arguments.json else _print_one(values)
        return 0
    if arguments.json:
        print_json(listed)
    elif listed:
        _print_all(listed)
    elif arguments.address:
        print(f"no runs under way on {arguments.address}; those that ended are listed on the head's node")
    else:
        print(f"no runs in {runs_dir}; start one with `es-service train egg-laptop`, or give --runs-dir")
    return 0


def run_status(directory: RunDirectory) -> dict[str, Any]:
    """The state of one run as JSON values; raises `RunError` or `JournalError` if it cannot be read."""
    config = directory.read_config()
    holder = directory.holder()  # before the scan: a run that ends in between must not read as cut off
    contents = journal.scan(directory.journal_path)
    commits = len(contents.commits)
    rows = list(directory.metrics())
    trained = _by_generation(rows, "commit", commits - 1)
    evaluated = _by_generation(rows, "evaluation", commits)
    last = trained[-1] if trained else {}
    happened = list(directory.events())
    ended = [event for event in happened if event["kind"] in ("finished", "failed")]
    stored = _by_generation(rows, "stored", commits)
    sample = _newest_sample(directory, commits)
    goal = config.deployment.generations
    return {
        "name": directory.name,
        "path": str(directory.path),
        "state": _state(holder, contents, goal, ended),
        "holder": holder,
        "reason": ended[-1]["reason"] if ended and holder is None else None,
        "generation": commits,
        "goal": goal,
        "bits_per_byte": last.get("bits_per_byte"),
        "held_out": evaluated[-1]["bits_per_byte"] if evaluated else None,
        "accuracy": evaluated[-1].get("accuracy") if evaluated else None,
        "unit": figure_of(config),
        "held_out_generation": evaluated[-1]["generation"] if evaluated else None,
        "bytes_per_second": _speed(trained[-_SPEED_COMMITS:]),
        "bits_per_member": bits_per_member(contents),
        "wire_bits_per_member": wire_bits_per_member(directory, commits),
        "workers": last.get("workers"),
        "sample": sample,
        "journal_bytes": contents.valid_bytes,
        "torn_bytes": contents.torn_bytes,
        "updated": last.get("time"),
        "storage_url": config.deployment.storage_url or None,
        "stored_generation": stored[-1]["generation"] if stored else None,
        "storage_problem": _storage_problem(happened),
    }


def _state(holder: str | None, contents: journal.JournalContents, goal: int, ended: Sequence[dict[str, Any]]) -> str:
    if holder is not None:
        return "running"
    if contents.close is not None:
        return "finished" if len(contents.commits) >= goal else "stopped"
    return "failed" if ended and ended[-1]["kind"] == "failed" else "interrupted"


def _by_generation(rows: Sequence[dict[str, Any]], kind: str, last: int) -> list[dict[str, Any]]:
    """Rows of a kind in order of generation; of one that was repeated after a crash, the newest."""
    found = {row["generation"]: row for row in rows if _is(row, kind) and row["generation"] <= last}
    return [found[generation] for generation in sorted(found)]


def _newest_sample(directory: RunDirectory, last: int) -> dict[str, Any] | None:
    found = [row for row in directory.samples() if row["generation"] <= last and isinstance(row.get("text"), str)]
    return {"generation": found[-1]["generation"], "text": found[-1]["text"]} if found else None


_FIELDS = {"commit": {"seconds", "model_bytes"}, "evaluation": {"bits_per_byte"}, "stored": {"bytes"}}


def _is(row: dict[str, Any], kind: str) -> bool:
    """A whole row of this kind: a damaged file may hold others."""
    return row["kind"] == kind and row.keys() >= _FIELDS[kind]


def _storage_problem(happened: Sequence[dict[str, Any]]) -> str | None:
    """Why the newest files are not in storage, if they are not."""
    news = [event for event in happened if event["kind"] in ("storage_failed", "storage_recovered", "resumed")]
    return news[-1].get("reason") if news and news[-1]["kind"] == "storage_failed" else None


def _speed(rows: Sequence[dict[str, Any]]) -> float | None:
    seconds = sum(row["seconds"] for row in rows)
    return round(sum(row["model_bytes"] for row in rows) / seconds, 1) if seconds else None


def _names(runs_dir: Path) -> list[str]:
    if not runs_dir.is_dir():
        return []
    return sorted(path.name for path in runs_dir.iterdir() if (path / "journal.bin").is_file())


def _status_or_error(runs_dir: Path, name: str) -> dict[str, Any]:
    """One damaged run must not hide the others."""
    try:
        return run_status(RunDirectory(runs_dir, name))
    except ConfigError:
        return {"name": name, "state": "not a run", "error": "its directory's name cannot be that of a run"}
    except ServiceError as error:
        return {"name": name, "state": "damaged", "error": str(error)}


def _print_all(listed: Sequence[dict[str, Any]]) -> None:
    columns = ("run", "state", "generation", "training", "held-out", "loss in", "speed", "bits/member")
    rows = []
    for values in listed:
        if "error" in values:
            rows.append((values["name"], values["state"], *"------"))
            continue
        loss, held_out, votes = (bits(values[key]) for key in ("bits_per_byte", "held_out", "bits_per_member"))
        generation = f"{values['generation']}/{values['goal']}"
        known = (values["name"], values["state"], generation, loss, held_out, values["unit"])
        rows.append((*known, _rate(values), votes))
    print_table(columns, rows)
    for values in listed:
        if "error" in values:
            print(f"{values['name']}: {values['error']}")


def _rate(values: dict[str, Any]) -> str:
    speed = values["bytes_per_second"]
    return "-" if speed is None else f"{speed:,.0f} {values['unit'].removeprefix('bits/')}s/s"


def _print_one(values: dict[str, Any]) -> None:
    state = values["state"]
    if state == "running":
        state += f", by {values['holder']}"
    elif values["reason"]:
        state += f": {values['reason']}"
    held_out = bits(values["held_out"])
    if values["held_out"] is not None:
        held_out += f" {values['unit']} at generation {values['held_out_generation']}"
    if values["accuracy"] is not None:
        held_out += f", accuracy {values['accuracy']:.1%}"
    workers = "-" if values["workers"] is None else values["workers"]
    lines = {
        "run": f"{values['name']}, in {values['path']}",
        "state": state,
        "generation": f"{values['generation']}/{values['goal']}",
        "training": f"{bits(values['bits_per_byte'])} {values['unit']}",
        "held-out": held_out,
        "speed": f"{_rate(values)}; workers: {workers}",
        "bits a member": f"{bits(values['bits_per_member'])} of votes, "
        f"{bits(values['wire_bits_per_member'])} on the wire (every byte sent)",
        "journal": f"{values['journal_bytes']:,} bytes",
    }
    if values["torn_bytes"] and values["state"] != "running":
        lines["journal"] += f", and a torn tail of {values['torn_bytes']} bytes that resume will cut"
    if values["storage_url"]:
        upto = "nothing" if values["stored_generation"] is None else f"up to generation {values['stored_generation']}"
        failing = f"; failing: {values['storage_problem']}" if values["storage_problem"] else ""
        lines["storage"] = f"{values['storage_url']}, {upto}{failing}"
    for name, text in lines.items():
        print(f"{name:<14}{text}")
    if values["sample"] is not None:
        print(f"text written at generation {values['sample']['generation']}:")
        print(textwrap.indent(values["sample"]["text"], "  "))
    if values["state"] in ("stopped", "failed", "interrupted"):
        print(f"go on with: es-service resume {values['name']}")
