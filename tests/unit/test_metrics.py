"""Metrics of the head: they say what happened, go on from the journal, and are found where the target file says."""

from __future__ import annotations

import json
import re
import socket
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import chaos, deployed, expected, hasty, local, train
from prometheus_client import CollectorRegistry

from es_service.aggregator import HeldOut, saturated_ratios
from es_service.algorithms.eggroll import Eggroll
from es_service.algorithms.noise_step import NoiseStep
from es_service.data import Baselines
from es_service.directory import RunDirectory
from es_service.errors import ConfigError
from es_service.events import Notice
from es_service.exporter import Exporter
from es_service.metrics import LEASE_EVENTS, WORKER_STATES, Metrics
from es_service.pools import Gone
from es_service.problem import algorithm_of, layout_of
from es_service.roster import Roster, State, Worker
from es_service.telemetry import Telemetry

ROOT = Path(__file__).parents[2]


def watched():
    """A list that will hold the telemetry of a run, and what puts it there."""
    seen: list[Telemetry] = []
    return seen, lambda coordinator: seen.append(coordinator.telemetry)


def value(telemetry, name, **labels):
    return telemetry.metrics.registry.get_sample_value(f"es_service_{name}", labels)


@pytest.fixture
def one_run(tiny_config):
    seen, prepare = watched()
    run = train(tiny_config(), prepare=prepare)
    return run, seen[0]


def votes_of(run):
    algorithm = algorithm_of(run.config)
    return np.array([algorithm.votes(record.record) for record in run.contents.commits])


def test_counters_are_what_the_journal_and_the_lines_say(one_run):
    run, telemetry = one_run
    lines = [line for line in run.directory.metrics() if line["kind"] == "commit"]
    votes_GQ = votes_of(run)
    assert value(telemetry, "generations_total") == 5
    for sign, vote in (("plus", 1), ("zero", 0), ("minus", -1)):
        assert value(telemetry, "votes_total", sign=sign) == (votes_GQ == vote).sum()
    assert value(telemetry, "model_bytes_total") == sum(line["model_bytes"] for line in lines) == 5 * 40 * 4
    for direction in ("down", "up"):
        sent = sum(line[f"wire_bytes_{direction}"] for line in lines)
        assert value(telemetry, "wire_bytes_total", direction=direction) == sent > 0
    assert value(telemetry, "journal_fsync_seconds_count") == 5
    assert value(telemetry, "update_seconds_count") == 5
    assert value(telemetry, "generation_seconds_count") == 5
    assert value(telemetry, "lease_events_total", kind="issued") == 20
    assert value(telemetry, "lease_events_total", kind="returned") == 20
    assert value(telemetry, "lease_seconds_count") == 20
    assert value(telemetry, "head_busy_seconds_total") > 0


def test_gauges_are_those_of_the_last_generation(one_run):
    run, telemetry = one_run
    lines = list(run.directory.metrics())
    commit = [line for line in lines if line["kind"] == "commit"][-1]
    update = [line for line in lines if line["kind"] == "update"][-1]
    record = run.contents.commits[4]
    assert value(telemetry, "loss", split="train") == pytest.approx(commit["bits_per_byte"], abs=1e-6)
    assert value(telemetry, "loss", split="held_out") == telemetry.status.held_out
    assert value(telemetry, "evaluated_generation") == 5
    assert value(telemetry, "member_score", statistic="min") == record.score_min / 16
    assert value(telemetry, "member_score", statistic="mean") == record.score_sum / 16 / 40
    assert value(telemetry, "member_score", statistic="max") == record.score_max / 16
    assert value(telemetry, "moved_weights_ratio") == pytest.approx(update["moved_ratio"], abs=1e-6)
    assert 8 * value(telemetry, "record_bytes_per_member") == commit["bits_per_member"] == 0.8
    assert 8 * value(telemetry, "wire_bytes_per_member") == pytest.approx(commit["wire_bits_per_member"], abs=1e-6)
    assert value(telemetry, "journal_bytes") == commit["journal_bytes"]
    assert value(telemetry, "workers", state="active") == value(telemetry, "wanted_workers") == 1
    assert value(telemetry, "goal_generations") == 5
    assert value(telemetry, "population_members") == 40
    assert value(telemetry, "parameters") == layout_of(run.config).size
    assert abs(value(telemetry, "last_commit_timestamp_seconds") - commit["time"]) < 5


