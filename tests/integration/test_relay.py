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
    """A pool that relays to any number of workers; it notes how many messages each call to a relay carries.

    It tells of its first workers when all are there: else those of the head's node might do the whole run.
    """
    make_ray_pool = launch_module.make_ray_pool

    def make(config, corpus):
        from es_service import pools
        from es_service.pools import Ready
        from workers.relay import Branch

        pools.RELAYED_WORKERS = pools.COPIED_BYTES = 0
        pool = make_ray_pool(config, corpus)
        call = Branch.call

        def noted(branch):
            carried = len(branch._parcels)
            if (ref := call(branch)) is not None:
                with (directory / "calls").open("a") as file:
                    file.write(f"{carried}\n")
            return ref

        Branch.call = noted
        poll, early = pool.poll, []

        def together(timeout):
            events = poll(timeout)
            if len(early) >= WORKERS:
                return events
            early.extend(event for event in events if isinstance(event, Ready))
            others = [event for event in events if not isinstance(event, Ready)]
            return others + early if len(early) >= WORKERS else others

        pool.poll = together
        return pool

    return make


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """How many messages each call to a relay carried."""
    monkeypatch.setattr(launch_module, "make_ray_pool", relayed(tmp_path))
    return lambda: [int(line) for line in (tmp_path / "calls").read_text().splitlines()]


def relay_pids():
    """Relays of this machine, by the title that Ray gives a process."""
    titles = {path.parent.name: path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(pid) for pid, title in titles.items() if title.startswith(b"ray::Relay")]


def test_messages_for_a_node_go_together(make_config, ray_address, undisturbed, calls):
    assert run(make_config(workers=WORKERS, sliced_updates="always"), "relayed", ray_address) == undisturbed
    assert max(calls()) > 1
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
