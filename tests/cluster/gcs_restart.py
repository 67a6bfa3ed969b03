"""A run on a Ray cluster whose GCS keeps its state in Redis: the GCS dies, a worker dies, the whole head node dies.

usage: python tests/cluster/gcs_restart.py     at the repository's root; needs redis-server, from Debian

Two nodes on this machine and a Redis with a password on 127.0.0.1. What is shown, each with its time:
- generations are committed while there is no GCS, and go on when it is back;
- after that a worker that is killed is replaced;
- after the head node, with its raylet, GCS, head actor and driver, was killed and started again, the other node joins
  by itself and `train --or-resume` goes on; the journal is that of an undisturbed run.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SETTINGS = {
    "RAY_AUTH_MODE": "disabled",  # Cluster starts the nodes, and reads no token
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_external_storage_namespace": "gcs-restart",
    "PYTHONPATH": str(ROOT),
}
DOWN_SECONDS = 10.0
PATIENCE_SECONDS = 120.0
BEGAN = time.monotonic()


def step(text: str) -> None:
    print(f"== {text} ({time.monotonic() - BEGAN:.0f} s)", flush=True)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, f"{what}: not in {PATIENCE_SECONDS:g} s"
        time.sleep(0.1)


@contextmanager
def redis(folder: Path, password: str) -> Iterator[None]:
    """Its password comes by standard input: arguments can be read by everybody."""
    port = free_port()
    config = f'port {port}\nbind 127.0.0.1\nrequirepass {password}\nappendonly yes\ndir {folder}\nsave ""\n'
    with (folder / "redis.log").open("w") as log:
        process = subprocess.Popen(["redis-server", "-"], stdin=subprocess.PIPE, stdout=log, text=True)
        assert process.stdin
        process.stdin.write(config)
        process.stdin.close()
        os.environ["RAY_REDIS_ADDRESS"] = f"127.0.0.1:{port}"
        try:
            yield
        finally:
            process.terminate()
            process.wait(30)


class Trial:
    """One run and its cluster."""

    def __init__(self, folder: Path, password: str) -> None:
        from ray.cluster_utils import Cluster

        from es_service.directory import RunDirectory

        self.folder, self.port = folder, free_port()
        self.node: dict[str, Any] = {"object_store_memory": 80 << 20, "redis_password": password}
        self.cluster = Cluster()
        self.start_head(0)
        self.cluster.add_node(num_cpus=3, **self.node)
        self.cluster.wait_for_nodes()
        self.directory = RunDirectory(folder / "runs", "trial")
        self.config = folder / "trial.toml"
        preset = (ROOT / "es_service" / "runs" / "egg-smoke.toml").read_text()
        self.config.write_text(preset.replace("population = 640 ", "population = 6400 "))

    def start_head(self, number: int) -> None:
        """With no CPUs, as in the shipped files; the second time on the same port and with the same Redis."""
        place = {"temp_dir": str(self.folder / f"ray-{number}"), "gcs_server_port": self.port}
        self.cluster.add_node(num_cpus=0, include_dashboard=False, wait=False, **place, **self.node)

    def driver(self, generations: int, *flags: object) -> subprocess.Popen[bytes]:
        words = ["train", self.config, "--name", self.directory.name, "--or-resume", *flags]
        words += ["--runs-dir", self.directory.path.parent, "--set", f"deployment.generations={generations}"]
        with (self.folder / "driver.log").open("a") as log:
            command = [sys.executable, "-m", "es_service", *map(str, words)]
            return subprocess.Popen(command, stdout=log, stderr=log)

    def on_cluster(self, generations: int) -> subprocess.Popen[bytes]:
        return self.driver(generations, "--address", self.cluster.address, "--workers", 2)

    def commits(self) -> int:
        from es_service.journal import scan

        path = self.directory.journal_path
        return len(scan(path).commits) if path.exists() else 0

    def further(self, generations: int, what: str) -> None:
        goal = self.commits() + generations
        wait_for(lambda: self.commits() >= goal, what)

    def workers(self) -> list[int]:
        """Process ids of those that have started."""
        ready = [event["about"] for event in self.directory.events() if event["kind"] == "worker_ready"]
        return [int(re.search(r"pid (\d+)", about)[1]) for about in ready]  # type: ignore[index]


def gcs_dies(trial: Trial) -> None:
    before = trial.commits()
    trial.cluster.head_node.kill_gcs_server()
    time.sleep(DOWN_SECONDS)
    step(f"{trial.commits() - before} generations in {DOWN_SECONDS:g} s without a GCS")
    assert trial.commits() > before + 3
    trial.cluster.head_node.start_gcs_server()
    trial.further(5, "the run goes on")
    step("the GCS is back")
    count = len(trial.workers())
    os.kill(trial.workers()[-1], signal.SIGKILL)
    wait_for(lambda: len(trial.workers()) == count + 1, "a killed worker is replaced")
    trial.further(5, "the run goes on")
    step("a killed worker was replaced")


def head_node_dies(trial: Trial, driver: subprocess.Popen[bytes]) -> None:
    import ray

    trial.cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
    driver.kill()  # it was on that node
    driver.wait()
    trial.cluster.head_node = None
    time.sleep(DOWN_SECONDS)
    trial.start_head(1)
    ray.init(trial.cluster.address, logging_level="ERROR", log_to_driver=False)
    wait_for(lambda: ray.cluster_resources().get("CPU") == 3, "the other node joins again")
    names = ray.util.list_named_actors(all_namespaces=True)
    ray.shutdown()
    step(f"a new head node, which the other has joined; named actors: {names}")


def undisturbed(trial: Trial, generations: int) -> bytes:
    from es_service.directory import RunDirectory

    trial.directory = RunDirectory(trial.folder / "runs", "undisturbed")
    assert trial.driver(generations, "--set", "deployment.pool=local").wait(300) == 0
    return trial.directory.journal_path.read_bytes()


def main() -> None:
    os.environ.update(SETTINGS)
    folder, password = Path(tempfile.mkdtemp(prefix="es-gcs-", dir="/tmp")), secrets.token_hex(16)
    try:
        with redis(folder, password):
            trial = Trial(folder, password)
            step("two nodes, Redis")
            driver = trial.on_cluster(10**6)
            trial.further(3, "the run begins")
            gcs_dies(trial)
            head_node_dies(trial, driver)
            goal = trial.commits() + 10
            assert trial.on_cluster(goal).wait(PATIENCE_SECONDS) == 0
            journal = trial.directory.journal_path.read_bytes()
            step(f"the run went on to generation {goal}")
            assert journal == undisturbed(trial, goal)
            step("the journal is that of an undisturbed run")
            trial.cluster.shutdown()
    except BaseException:
        print((folder / "driver.log").read_text()[-4000:])
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