def test_counters_of_the_journal_go_on_after_a_restart_and_those_of_events_do_not(tiny_config):
    config = tiny_config(segment={"bytes": 4, "burn_in": 6})
    seen, prepare = watched()
    train(config, prepare=prepare)
    first = train(deployed(config, generations=3), prepare=prepare)
    train(config, directory=first.directory, prepare=prepare)
    whole, _, resumed = seen
    for name, labels in (
        ("generations_total", {}), ("model_bytes_total", {}), ("votes_total", {"sign": "plus"}),
        ("votes_total", {"sign": "zero"}), ("votes_total", {"sign": "minus"}), ("journal_bytes", {}),
    ):  # fmt: skip
        assert value(resumed, name, **labels) == value(whole, name, **labels) > 0, name
    assert value(whole, "model_bytes_total") > 5 * 40 * 4, "the burn-in counts"
    assert value(resumed, "lease_events_total", kind="issued") == 8


def test_a_resumed_head_shows_the_journal_before_its_first_commit(tiny_config):
    config = tiny_config()
    run = train(deployed(config, generations=3))
    states = []

    def at_start(coordinator):
        telemetry = coordinator.telemetry
        assert value(telemetry, "journal_bytes") == coordinator.writer.bytes
        states.append((value(telemetry, "generations_total"), value(telemetry, "loss", split="train")))

    train(config, directory=run.directory, prepare=at_start)
    (line,) = [line for line in run.directory.metrics() if line["kind"] == "commit" and line["generation"] == 2]
    assert states == [(3, pytest.approx(line["bits_per_byte"], abs=1e-6))]


def test_notices_are_counted_by_kind(tiny_config):
    seen, prepare = watched()

    def both(coordinator):
        prepare(coordinator)
        hasty(coordinator)

    config = tiny_config(deployment__generations=8)
    run = train(config, chaos(3), prepare=both)
    assert run.journal == expected(config)
    kinds = [kind for kind in LEASE_EVENTS if kind not in ("issued", "returned", "expired", "other")]
    found = {kind: value(seen[0], "lease_events_total", kind=kind) for kind in kinds}
    assert found == {kind: run.events[kind] for kind in kinds}
    assert sum(found.values()) > 0, "what chaos does depends on the aggregator's pace, but never is it nothing"
    for kind in ("ready", "gone"):
        assert value(seen[0], "worker_events_total", kind=kind) == run.events[f"worker_{kind}"]
    assert value(seen[0], "lease_events_total", kind="other") == 0


def test_every_kind_of_notice_has_a_label():
    sources = "\n".join(path.read_text() for path in (ROOT / "es_service").glob("*.py"))
    kinds = set(re.findall(r'Notice\(\s*"(\w+)"', sources))
    board = (ROOT / "es_service" / "board.py").read_text()
    kinds |= set(re.findall(r'"(\w+)"(?= if | else |\n)', board.split("def add(")[1].split("def ")[0]))
    assert {"hedged", "late", "fell", "audited", "duplicate", "mismatch"} <= kinds <= set(LEASE_EVENTS)


def test_every_state_of_a_worker_has_a_label():
    assert {state.value for state in State} == set(WORKER_STATES)


def test_a_worker_in_quarantine_is_seen_by_a_scrape_though_another_has_taken_its_place(one_run):
    _, telemetry = one_run
    now = telemetry.clock()
    telemetry.clock = lambda: now
    roster = Roster(depth=2)
    machine = SimpleNamespace(roster=roster, in_flight=0, generation=5, aggregated=5)
    shown = []
    for name in ("replaced", "kept"):
        roster.add(name, Worker())
        roster.set_state(name, State.QUARANTINED)
        telemetry.notice(Notice("quarantined", name, 4, "lease 0"))
    roster.remove("replaced")
    for seconds in (0, 500, 601):
        telemetry.clock = lambda later=now + seconds: later
        telemetry.fleet(1)
        telemetry.look(machine, {})
        shown.append(value(telemetry, "workers", state="quarantined"))
    assert shown == [2, 2, 1]


def test_a_notice_that_nobody_knows_is_still_counted(one_run):
    _, telemetry = one_run
    telemetry.notice(Notice("new", "w0", 4))
    assert value(telemetry, "lease_events_total", kind="other") == 1


def test_leases_of_a_lost_worker_expire(tiny_config):
    seen, prepare = watched()

    def lose(coordinator):
        prepare(coordinator)
        pool, poll = coordinator.pool, coordinator.pool.poll
        lost = []

        def polling(timeout):
            if coordinator.machine.generation == 2 and not lost:
                lost.append(len(coordinator.telemetry._given["w1"]))
                del pool._queues["w1"]
                return [Gone("w1", "test")]
            return poll(timeout)

        pool.poll = polling
        coordinator.lost = lost
        seen.append(coordinator)

    train(tiny_config(), local(2), prepare=lose)
    telemetry, coordinator = seen
    assert value(telemetry, "lease_events_total", kind="expired") == coordinator.lost[0] > 0


