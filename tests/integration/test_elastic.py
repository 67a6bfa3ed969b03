"""Workers that come and go while a generation is open: the result does not change."""

from __future__ import annotations

import subprocess
import sys

import pytest
from rays import commits, finish, run, wait_for, worker_pids

from es_service import cli
from es_service import launch as launch_module
from es_service.directory import RunDirectory
from es_service.launch import launch

pytestmark = pytest.mark.ray


def kinds(directory):
    return [event["kind"] for event in directory.events()]


def until_done(config, name, address, steps):
    """Run until each step, given a status, has said in turn that it is done; generation reached, and the journal."""
    directory = RunDirectory(config.deployment.runs_dir, name)
    left = list(steps)
    with launch(config, directory, resume=False, address=address) as (handle, _):

        def beat(status):
            while left and left[0](status):
                left.pop(0)
            if not left:
                handle.stop("enough")

        end = finish(handle, beat)
    assert not left
    return end.generation, directory.journal_path.read_bytes()


def same(make_config, generation, journal):
    assert journal == run(make_config(pool="local", generations=generation), "same", None)


ENDLESS = 1_000_000


def test_workers_are_added_and_removed_down_to_none_and_back(make_config, ray_address):
    config = make_config(workers=1, generations=ENDLESS)
    directory = RunDirectory(config.deployment.runs_dir, "elastic")
    reached = []

    def ask(workers):
        return lambda status: status.generation > 1 and not directory.ask_scale(workers)

    def has(workers):
        return lambda status: status.workers == workers and not reached.append(status.generation)

    def went_on(status):
        return status.generation > reached[-1] + 1

    steps = [ask(3), has(3), went_on, ask(1), has(1), went_on, ask(0), has(0), ask(2), has(2), went_on]
    same(make_config, *until_done(config, "elastic", ray_address, steps))
    assert [event["workers"] for event in directory.events() if event["kind"] == "scaled"] == [3, 1, 0, 2]
    assert len(worker_pids(directory)) == 5
    assert kinds(directory).count("draining") == 3


def test_scale_through_the_head_and_by_a_run_that_is_not_there(make_config, ray_address):
    config = make_config(workers=1, generations=ENDLESS)
    directory = RunDirectory(config.deployment.runs_dir, "told")
    flags = ["told", "--runs-dir", str(directory.path.parent), "--workers", "2"]

    def tell(status):
        command = [sys.executable, "-m", "es_service", "scale", *flags, "--address", ray_address]
        return status.generation > 1 and subprocess.run(command, check=False).returncode == 0

    same(make_config, *until_done(config, "told", ray_address, [tell, lambda status: status.workers == 2]))
    assert cli.main(["scale", *flags]) == 3, "it is not under way"


def test_a_worker_that_the_cluster_cannot_place_is_reported(make_config, ray_address, monkeypatch):
    """After a second; without what is replaced here, after 20."""
    make_ray_pool = launch_module.make_ray_pool

    def impatient(config, corpus):
        from workers import pool

        pool._PATIENCE_SECONDS = 1.0
        return make_ray_pool(config, corpus)

    monkeypatch.setattr(launch_module, "make_ray_pool", impatient)
    config = make_config(workers=2, worker={"threads": 1, "num_cpus": 1000}, generations=1)
    directory = RunDirectory(config.deployment.runs_dir, "unplaced")
    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        wait_for(lambda: handle.heartbeat().unplaced == 2)
        handle.stop("enough")
        assert finish(handle).reason == "enough"
    (event,) = [event for event in directory.events() if event["kind"] == "unplaced"]
    assert event["reason"].startswith("a worker needs 1000 CPU")
    assert commits(directory) == 0


def test_a_drained_node_is_left_before_it_goes(make_config, ray_cluster, ray_address):
    """As a cloud's notice does it: `ray drain-node`. Its worker ends what it has, and another takes its place."""
    config = make_config(workers=1, generations=ENDLESS, worker={"threads": 1, "num_cpus": 5})
    directory = RunDirectory(config.deployment.runs_dir, "drained")
    nodes = [ray_cluster.add_node(num_cpus=5, object_store_memory=80 << 20) for _ in range(2)]

    def drain(status):
        ready = [event["about"] for event in directory.events() if event["kind"] == "worker_ready"]
        if status.generation < 2 or not ready:
            return False
        (node,) = [node for node in nodes if f"node {node.node_id[:8]}" in ready[0]]
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        command = ["drain-node", "--address", ray_address, "--node-id", node.node_id, *reason]
        command += ["--deadline-remaining-seconds", "60"]
        subprocess.run([sys.executable, "-m", "ray.scripts.scripts", *command], check=True, capture_output=True)
        return True

    def replaced(status):
        return len(worker_pids(directory)) == 2 and status.workers == 1

    try:
        same(make_config, *until_done(config, "drained", ray_address, [drain, replaced]))
    finally:
        for node in nodes:
            ray_cluster.remove_node(node)
    (event,) = [event for event in directory.events() if event["kind"] == "draining"]
    assert event["detail"] == "its node is drained"
    (gone,) = [event for event in directory.events() if event["kind"] == "worker_gone"]
    assert gone["reason"] == "its node is drained"
