"""Workers that are killed at any moment, nodes that go, workers that are slow: on real Ray processes."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress

import pytest
from rays import finish, pids, run, worker_pids

from es_service import launch as launch_module
from es_service.directory import RunDirectory
from es_service.launch import launch

pytestmark = pytest.mark.ray

ENDLESS = 1_000_000
MAKE_RAY_POOL = launch_module.make_ray_pool


def count(directory, kind):
    return sum(event["kind"] == kind for event in directory.events())


def journal_and_its_double(make_config, config, name, address, on_beat):
    """The journal of a run that ends when `on_beat(status)` says so, and that of as many generations in peace."""
    directory = RunDirectory(config.deployment.runs_dir, name)
    with launch(config, directory, resume=False, address=address) as (handle, _):

        def beat(status):
            if on_beat(status):
                handle.stop("enough")

        end = finish(handle, beat)
    same = make_config(pool="local", generations=end.generation)
    return directory.journal_path.read_bytes(), run(same, "same", None)


def test_workers_that_are_killed_at_any_moment_leave_no_trace(make_config, ray_address):
    """One after the other, at moments that have nothing to do with generations; every time another joins."""
    config = make_config(workers=3, generations=ENDLESS)
    directory = RunDirectory(config.deployment.runs_dir, "killed")
    rng, killed, due = random.Random(1), [], [0.0]

    def kill(status):
        alive = [pid for pid in worker_pids(directory) if pid not in killed]
        if len(killed) < 5 and len(alive) == 3 and time.monotonic() > due[0]:
            due[0] = time.monotonic() + rng.random()
            killed.append(rng.choice(alive))
            os.kill(killed[-1], signal.SIGKILL)
        return len(killed) == 5 and count(directory, "worker_ready") >= 8

    journal, same = journal_and_its_double(make_config, config, "killed", ray_address, kill)
    assert journal == same
    assert count(directory, "worker_gone") >= 5


def test_a_node_that_vanishes_with_its_workers_leaves_no_trace(make_config, ray_cluster):
    """Two nodes with room for two of three workers each: the one that has two is lost, and the other takes one more."""
    config = make_config(workers=3, generations=ENDLESS, worker={"threads": 1, "num_cpus": 5})
    directory = RunDirectory(config.deployment.runs_dir, "vanished")
    nodes = [ray_cluster.add_node(num_cpus=10, object_store_memory=80 << 20) for _ in range(2)]
    reached = []

    def lose(status):
        ready = [event for event in directory.events() if event["kind"] == "worker_ready"]
        if not reached and len(ready) == 3 and status.generation > 1:
            homes = {node: [event for event in ready if f"node {node.node_id[:8]}" in event["about"]] for node in nodes}
            lost = max(nodes, key=lambda node: len(homes[node]))
            nodes.remove(lost)
            ray_cluster.remove_node(lost, allow_graceful=False)
            for pid in pids(homes[lost]):
                with suppress(ProcessLookupError):  # it saw its node go
                    os.kill(pid, signal.SIGKILL)
            reached.append(status.generation)
        return reached and len(ready) == 4 and status.workers == 2 and status.generation > reached[0] + 2

    try:
        journal, same = journal_and_its_double(make_config, config, "vanished", ray_cluster.address, lose)
    finally:
        for node in nodes:
            ray_cluster.remove_node(node)
    assert journal == same
    assert count(directory, "worker_gone") >= 2, "more if another was started on the lost node before Ray noticed"
    (other,) = nodes
    *_, last = (event["about"] for event in directory.events() if event["kind"] == "worker_ready")
    assert f"node {other.node_id[:8]}" in last


def sleeping(names_slow, seconds):
    """A pool whose workers need this long for a lease, those of these names ten times as long; nothing but sleep."""

    def make(config, corpus):

        from es_service.messages import Order, decode
        from workers import pool as pool_module
        from workers.actor import WorkerActor

        class Sleeper(WorkerActor):
            def __init__(self, config_json, version, head, run, name):
                super().__init__(config_json, version, head, run, name)
                self.seconds = seconds * (10 if name in names_slow else 1)

            def handle(self, *parts):
                if isinstance(decode(b"".join(parts)), Order):
                    time.sleep(self.seconds)
                return super().handle(*parts)

        pool_module.WorkerActor = Sleeper
        return MAKE_RAY_POOL(config, corpus)

    return make


def test_one_of_four_workers_that_is_ten_times_slower_costs_little(make_config, ray_address, monkeypatch):
    """Less than 1.15 times what three healthy ones need; sleep-bound, so that neither kernels nor cores matter."""

    def seconds(name, workers, slow):
        monkeypatch.setattr(launch_module, "make_ray_pool", sleeping(slow, 0.25))
        config = make_config(workers=workers, lease_pairs=10, generations=8, audit_share=0.0)
        directory = RunDirectory(config.deployment.runs_dir, name)
        assert run(config, name, ray_address)
        times = [row["time"] for row in directory.metrics() if row["kind"] == "commit"]
        return times[-1] - times[0]

    healthy = seconds("healthy", 3, ())
    assert seconds("straggler", 4, ("worker-1",)) < 1.15 * healthy
