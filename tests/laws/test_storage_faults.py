"""A disk that fills up, goes away or is slow while a run goes on: a clear error, and a resume as if nothing had been.

The journal alone, at every byte and bit, is in tests/unit/test_journal.py and test_journal_writer.py.
"""

from __future__ import annotations

import errno
import os
import re
import time

import pytest
from harness import train

from es_service.directory import RunDirectory
from es_service.errors import JournalError, KeyframeError, RunError
from es_service.session import open_session
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def from_generation(config, name, generation, break_it):
    """Run; the disk breaks when leases of this generation are given out. The directory, and what the run raised."""
    from workers.evaluator import Evaluator

    class Breaks(Evaluator):
        def evaluate(self, lease, *more):
            if lease.generation == generation:
                break_it()
            return super().evaluate(lease, *more)

    def make(config, corpus):
        return LocalPool({"w": Breaks(config, corpus.train, ReferenceOps())})

    directory = RunDirectory(config.deployment.runs_dir, name)
    with pytest.raises((JournalError, KeyframeError, RunError)) as raised:
        open_session(config, directory, False, ReferenceOps(), make).run()
    return directory, str(raised.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("os.pwrite", r"a record of \d+ bytes was not written: No space left.*free space on its disk, then resume"),
        ("os.fsync", r"No space left on device.*free"),
        ("pathlib.Path.open", r"No space left on device.*(make room|free or repair|free space)"),
    ],
)
@pytest.mark.parametrize("generation", [0, 2, 4])
def test_a_disk_that_fills_up(tiny_config, monkeypatch, call, message, generation):
    config = tiny_config()
    name = f"full-{call}-{generation}"
    with monkeypatch.context() as patch:
        directory, said = from_generation(config, name, generation, lambda: patch.setattr(call, full))
    assert re.search(message, said), said
    assert train(config, directory=directory).journal == train(config).journal


def test_a_directory_that_goes_away_and_comes_back(tiny_config):
    config = tiny_config()
    directory = RunDirectory(config.deployment.runs_dir, "away")
    elsewhere = directory.path.with_name("elsewhere")

    def take_away():
        if directory.path.exists():
            directory.path.rename(elsewhere)

    _, said = from_generation(config, "away", 2, take_away)
    assert re.search("put (its|the) directory back", said), said
    assert "resume" in said
    elsewhere.rename(directory.path)
    assert train(config, directory=directory).journal == train(config).journal


def test_a_slow_disk_changes_nothing_and_is_measured(tiny_config, monkeypatch):
    config = tiny_config()
    fsync = os.fsync
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: (time.sleep(0.05), fsync(fd))[1])
        slow = train(config)
    assert slow.journal == train(config).journal
    seconds = [row["fsync_seconds"] for row in slow.directory.metrics() if row["kind"] == "commit"]
    assert len(seconds) == 5
    assert min(seconds) >= 0.05
