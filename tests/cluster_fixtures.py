"""One Ray cluster for the session: own temp dir, own ports, stopped by its own handles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile

import pytest
from rays import GENERATIONS, run

from es_service.config import resolve
from es_service.session import with_corpus

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "0"

_SYSTEM = {"health_check_period_ms": 1000}
_NODE = {"num_cpus": 4, "include_dashboard": False, "object_store_memory": 80 << 20}


@pytest.fixture(scope="session")
def ray_cluster():
    """A local cluster of two nodes with 4 CPUs each; the second declares a GPU, which is not there.

    A node that does not answer is given up after 5 seconds where it is gone; where it is slow, after 50, as by default.
    """
    from ray.cluster_utils import Cluster

    temp_dir = tempfile.mkdtemp(prefix="es", dir="/tmp")
    cluster = Cluster(initialize_head=True, head_node_args={**_NODE, "temp_dir": temp_dir, "_system_config": _SYSTEM})
    try:
        cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=80 << 20)
        cluster.wait_for_nodes()
        yield cluster
    finally:
        cluster.shutdown()
        shutil.rmtree(temp_dir, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_address(ray_cluster):
    """Its address."""
    return ray_cluster.address


@pytest.fixture(scope="session")
def documents(tmp_path_factory):
    """A few small documents."""
    folder = tmp_path_factory.mktemp("corpus")
    for n in range(40):
        text = "".join(f"def function_{n}_{i}(x):\n    return x + {i * n}\n" for i in range(30))
        (folder / f"{n}.py").write_text(text)
    return folder


@pytest.fixture
def make_config(documents, tmp_path):
    """A small run; its arguments are fields of the deployment."""

    def make(**deployment):
        tree = {
            "population": 320,
            "model": {"kind": "egg", "width": 32, "layers": 1},
            "data": {"kind": "files", "paths": [str(documents)], "held_out_percent": 20},
            "segment": {"bytes": 16},
            "feeding": {"kind": "members_per_sequence", "members": 32},
            "deployment": {
                "runs_dir": str(tmp_path), "generations": GENERATIONS, "lease_pairs": 20, "evaluation_rows": 16,
                "keyframe_every": 5, "worker": {"threads": 1}, **deployment,
            },
        }  # fmt: skip
        return with_corpus(resolve(tree))[0]

    return make


@pytest.fixture
def undisturbed(make_config):
    """The journal of the same run in this process, without Ray."""
    return run(make_config(pool="local"), "undisturbed", None)


@pytest.fixture
def cli():
    """The command line in a process of its own; ended with the test."""
    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "es_service", *map(str, arguments)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
