"""Where workers go: counts and threads from the resources of the nodes; and a head that cannot be reached."""

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorUnavailableError, GetTimeoutError

from es_service.errors import BackendError
from es_service.launch import _ANSWER_SECONDS, _HEAD_DIED, _HEAD_SILENT, ActorHandle, _placed, _ray
from es_service.telemetry import Status

LAPTOP = [{"CPU": 8.0}]
TWO_NODES = [{"CPU": 16.0}, {"CPU": 8.0}, {"CPU": 0.0}]
GPU_NODES = [{"CPU": 192.0, "GPU": 8.0}, {"CPU": 192.0, "GPU": 8.0}, {"CPU": 4.0}]


@pytest.mark.parametrize(
    ("nodes", "deployment", "expected"),
    [
        (LAPTOP, {}, (1, 8)),
        (LAPTOP, {"workers": 3}, (3, 2)),
        (LAPTOP, {"workers": 20}, (20, 1)),
        (TWO_NODES, {}, (2, 8)),
        (TWO_NODES, {"workers": 4}, (4, 4)),
        (TWO_NODES, {"worker": {"threads": 5}}, (2, 5)),
        (GPU_NODES, {"worker": {"num_gpus": 1}}, (16, 24)),
        (GPU_NODES, {"worker": {"num_gpus": 0.5}, "workers": 3}, (3, 96)),
        ([], {}, (1, 1)),
    ],
)
def test_workers_and_threads_come_from_the_nodes(tiny_config, nodes, deployment, expected):
    changes = {f"deployment__{name}": value for name, value in deployment.items()}
    placed = _placed(tiny_config(**changes), nodes).deployment
    assert (placed.workers, placed.worker.threads) == expected


@pytest.mark.parametrize(
    ("variable", "address"),
    [(None, None), ("", None), ("10.0.0.4:6379", "10.0.0.4:6379"), ("auto", "auto"), ("http://127.0.0.1:8265", None)],
)
def test_a_ray_job_needs_no_address(monkeypatch, variable, address):
    """Ray sets RAY_ADDRESS in a job; a user may have the URL of the dashboard there."""
    from es_service.cli import build_parser

    if variable is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    for words in (["train", "egg-smoke"], ["resume", "x"], ["stop", "x"]):
        assert build_parser().parse_args(words).address == address
    assert build_parser().parse_args(["train", "egg-smoke", "--address", "here:1"]).address == "here:1"


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup."), ConnectionError("refused")])
@pytest.mark.parametrize(("address", "where"), [(None, "start a local Ray"), ("auto", "join the cluster at auto")])
def test_a_ray_that_does_not_start_is_an_error_with_a_remedy(monkeypatch, error, address, where):
    import ray

    def fail(**options):
        raise error

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr("os.environ", dict(os.environ))
    with pytest.raises(BackendError, match=f"cannot {where}: {error}.*deployment.pool=local"), _ray(address):
        pass


def test_a_head_that_cannot_be_reached_is_said_to_be(monkeypatch):
    """The driver shows what it knew and goes on asking; Ray itself would wait for ever."""
    known, outcomes = Status("running", 3, 9, 2), []

    def get(ref, timeout=None):
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            assert timeout == _ANSWER_SECONDS
            raise outcome
        return outcome

    monkeypatch.setattr("ray.get", get)
    head = SimpleNamespace(run=SimpleNamespace(remote=object), heartbeat=SimpleNamespace(remote=object))
    outcomes[:] = [known, GetTimeoutError(), ActorUnavailableError("", b"0" * 16), None, replace(known, generation=4)]
    handle = ActorHandle(head, detach=False)
    assert handle.heartbeat() == replace(known, alarm=_HEAD_SILENT)
    assert handle.heartbeat() == replace(known, alarm=_HEAD_DIED)
    assert handle.heartbeat() == replace(known, alarm=_HEAD_DIED), "it reads the journal"
    assert handle.heartbeat() == replace(known, generation=4)
