"""`es-service journal`: what a run's journal holds."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator
from statistics import fmean
from typing import Any

from es_service import journal
from es_service.commands.display import bits, print_json
from es_service.commands.sources import directory_of
from es_service.directory import RunDirectory
from es_service.errors import RunError
from es_service.problem import algorithm_of
from es_service.specs import spans

__all__ = ["bits_per_member", "run", "summary", "wire_bits_per_member"]


def run(arguments: Namespace) -> int:
    """Reads the journal itself, so it works beside a run under way."""
    directory = directory_of(arguments)
    if not directory.journal_path.exists():
        runs_dir = directory.path.parent
        raise RunError(f"{directory.path}: no journal here; `es-service status` lists the runs in {runs_dir}")
    values = summary(directory)
    if arguments.json:
        print_json(values)
    else:
        _print(values)
    return 0


def summary(directory: RunDirectory) -> dict[str, Any]:
    """The figures as JSON values; raises `JournalError` if the journal is damaged before its tail."""
    contents = journal.scan(directory.journal_path)
    config = next(spans(contents))[2]
    return {
        "name": directory.name,
        "path": str(directory.journal_path),
        "commits": len(contents.commits),
        "generations": len(contents.commits),
        "bytes": contents.valid_bytes + contents.torn_bytes,
        "content_hash": contents.content_hash,
        "closed": contents.close is not None,
        "torn_bytes": contents.torn_bytes,
        "torn": contents.torn,
        "bits_per_member": bits_per_member(contents),
        "wire_bits_per_member": wire_bits_per_member(directory, len(contents.commits)),
        "votes": _votes(contents),
        "first_digest": {"generation": 0, "digest": f"{contents.header.digest:016x}"},
        "last_digest": _last_digest(contents),
        "spec_hash": config.spec_hash,
        "spec": contents.header.spec,
        "changes": [{"generation": change.generation, "spec": change.spec} for change in contents.changes],
    }


def bits_per_member(contents: journal.JournalContents) -> float | None:
    """Vote payload in bits over members, all generations together; None before the first commit."""
    members = sum((stop - first) * config.population for first, stop, config in spans(contents))
    return 8 * int(contents.commits.record_bytes.sum()) / members if members else None


def wire_bits_per_member(directory: RunDirectory, commits: int) -> float | None:
    """Mean over the generations that metrics.jsonl tells of; None if it tells of none."""
    rows = (row for row in directory.metrics() if row.get("kind") == "commit" and row["generation"] < commits)
    sent = {row["generation"]: row["wire_bits_per_member"] for row in rows}
    return fmean(sent.values()) if sent else None


def _votes(contents: journal.JournalContents) -> dict[str, int]:
    plus = minus = total = 0
    for first, stop, config in spans(contents):
        algorithm = algorithm_of(config)
        for commit in contents.commits.between(first, stop):
            votes_Q = algorithm.votes(commit.record)
            plus, minus = plus + int((votes_Q > 0).sum()), minus + int((votes_Q < 0).sum())
            total += votes_Q.size
    return {"plus": plus, "zero": total - plus - minus, "minus": minus}


def _last_digest(contents: journal.JournalContents) -> dict[str, Any]:
    """The newest digest in the file; only a close record has that of the last generation."""
    generation, digest = 0, contents.header.digest
    if contents.close is not None:
        generation, digest = contents.close.generation, contents.close.digest
    elif len(contents.commits):
        generation = len(contents.commits) - 1
        digest = int(contents.commits.fields["digest"][-1])
    return {"generation": generation, "digest": f"{digest:016x}"}


def _print(values: dict[str, Any]) -> None:
    torn = values["torn_bytes"]
    votes = values["votes"]
    count = max(1, sum(votes.values()))
    shares = ", ".join(f"{votes[k]:,} {sign} ({votes[k] / count:.1%})" for k, sign in zip(votes, "+0-", strict=True))
    ends = (values["first_digest"], values["last_digest"])
    digests = (f"{end['digest']} at generation {end['generation']}" for end in ends)
    lines = {
        "journal": f"{values['path']}, {values['bytes']:,} bytes",
        "content hash": values["content_hash"],
        "commits": f"{values['commits']:,}",
        "end": "closed" if values["closed"] else "open: the run goes on, was stopped hard or can be resumed",
        "torn tail": f"{torn} bytes ({values['torn']}); cut when the run is resumed" if torn else "none",
        "bits a member": f"{bits(values['bits_per_member'])} in the journal, "
        f"{bits(values['wire_bits_per_member'])} on the wire (every byte sent)",
        "votes": shares,
        "digests": ", ".join(digests),
        "spec hash": values["spec_hash"],
    }
    for name, text in lines.items():
        print(f"{name:<14}{text}")
    for field, value in _flat(values["spec"], ""):
        print(f"  {field} = {json.dumps(value)}")


def _flat(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
