"""One Ray cluster for the session: own temp dir, own ports, stopped by its own handles."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"

_NODE = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 80 << 20}


@pytest.fixture(scope="session")
def ray_address():
    """Address of a local cluster of two nodes with 4 CPUs each; the second declares a GPU, which is not there."""
    from ray.cluster_utils import Cluster

    temp_dir = tempfile.mkdtemp(prefix="es", dir="/tmp")
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "temp_dir": temp_dir})
    try:
        cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=80 << 20)
        cluster.wait_for_nodes()
        yield cluster.address
    finally:
        cluster.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)