def test_a_run_scaled_to_no_workers_awaits_no_commit(tiny_config, monkeypatch):
    seen, prepare = watched()
    train(tiny_config(), prepare=prepare)
    telemetry, now = seen[0], [1e9]
    monkeypatch.setattr("es_service.telemetry.time.time", lambda: now[0])
    awaited = value(telemetry, "last_commit_timestamp_seconds")
    for workers, since in ((3, awaited), (0, awaited), (0, awaited), (2, 1e9 + 3), (4, 1e9 + 3)):
        telemetry.scaled(workers)
        assert value(telemetry, "wanted_workers") == workers
        assert value(telemetry, "last_commit_timestamp_seconds") == since
        now[0] += 1


def test_saturated_weights_by_kind(tiny_config):
    layout = layout_of(tiny_config())
    parameters_P = np.zeros(layout.size, np.int8)
    vectors = [tensor for tensor in layout.tensors if tensor.kind == "vector"]
    total = sum(tensor.size for tensor in vectors)
    parameters_P[vectors[0].offset] = 127
    parameters_P[vectors[0].offset + 1] = -127
    parameters_P[vectors[0].offset + 2] = 126
    assert saturated_ratios(layout, parameters_P, Eggroll.largest) == {"matrix": 0, "vector": 2 / total}
    assert saturated_ratios(layout, np.sign(parameters_P), NoiseStep.largest) == {"matrix": 0, "vector": 3 / total}


def test_accuracy_of_a_classifier(one_run):
    _, telemetry = one_run
    assert value(telemetry, "accuracy_ratio", split="held_out") is None
    telemetry.evaluated(5, HeldOut(0.5, 0.75))
    assert value(telemetry, "accuracy_ratio", split="held_out") == 0.75
    assert value(telemetry, "loss", split="held_out") == 0.5


def test_baselines(one_run):
    _, telemetry = one_run
    telemetry.baselines(Baselines(4.5, 3.5, 2.5))
    assert value(telemetry, "baseline_loss", model="bigram") == 3.5


def test_every_family_is_there_from_the_start():
    """A counter that appears with its first event has no increase that a query could see."""
    families = {family.name: family for family in Metrics().registry.collect()}
    counters = [family for family in families.values() if family.type == "counter" and "es_service" in family.name]
    assert counters
    for family in counters:
        assert any(sample.name.endswith("_total") for sample in family.samples), family.name


# The port and the file.


@pytest.fixture
def exposed(tiny_config, tmp_path):
    return deployed(tiny_config(), metrics_port=0, metrics_targets_dir=tmp_path / "targets" / "deeper")


def scrape(target):
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_the_target_file_leads_to_the_metrics_while_the_run_lasts(exposed):
    texts, paths = [], []

    def look(coordinator):
        (path,) = exposed.deployment.metrics_targets_dir.glob("*.json")
        (group,) = json.loads(path.read_text())
        run = coordinator.directory.name
        assert group["labels"] == {"job": "es-service", "run": run, "instance": run}
        texts.append(scrape(group["targets"][0]))
        paths.append((path, group["targets"][0]))

    run = train(exposed, prepare=look)
    assert "es_service_generations_total 0.0" in texts[0]
    assert 'es_service_build_info{backend="reference"' in texts[0]
    ((path, target),) = paths
    assert path.name.startswith(run.directory.name)
    assert not path.exists()
    with pytest.raises(OSError, match="refused"):
        scrape(target)


def test_exporters_of_a_ray_without_dashboard_are_targets_too(exposed, tmp_path):
    directory = RunDirectory(tmp_path, "alone")
    exporter = Exporter(exposed.deployment, directory, CollectorRegistry(), ["192.0.2.1:1234"])
    try:
        head, ray = json.loads(exporter.path.read_text())
        assert head["targets"] == [exporter.address]
        assert ray == {"targets": ["192.0.2.1:1234"], "labels": {"job": "ray"}}
    finally:
        exporter.close()


def test_a_run_that_fails_takes_its_target_back(exposed):
    def broken(config, corpus):
        raise ConfigError("no workers")

    with pytest.raises(ConfigError, match="no workers"):
        train(exposed, broken)
    assert not list(exposed.deployment.metrics_targets_dir.glob("*"))


def test_a_port_in_use_is_an_error_that_names_the_field(exposed):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"deployment\.metrics_port: cannot listen on 127\.0\.0\.1 port {port}"):
            train(deployed(exposed, metrics_port=port))


def test_a_directory_that_cannot_be_made_is_an_error_that_names_the_field(exposed, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"deployment\.metrics_targets_dir: .*metrics_port = -1"):
        train(deployed(exposed, metrics_targets_dir=tmp_path / "file" / "targets"))


def test_no_port_where_none_is_wanted(exposed):
    def look(coordinator):
        assert not exposed.deployment.metrics_targets_dir.exists()

    train(deployed(exposed, metrics_port=-1), prepare=look)
