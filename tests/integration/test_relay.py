"""Workers that the head reaches through one process on their node: the same journal, whatever dies there."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from rays import finish, run, wait_for, worker_pids

from es_service import launch as launch_module
from es_service.directory import RunDirectory
from es_service.launch import launch

pytestmark = pytest.mark.ray

WORKERS = 6


def relayed(directory):
    """A pool that relays to any number of workers; it notes each call to a relay, and the answers that it brought."""
    make_ray_pool = launch_module.make_ray_pool

    def make(config, corpus):
        from es_service import pools

        pools.RELAYED_WORKERS = pools.COPIED_BYTES = 0
        pool = make_ray_pool(config, corpus)
        collected = pool._collected

        def noted(ref, branch):
            events = collected(ref, branch)
            with (directory / "calls").open("a") as file:
                file.write(" ".join(type(event).__name__ for event in events) + "\n")
            return events

        pool._collected = noted
        return pool

    return make


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What each call to a relay brought: names of events."""
    monkeypatch.setattr(launch_module, "make_ray_pool", relayed(tmp_path))
    return lambda: [line.split() for line in (tmp_path / "calls").read_text().splitlines()]


def relay_pids():
    """Relays of this machine, by the title that Ray gives a process."""
    titles = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(pid) for pid, title in titles.items() if title.startswith(b"ray::Relay")]


def test_answers_of_a_node_come_together(make_config, ray_address, undisturbed, calls):
    assert run(make_config(workers=WORKERS, sliced_updates="always"), "relayed", ray_address) == undisturbed
    assert max(events.count("Reply") for events in calls()) > 1
    wait_for(lambda: not relay_pids())


@pytest.mark.parametrize("victim", ["worker", "relay"])
def test_what_dies_on_a_relayed_node_is_replaced(make_config, ray_address, undisturbed, calls, victim):
    config = make_config(workers=WORKERS)
    directory = RunDirectory(config.deployment.runs_dir, victim)
    killed = []

    def kill(status):
        if status.generation >= 2 and not killed:
            killed.append(relay_pids()[0] if victim == "relay" else worker_pids(directory)[-1])
            os.kill(killed[0], signal.SIGKILL)

    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        assert finish(handle, kill).reason == "goal"
    assert directory.journal_path.read_bytes() == undisturbed
    gone = [event["worker"] for event in directory.events() if event["kind"] == "worker_gone"]
    assert killed
    assert len(gone) == 1 if victim == "worker" else len(gone) >= 2
