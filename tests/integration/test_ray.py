"""The determinism law and the failure policy on real Ray processes."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request

import pytest
from rays import GENERATIONS, commits, finish, run, wait_for, worker_pids

from es_service import launch as launch_module
from es_service.config import load
from es_service.directory import RunDirectory
from es_service.driver import follow
from es_service.errors import DataError, RunError
from es_service.journal import scan
from es_service.launch import launch
from es_service.session import with_corpus

pytestmark = pytest.mark.ray


def test_the_journal_is_the_same_for_any_number_of_workers(make_config, ray_address, undisturbed):
    for workers in (1, 3):  # two in the tests of those that are killed
        assert run(make_config(workers=workers), f"workers-{workers}", ray_address) == undisturbed


def test_slices_and_commits_that_go_through_the_object_store(make_config, ray_address, undisturbed, monkeypatch):
    """As those of a large population do: one object, from which every node takes a copy."""
    make_ray_pool = launch_module.make_ray_pool

    def make(config, corpus):
        import ray

        from es_service import pools

        pools.COPIED_BYTES = 0
        pool = make_ray_pool(config, corpus)
        broadcast = pool.broadcast

        def watched(data):
            ref = broadcast(data)
            assert isinstance(ref, ray.ObjectRef)
            return ref

        pool.broadcast = watched
        return pool

    monkeypatch.setattr(launch_module, "make_ray_pool", make)
    assert run(make_config(workers=3, sliced_updates="always"), "objects", ray_address) == undisturbed


def test_the_cuda_kernels_on_a_gpu_worker_make_the_reference_journal(ray_address, tmp_path, monkeypatch):
    """Emulated on the CPU, in an actor that asks for a GPU and says how large a lease fills it."""
    make_ray_pool = launch_module.make_ray_pool

    def make(config, corpus):
        pool = make_ray_pool(config, corpus)
        assert pool.wave_pairs == 3 * 64, "three emulated multiprocessors with a tile of 128 members each"
        return pool

    monkeypatch.setattr(launch_module, "make_ray_pool", make)
    common = [f'deployment.runs_dir="{tmp_path}"', 'deployment.aggregator_backend="reference"']
    gpu = ["deployment.worker.num_gpus=1", 'deployment.worker.backend="cuda-emulated"', "deployment.worker.threads=2"]
    plain = ['deployment.pool="local"', 'deployment.worker.backend="reference"']
    expected = run(with_corpus(load("egg-smoke", common + plain))[0], "reference", None)
    assert run(with_corpus(load("egg-smoke", common + gpu))[0], "gpu", ray_address) == expected
    about = next(event["about"] for event in RunDirectory(tmp_path, "gpu").events() if event["kind"] == "worker_ready")
    assert "cuda-emulated" in about


def test_a_killed_worker_is_replaced_and_leaves_no_trace(make_config, ray_address, undisturbed):
    config = make_config(workers=2)
    directory = RunDirectory(config.deployment.runs_dir, "killed")
    killed = []

    def kill_one(status):
        if status.generation >= 2 and not killed:
            killed.append(worker_pids(directory)[0])
            os.kill(killed[0], signal.SIGKILL)

    assert run(config, "killed", ray_address, kill_one) == undisturbed
    assert killed
    assert any(event["kind"] == "worker_gone" for event in directory.events())


def test_a_head_that_was_ended_for_good_loses_nothing_committed(make_config, ray_address, undisturbed):
    import ray

    config = make_config(workers=1)
    directory = RunDirectory(config.deployment.runs_dir, "beheaded")

    killed = []

    def kill_head(status):
        if status.generation >= 3 and not killed:
            killed.append(True)
            ray.kill(ray.get_actor("head-beheaded", namespace="es-service"))

    started = launch(config, directory, resume=False, address=ray_address)
    with started as (handle, _), pytest.raises(RunError, match="resume"):
        finish(handle, kill_head)
    assert 0 < len(scan(directory.journal_path).commits) < GENERATIONS
    with launch(config, directory, resume=True, address=ray_address) as (handle, _):
        assert finish(handle).reason == "goal"
    assert directory.journal_path.read_bytes() == undisturbed


def pid_of_head(directory):
    """Process id of the one that holds the journal."""
    holder = directory.holder()
    return int(re.match(r"pid (\d+) ", holder).group(1)) if holder else None


def test_a_head_whose_process_is_killed_is_started_again_and_goes_on(make_config, ray_address, capsys):
    """Twice: Ray starts another, which resumes from the journal; the driver says so and sees the end."""
    config = make_config(workers=2, generations=1_000_000)
    directory = RunDirectory(config.deployment.runs_dir, "headless")
    killed, reached = [], [0]

    def kill_head(status):
        pid = pid_of_head(directory)
        if status.generation < reached[-1] + 3 or status.workers < 1 or not pid or pid in killed:
            return status
        if len(killed) == 2:
            handle.stop("enough")
        elif killed or directory.ask_scale(3) or not wait_for(lambda: not directory.scale_path.exists()):
            killed.append(pid)
            reached.append(commits(directory))
            os.kill(pid, signal.SIGKILL)
        return status

    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        beat = handle.heartbeat
        handle.heartbeat = lambda: kill_head(beat())
        end = follow(handle)
    same = run(make_config(pool="local", generations=end.generation), "same", None)
    assert directory.journal_path.read_bytes() == same
    assert [event["workers"] for event in directory.events() if event["kind"] == "restarted"] == [3, 3]
    resumed_at = [event["generation"] for event in directory.events() if event["kind"] == "resumed"]
    out = capsys.readouterr().out
    assert [f"the head died; another goes on from generation {g}" in out for g in resumed_at] == [True, True]


def test_a_killed_driver_stops_the_head_at_a_commit(make_config, ray_address, cli):
    config = make_config(workers=2, heartbeat_timeout_seconds=3)
    directory = RunDirectory(config.deployment.runs_dir, "orphan")
    directory.path.parent.joinpath("orphan.toml").write_text(_toml(config))
    source = directory.path.parent / "orphan.toml"
    flags = ["--name", "orphan", "--runs-dir", directory.path.parent, "--address", ray_address]
    driver = cli("train", source, *flags, "--set", "deployment.generations=100000")
    wait_for(lambda: commits(directory) > 1)
    driver.kill()
    driver.communicate()
    wait_for(lambda: directory.holder() is None, 20)
    reached = commits(directory)
    assert scan(directory.journal_path).close.generation == reached
    goal = reached + 3
    again = cli("resume", "orphan", *flags[2:], "--set", f"deployment.generations={goal}")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    journal, other = directory.journal_path.read_bytes(), run(make_config(pool="local", generations=goal), "same", None)
    assert journal == other


@pytest.mark.parametrize("head_too", [False, True], ids=["driver", "driver and head"])
def test_a_killed_driver_is_replaced_by_a_resume_at_once(make_config, ray_address, cli, head_too):
    """It need not wait for `heartbeat_timeout_seconds`, 60: a head without a driver is taken over."""
    config = make_config(workers=2, heartbeat_timeout_seconds=600)
    directory = RunDirectory(config.deployment.runs_dir, "orphan")
    source = directory.path.parent / "orphan.toml"
    source.write_text(_toml(config))
    flags = ["--runs-dir", directory.path.parent, "--address", ray_address]
    driver = cli("train", source, "--name", "orphan", *flags, "--set", "deployment.generations=100000")
    wait_for(lambda: commits(directory) > 1)
    driver.kill()
    driver.communicate()
    if head_too:
        os.kill(pid_of_head(directory), signal.SIGKILL)
    goal = commits(directory) + 50
    again = cli("resume", "orphan", *flags, "--set", f"deployment.generations={goal}")
    output, _ = again.communicate(timeout=120)
    assert again.returncode == 0, output
    reached = commits(directory)
    same = run(make_config(pool="local", generations=reached), "same", None)
    assert directory.journal_path.read_bytes() == same


def _toml(config):
    """A TOML file of the same spec."""
    paths = config.data.paths
    return f"""
