"""A user's day on a cluster: submit, watch, scale, stop, submit again, fetch; jobs that are stopped, killed, detached.

The cluster is that of `make local-cluster`: three nodes on this machine, token authentication.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from es_service.directory import RunDirectory
from es_service.journal import scan

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
SERVICE = f"{sys.executable} -m es_service"
LINE = re.compile(r"export (RAY_AUTH_MODE=token .*)")


class Cluster:
    """The environment of a user of `cluster/local.sh`, and what that user does."""

    def __init__(self, process):
        self.process = process
        line = process.stdout.readline()
        assert LINE.match(line), line
        own = dict(word.split("=", 1) for word in shlex.split(LINE.match(line)[1]))
        self.env = os.environ | own | {"PYTHONPATH": str(ROOT), "PATH": f"{BIN}:{os.environ['PATH']}"}
        self.address = re.search(r"--address (\S+)", process.stdout.readline())[1]
        self.token = Path(own["RAY_AUTH_TOKEN_PATH"]).read_text()
        self.url = own["RAY_API_SERVER_ADDRESS"]

    def run(self, *words):
        """A command of the user; its output."""
        command = [str(word) for word in words]
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def service(self, *words):
        return self.run(sys.executable, "-m", "es_service", *words)

    def submit(self, name, *words):
        """`ray job submit` of `es-service ...`, with a working directory that holds the user's config."""
        env = {"working_dir": str(self.work)}
        flags = ["--no-wait", "--submission-id", name, "--runtime-env-json", json.dumps(env)]
        return self.run("ray", "job", "submit", *flags, "--", sys.executable, "-m", "es_service", *words)

    def post(self, name, *words, **env_vars):
        """The same without the two seconds that the command takes; the config is named by its whole path."""
        command = [sys.executable, "-m", "es_service", *map(str, words)]
        job = {"entrypoint": shlex.join(command), "submission_id": name, "runtime_env": {"env_vars": env_vars}}
        return self.api("/api/jobs/", body=json.dumps(job).encode())

    def api(self, path, token=None, body=None):
        request = urllib.request.Request(self.url + path, body, {"Content-Type": "application/json"})
        request.add_header("Authorization", f"Bearer {token or self.token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def job(self, name):
        return self.api(f"/api/jobs/{name}")

    def actors(self):
        """Classes of our actors that live."""
        listed = self.api("/api/v0/actors?filter_keys=state&filter_predicates=%3D&filter_values=ALIVE")
        names = [actor["class_name"] for actor in listed["data"]["result"]["result"]]
        return [name for name in names if name in ("HeadActor", "WorkerActor")]


def free_ports():
    """Settings of the cluster for ports of which no other, such as that of a second checkout, has one."""
    while True:
        port = random.randrange(20_000, 28_000)
        with ExitStack() as bound, suppress(OSError):
            for each in (port, port + 1000, port + 2000):  # the GCS, Ray's client, the dashboard
                bound.enter_context(socket.socket()).bind(("127.0.0.1", each))
            return {"LOCAL_CLUSTER_PORT": str(port), "LOCAL_CLUSTER_DASHBOARD_PORT": str(port + 2000)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    process = subprocess.Popen(
        ["bash", ROOT / "cluster" / "local.sh", "2"],
        env=os.environ | free_ports() | {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        cluster = Cluster(process)
        cluster.work = tmp_path_factory.mktemp("work")
        preset = (ROOT / "es_service" / "runs" / "egg-smoke.toml").read_text()
        larger = preset.replace("population = 640 ", "population = 6400 ")  # so that generations take a moment
        assert larger != preset
        (cluster.work / "mine.toml").write_text(larger + "heartbeat_timeout_seconds = 3\nworkers = 1\n")
        yield cluster
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors


def wait_for(condition, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: nothing in {seconds} s"
        time.sleep(0.2)
    return value


def end(cluster, name):
    """The last state of a job, with its output where that is not a success."""
    ends = ("SUCCEEDED", "FAILED", "STOPPED")
    job = wait_for(lambda: (job := cluster.job(name))["status"] in ends and job, f"{name} ends")
    logs = "" if job["status"] == "SUCCEEDED" else cluster.api(f"/api/jobs/{name}/logs")["logs"] + job["message"]
    print(logs)
    return job["status"]


def kinds(directory):
    return [event["kind"] for event in directory.events()]


def commits(directory):
    return len(scan(directory.journal_path).commits) if directory.journal_path.exists() else 0


def test_submit_watch_stop_submit_again_and_fetch(cluster, tmp_path):
    directory = RunDirectory(tmp_path / "runs", "flow")
    url = f"file://{tmp_path}/storage"
    train = ["train", "mine.toml", "--name", "flow", "--or-resume", "--runs-dir", directory.path.parent]
    train += ["--set", f"deployment.storage_url={url}"]
    cluster.submit("flow-1", *train, "--set", "deployment.generations=100000")
    wait_for(lambda: commits(directory) > 2, "the run begins")

    assert cluster.run("ray", "job", "status", "flow-1").count("RUNNING")
    assert "generation" in cluster.job("flow-1")["entrypoint"] + cluster.run("ray", "job", "logs", "flow-1")

    cluster.service("scale", "flow", "--workers", 2, "--address", cluster.address)
    wait_for(lambda: kinds(directory).count("worker_ready") == 2, "another worker comes")
    reached = commits(directory)
    wait_for(lambda: commits(directory) > reached, "it goes on with both")
    (status,) = json.loads(cluster.service("status", "--address", cluster.address, "--json"))
    assert (status["state"], status["workers"], status["path"]) == ("running", 2, str(directory.path))

    cluster.service("stop", "flow", "--address", cluster.address)
    assert end(cluster, "flow-1") == "SUCCEEDED"
    goal = commits(directory) + 3
    cluster.submit("flow-2", *train, "--set", f"deployment.generations={goal}")
    assert end(cluster, "flow-2") == "SUCCEEDED"
    logs = cluster.api("/api/jobs/flow-2/logs")["logs"]
    assert f"stopped at generation {goal}: goal" in logs, logs
    assert cluster.actors() == []

    elsewhere = RunDirectory(tmp_path / "laptop", "flow")
    cluster.service("fetch", "flow", "--from", url, "--runs-dir", elsewhere.path.parent)
    assert elsewhere.journal_path.read_bytes() == directory.journal_path.read_bytes()
    model = tmp_path / "model.safetensors"
    cluster.service("export", "flow", "--runs-dir", elsewhere.path.parent, "--out", model)
    assert model.stat().st_size > 0
    replayed = cluster.service("replay", "flow", "--verify", "--runs-dir", elsewhere.path.parent)
    assert "replayed from votes alone" in replayed


def test_jobs_that_are_stopped_or_killed_leave_no_actors(cluster, tmp_path):
    """`ray job stop` is a SIGTERM: the run ends at its last commit. The same submission goes on; then a SIGKILL."""
    directory = RunDirectory(tmp_path / "runs", "ended")
    train = ["train", cluster.work / "mine.toml", "--name", "ended", "--or-resume", "--runs-dir", directory.path.parent]
    train += ["--set", "deployment.generations=100000"]
    cluster.post("ended-1", *train, RAY_JOB_STOP_WAIT_TIME_S="60")
    wait_for(lambda: commits(directory) > 1, "the run begins")
    assert sorted(cluster.actors()) == ["HeadActor", "WorkerActor"]
    cluster.run("ray", "job", "stop", "--no-wait", "ended-1")
    assert end(cluster, "ended-1") == "STOPPED"
    wait_for(lambda: not cluster.actors(), "the head ends", 60)
    assert last_words(directory) == ("finished", "interrupted")

    reached = commits(directory)
    cluster.post("ended-2", *train)
    wait_for(lambda: commits(directory) > reached, "the same submission goes on")
    os.kill(driver_of("ended", directory), signal.SIGKILL)
    assert end(cluster, "ended-2") == "FAILED"
    wait_for(lambda: not cluster.actors(), "the head stops", 60)
    assert last_words(directory) == ("finished", "no sign of the driver for 3 s")


def last_words(directory):
    """How a run with a closed journal ended."""
    assert scan(directory.journal_path).close is not None
    last = list(directory.events())[-1]
    return last["kind"], last["reason"]


def test_a_detached_run_outlives_its_job(cluster, tmp_path):
    directory = RunDirectory(tmp_path / "runs", "detached")
    where = ["--runs-dir", directory.path.parent, "--set", "deployment.generations=100000", "--detach"]
    cluster.post("detached-1", "train", cluster.work / "mine.toml", "--name", "detached", *where)
    assert end(cluster, "detached-1") == "SUCCEEDED"
    time.sleep(5)  # longer than the heartbeats that it does not need
    reached = commits(directory)
    wait_for(lambda: commits(directory) > reached, "it goes on")
    cluster.service("stop", "detached", "--address", cluster.address)
    wait_for(lambda: not cluster.actors(), "the head ends")
    assert scan(directory.journal_path).close is not None


def driver_of(name, directory):
    """The process that runs `es-service train` of this test, found by its own arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if words[:1] == [sys.executable] and "train" in words and str(directory.path.parent) in words:
            return int(folder.name)
    raise AssertionError(f"no driver of {name}")


def test_other_users_of_the_machine_are_kept_out(cluster):
    with pytest.raises(urllib.error.HTTPError, match="403"):
        cluster.api("/api/jobs/", token="0" * 64)
