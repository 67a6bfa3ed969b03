"""Workers that come and go while a generation is open: the result does not change."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rays import commits, finish, run, wait_for, worker_pids

from es_service import cli
from es_service.directory import RunDirectory
from es_service.launch import launch

pytestmark = pytest.mark.ray


def kinds(directory):
    return [event["kind"] for event in directory.events()]


def test_workers_are_added_and_removed_down_to_none_and_back(make_config, ray_address, undisturbed):
    config = make_config(workers=1)
    directory = RunDirectory(config.deployment.runs_dir, "elastic")
    plan = iter([(2, 3), (4, 1), (6, 0), (6, 2)])
    step = next(plan)

    def scale(status):
        nonlocal step
        if step is None or status.generation < step[0]:
            return
        if step[1] == 2 and status.workers:  # until they are all gone
            return
        directory.ask_scale(step[1])
        step = next(plan, None)

    assert run(config, "elastic", ray_address, scale) == undisturbed
    assert step is None
    assert [event["workers"] for event in directory.events() if event["kind"] == "scaled"] == [3, 1, 0, 2]
    assert len(worker_pids(directory)) == 5
    assert kinds(directory).count("draining") == 3
    assert "fell" not in kinds(directory)


def test_scale_from_the_command_line_and_through_the_head(make_config, ray_address, undisturbed):
    config = make_config(workers=1)
    directory = RunDirectory(config.deployment.runs_dir, "told")
    flags = ["told", "--runs-dir", str(directory.path.parent)]
    told = []

    def tell(status):
        if status.generation >= 2 and not told:
            told.append(cli.main(["scale", *flags, "--workers", "2", "--address", ""]))
            command = [sys.executable, "-m", "es_service", "scale", *flags, "--workers", "3", "--address", ray_address]
            told.append(subprocess.run(command, check=False).returncode)

    assert run(config, "told", ray_address, tell) == undisturbed
    assert told == [0, 0]
    assert cli.main(["scale", *flags, "--workers", "2", "--address", ""]) != 0, "it is not under way"
    assert [event["workers"] for event in directory.events() if event["kind"] == "scaled"][-1:] == [3]


def test_a_worker_that_the_cluster_cannot_place_is_reported(make_config, ray_address):
    config = make_config(workers=2, worker={"threads": 1, "num_cpus": 1000}, generations=1)
    directory = RunDirectory(config.deployment.runs_dir, "unplaced")
    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        wait_for(lambda: handle.heartbeat().unplaced == 2)
        handle.stop("enough")
        assert finish(handle).reason == "enough"
    (event,) = [event for event in directory.events() if event["kind"] == "unplaced"]
    assert event["reason"].startswith("a worker needs 1000 CPU")
    assert commits(directory) == 0


def test_a_drained_node_is_left_before_it_goes(make_config, ray_cluster, ray_address, undisturbed):
    """As a cloud's notice does it: `ray drain-node`. Its worker ends what it has, and another takes its place."""
    config = make_config(workers=2)
    directory = RunDirectory(config.deployment.runs_dir, "drained")
    node = ray_cluster.add_node(num_cpus=2, resources={"spot": 1})
    drained = []

    def drain(status):
        about = [event["about"] for event in directory.events() if event["kind"] == "worker_ready"]
        if status.generation >= 2 and not drained and any(node.node_id[:8] in text for text in about):
            command = ["ray", "drain-node", "--address", ray_address, "--node-id", node.node_id, "--reason"]
            reason = ["DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test", "--deadline-remaining-seconds", "60"]
            drained.append(subprocess.run([*command, *reason], check=False, capture_output=True).returncode)

    try:
        journal = run(config, "drained", ray_address, drain)
    finally:
        ray_cluster.remove_node(node)
    assert drained == [0]
    assert journal == undisturbed