population = {config.population}
[model]
kind = "egg"
width = {config.model.width}
layers = {config.model.layers}
[data]
kind = "files"
paths = ["{paths[0]}"]
held_out_percent = {config.data.held_out_percent}
[segment]
bytes = {config.segment.bytes}
[feeding]
kind = "members_per_sequence"
members = {config.feeding.members}
[deployment]
lease_pairs = {config.deployment.lease_pairs}
evaluation_rows = {config.deployment.evaluation_rows}
workers = {config.deployment.workers}
heartbeat_timeout_seconds = {config.deployment.heartbeat_timeout_seconds}
[deployment.worker]
threads = 1
"""


def test_a_run_in_use_cannot_be_opened_twice(make_config, ray_address, cli):
    config = make_config(workers=1, generations=1000)
    directory = RunDirectory(config.deployment.runs_dir, "busy")
    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        wait_for(lambda: commits(directory) > 0)
        for place, message in (
            (["--set", "deployment.pool=local"], "in use"),
            (["--address", ray_address], "under way on this cluster"),
        ):
            other = cli("resume", "busy", "--runs-dir", directory.path.parent, *place)
            wait_for(lambda: handle.heartbeat() and other.poll() is not None)  # noqa: B023 - called at once
            output, _ = other.communicate(timeout=60)
            assert other.returncode == 3, output
            assert message in output
        handle.stop("enough")
        assert finish(handle).reason == "enough"


def test_workers_with_other_text_refuse_to_start(make_config, ray_address):
    config = make_config(workers=1)
    wrong = config.model_copy(update={"data": config.data.model_copy(update={"content_hash": "0" * 64})})
    directory = RunDirectory(config.deployment.runs_dir, "other-text")
    started = launch(wrong, directory, resume=False, address=ray_address)
    with pytest.raises(DataError, match=r"data\.content_hash"), started as (handle, _):
        finish(handle)


def test_train_starts_its_own_ray_and_ctrl_c_can_be_resumed(make_config, cli):
    """The one-command path: no cluster, Ctrl-C in the middle, resume to the goal."""
    config = make_config(workers=1)
    directory = RunDirectory(config.deployment.runs_dir, "alone")
    source = directory.path.parent / "alone.toml"
    source.write_text(_toml(config))
    targets = directory.path.parent / "targets"
    runs = ["--runs-dir", directory.path.parent, "--set", f"deployment.metrics_targets_dir={targets}"]
    first = cli("train", source, "--name", "alone", *runs, "--set", "deployment.generations=100000")
    wait_for(lambda: commits(directory) > 1)
    _, ray = json.loads(next(targets.glob("alone-*.json")).read_text())
    assert ray["labels"] == {"job": "ray"}
    with urllib.request.urlopen(f"http://{ray['targets'][0]}/metrics", timeout=30) as answer:
        assert b"\nray_" in answer.read(), "the exporter of a Ray that has no dashboard"
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert not list(targets.iterdir())
    assert "go on with: es-service resume alone" in output
    goal = commits(directory) + 2
    second = cli("resume", "alone", *runs, "--set", f"deployment.generations={goal}")
    output, _ = second.communicate(timeout=120)
    assert second.returncode == 0, output
    assert f"stopped at generation {goal}: goal" in output
    same = run(make_config(pool="local", generations=goal), "same", None)
    assert directory.journal_path.read_bytes() == same
