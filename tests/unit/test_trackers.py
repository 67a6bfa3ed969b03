"""Trackers: what TensorBoard reads back from our event files, what wandb is told, and their absence."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from es_service.errors import BackendError
from es_service.tail import RunTail
from es_service.trackers.scalars import scalars
from es_service.trackers.tensorboard import TensorBoard
from es_service.trackers.wandb import WeightsAndBiases


def followed(directory, tracker):
    tail = RunTail(directory)
    while facts := tail.take():
        tracker.take(facts)
    tracker.close()
    return tracker


def read_back(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the reader
def test_tensorboard_reads_the_figures_of_the_run(run_copy):
    pytest.importorskip("tensorboard", reason="pip install 'es-service[tensorboard]'")
    directory = run_copy.directory
    for _ in range(2):  # the second time, as at a resume: nothing is there twice
        found = read_back(followed(directory, TensorBoard(directory)).path)
    rows = [row for row in directory.metrics() if row["kind"] == "commit"]
    loss = found.Scalars("loss/training")
    assert [(event.step, event.wall_time) for event in loss] == [(row["generation"], row["time"]) for row in rows]
    assert [event.value for event in loss] == pytest.approx([row["bits_per_byte"] for row in rows])
    assert [event.step for event in found.Scalars("loss/held_out")] == [0, 3, 6]
    assert [event.value for event in found.Scalars("votes/plus_ratio")] == pytest.approx(
        [row["votes_plus"] / row["units"] for row in rows]
    )
    assert len(found.Scalars("weights/moved_ratio")) == 6
    samples = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("sample")]
    first = next(directory.samples())
    assert samples[0] == "    " + first["text"].replace("\n", "\n    ")
    assert len(samples) == 3


def test_figures_that_are_no_numbers_are_left_out():
    row = {"kind": "commit", "generation": 1, "bits_per_byte": float("inf"), "seconds": "x", "workers": 3, "units": 0}
    assert dict(scalars(row)) == {"workers/count": 3.0}
    assert dict(scalars({"kind": "something", "generation": 1})) == {}


class FakeRun:
    def __init__(self):
        self.logged, self.finished, self.steps = [], False, {}

    def log(self, values):
        self.logged.append(values)

    def define_metric(self, name, **values):
        self.steps[name] = values.get("step_metric")

    def finish(self):
        self.finished = True


def test_wandb_is_told_the_spec_and_each_figure_with_its_generation(run_copy, monkeypatch):
    """With a stand-in for the package, which is not installed here."""
    run, started = FakeRun(), {}
    fake = SimpleNamespace(init=lambda **values: started.update(values) or run, Error=RuntimeError)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    directory = run_copy.directory
    config = directory.read_config()
    followed(directory, WeightsAndBiases(config, directory))
    assert started["config"] == config.spec
    assert started["id"] == f"done-{config.spec_hash[:12]}"
    assert run.steps["*"] == "generation"
    assert [values["loss/held_out"] for values in run.logged if "loss/held_out" in values] == [
        row["bits_per_byte"] for row in directory.metrics() if row["kind"] == "evaluation"
    ]
    assert all(isinstance(values["generation"], int) for values in run.logged)
    assert run.finished


def test_wandb_that_refuses_is_an_error_that_says_what_to_do(run_copy, monkeypatch):
    def refuse(**values):
        raise RuntimeError("no API key")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=refuse, Error=RuntimeError))
    with pytest.raises(BackendError, match="no API key; try `wandb login`"):
        WeightsAndBiases(run_copy.directory.read_config(), run_copy.directory)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_before_anything_starts(es, name, monkeypatch):
    for module in (name, "tensorboard.compat.proto.event_pb2"):
        monkeypatch.setitem(sys.modules, module, None)
    outcome = es("resume", "done", f"--{name}")
    assert outcome.code == 2
    assert f"--{name} needs the package {name}" in outcome.err
    assert "pip install" in outcome.err
