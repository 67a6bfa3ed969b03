"""Runs on the session's cluster, and what tests of them share."""

from __future__ import annotations

import re
import time

from es_service.directory import RunDirectory
from es_service.journal import scan
from es_service.launch import launch

GENERATIONS = 12


def finish(handle, on_beat=lambda status: None):
    """Follow a run to its end."""
    while (end := handle.wait(0.05)) is None:
        on_beat(handle.heartbeat())
    return end


def run(config, name, address, on_beat=lambda status: None):
    directory = RunDirectory(config.deployment.runs_dir, name)
    with launch(config, directory, resume=False, address=address) as (handle, _):
        assert finish(handle, on_beat).reason == "goal"
    return directory.journal_path.read_bytes()


def worker_pids(directory):
    """Process ids of the workers that have started, from the run's own events."""
    return pids(event for event in directory.events() if event["kind"] == "worker_ready")


def pids(ready):
    """Process ids in events that say that workers are ready."""
    return [int(re.search(r"pid (\d+)", event["about"]).group(1)) for event in ready]


def wait_for(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.05)


def commits(directory):
    return len(scan(directory.journal_path).commits) if directory.journal_path.exists() else 0


def drain(address, node, seconds=60):
    """The notice that a cloud gives before it takes a spot machine away, as `ray drain-node` gives it."""
    from ray._raylet import GcsClient
    from ray.core.generated import autoscaler_pb2

    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why = GcsClient(address=address).drain_node(
        node.node_id, reason, "test", int(1000 * (time.time() + seconds))
    )
    assert accepted, why
