"""Workers that are slow, on real Ray processes."""

from __future__ import annotations

import time

import pytest
from rays import run

from es_service import launch as launch_module
from es_service.directory import RunDirectory

pytestmark = pytest.mark.ray

MAKE_RAY_POOL = launch_module.make_ray_pool


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
