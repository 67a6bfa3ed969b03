"""Dashboards, alerts and their provisioning as files: Grafana's own types, names that exist, nothing out of place.

Grafana is not installed here. Its types come from grafana-foundation-sdk, generated from the schemas of Grafana 11.6;
that each query gives data is shown by tests/integration/test_prometheus.py.
"""

from __future__ import annotations

import enum
import itertools
import json
import re
import shutil
import subprocess
import types
import typing
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from dashboards import ALERTS, BOARDS, ROOT, alerts, board, panel_queries, panels
from es_service.metrics import WORKER_METRICS, Metrics

NAMES = [path.stem for path in BOARDS]
PAGE = ROOT / "docs" / "metrics.md"
RAY_AND_PROMETHEUS = {"ray_node_gpus_utilization", "ray_node_gram_used", "up"}


def lost(given, kept, path=""):
    """Where `given` says something that `kept` does not."""
    if isinstance(given, dict):
        for key, value in given.items():
            yield from lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}: no such field"]
    elif isinstance(given, list):
        for n, (value, other) in enumerate(itertools.zip_longest(given, kept)):
            yield from lost(value, other, f"{path}[{n}]")
    elif given != kept:
        yield f"{path}: {given!r} became {kept!r}"


def fits(value, hint):
    """Whether a value read from JSON is one that this type of the schema allows; models are looked into."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is typing.Any or isinstance(hint, typing.TypeVar):
        return True
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(one, inner[1]) for one in value.values())
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [one.value for one in hint] or value in list(hint)
    if hint is float:
        return isinstance(value, int | float)
    if isinstance(value, dict) and hasattr(hint, "from_json"):
        return not list(misfits(hint.from_json(value)))
    return isinstance(value, hint)


def misfits(value, path=""):
    """Fields of the models whose values their type does not allow."""
    if isinstance(value, list):
        for n, one in enumerate(value):
            yield from misfits(one, f"{path}[{n}]")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models") and not isinstance(value, enum.Enum):
        for name, hint in typing.get_type_hints(type(value)).items():
            inner = getattr(value, name)
            if not fits(inner, hint):
                yield f"{path}.{name}: {inner!r} is not {hint}"
            yield from misfits(inner, f"{path}.{name}")


@pytest.fixture(scope="module", autouse=True)
def _panel_types():
    register_default_plugins()


@pytest.mark.parametrize("path", BOARDS, ids=NAMES)
def test_grafana_knows_every_field_and_value(path):
    read = Dashboard.from_json(board(path))
    assert list(lost(board(path), json.loads(JSONEncoder().encode(read)))) == []
    assert list(misfits(read)) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (("panels", 0, "fieldConfig", "defaults", "units"), "s"),
        (("panels", 0, "options", "graphMode"), "areas"),
        (("panels", 0, "gridPos", "w"), "12"),
        (("templating", "list", 1, "refresh"), 7),
        (("panels", 0, "targets", 0, "expression"), "up"),
    ],
)
def test_the_check_finds_what_grafana_does_not_know(field, value):
    data = board(ROOT / "dashboards" / "run.json")
    node = data
    for key in field[:-1]:
        node = node[key]
    node[field[-1]] = value
    read = Dashboard.from_json(data)
    assert [*lost(data, json.loads(JSONEncoder().encode(read))), *misfits(read)]


@pytest.mark.parametrize("path", BOARDS, ids=NAMES)
def test_panels_are_complete_and_do_not_overlap(path):
    data, taken = board(path), set()
    assert len({panel["id"] for panel in data["panels"]}) == len(data["panels"])
    for panel in data["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    for panel in panels(path):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"]), panel["title"]
    titles = [panel["title"] for panel in panels(path)]
    assert len(set(titles)) == len(titles)


def test_dashboards_lead_to_each_other():
    uids = {board(path)["uid"] for path in BOARDS}
    assert len(uids) == len(BOARDS) == 3
    for path in BOARDS:
        links = {link["url"].removeprefix("/d/") for link in board(path)["links"]}
        assert links == uids - {board(path)["uid"]}


# Names.


def head_metrics():
    """Sample names of the head and their labels."""
    found = {}
    metrics = Metrics()
    metrics.build.info({"version": "", "python": "", "backend": ""})
    for family in metrics.registry.collect():
        suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
        for suffix in suffixes.get(family.type, [""]):
            found[family.name + suffix] = family
    return found


def known_names():
    return {*head_metrics(), *(metric.exported for metric in WORKER_METRICS.values()), *RAY_AND_PROMETHEUS}


def queries():
    return panel_queries() | {rule["alert"]: rule["expr"] for rule in alerts()}


@pytest.mark.parametrize("where", queries())
def test_queries_name_metrics_that_exist(where):
    names = set(re.findall(r"\b((?:es_service|ray|process)_\w+|up)\b(?!\s*\()", queries()[where]))
    assert names
    assert names <= known_names()


def test_every_metric_of_ours_is_on_a_dashboard():
    text = " ".join(panel_queries().values())
    base = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known_names() - {"up"}}
    unused = {name for name in base if name not in text and not name.startswith("process_")}
    assert unused == {"es_service_evaluated_generation"}


def table(page, heading):
    """First cells of the rows of the tables below a heading, without backticks."""
    section = page.split(f"\n## {heading}\n", 1)[1].split("\n## ")[0]
    return [cell.strip().strip("`") for cell in re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)]


def test_the_page_has_every_metric_and_only_those():
    page = PAGE.read_text()
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in head_metrics()}
    ours = sorted(name for name in families if name.startswith("es_service_"))
    assert sorted(table(page, "Head")) == ours
    assert sorted(table(page, "Workers")) == sorted(metric.exported for metric in WORKER_METRICS.values())


def test_the_page_says_what_the_code_says():
    """Type and labels of each row are those of the metric."""
    page = PAGE.read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]+\|[^|]*)\|", page, re.MULTILINE))
    metrics = Metrics()
    for name, family in head_metrics().items():
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if base.startswith("es_service_") and family.type != "info":
            kind, labels = (part.strip() for part in rows[base].split("|"))
            assert kind == family.type, base
            wrapped = metrics.registry._names_to_collectors[family.name]
            assert re.findall(r"`(\w+)`", labels) == list(wrapped._labelnames), base
    for metric in WORKER_METRICS.values():
        kind, labels = (part.strip() for part in rows[metric.exported].split("|"))
        assert (kind, tuple(re.findall(r"`(\w+)`", labels))) == (metric.kind, metric.labels)


def test_the_page_has_every_alert_with_its_severity():
    page = PAGE.read_text()
    assert table(page, "Alerts") == [rule["alert"] for rule in alerts()]
    for rule in alerts():
        assert re.search(rf"^\| `{rule['alert']}` \| {rule['labels']['severity']} \|", page, re.MULTILINE)
        assert rule["annotations"]["runbook"].endswith("."), rule["alert"]
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]


# Files that bring them to Prometheus and Grafana.


def read(path):
    return yaml.safe_load((ROOT / "dashboards" / path).read_text())


def test_provisioning_and_compose_fit_together():
    services = read("compose.yaml")["services"]
    mounts = dict(volume.split(":")[:2] for volume in services["grafana"]["volumes"])
    for host in (host for host in mounts if host.startswith(".")):
        assert (ROOT / "dashboards" / host).exists(), host
    assert mounts["./provisioning"] == "/etc/grafana/provisioning"
    assert mounts[".."] == "/es-service"
    ours, rays = read("provisioning/dashboards/es-service.yml")["providers"]
    assert ours["options"]["path"] == "/es-service/dashboards"
    assert rays["options"]["path"].startswith("/tmp/ray/session_latest/metrics/grafana/dashboards")
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / home.removeprefix("/es-service/")).exists()
    (source,) = read("provisioning/datasources/prometheus.yml")["datasources"]
    command = services["prometheus"]["command"]
    assert f"--web.listen-address={source['url'].removeprefix('http://')}" in command
    assert "--config.file=/es-service/cluster/prometheus.yml" in command
    for service in services.values():
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), "pinned"
        assert service["network_mode"] == "host", "targets are on loopback"


def test_prometheus_looks_where_heads_write_by_default():
    from es_service.config import DeploymentConfig

    jobs = yaml.safe_load((ROOT / "cluster" / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs[0]["file_sd_configs"][0]["files"] == [f"{DeploymentConfig().metrics_targets_dir}/*.json"]


promtool = pytest.mark.skipif(not shutil.which("promtool"), reason="no promtool here: apt-get install prometheus")


@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", ROOT / "cluster" / "prometheus.yml"),
        ("check", "rules", ALERTS),
        ("test", "rules", Path(__file__).with_name("alerts_test.yml")),
    ],
    ids=["config", "rules", "alerts fire"],
)
def test_promtool(arguments):
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout + done.stderr


@promtool
def test_promtool_finds_nothing_in_the_names():
    from prometheus_client import generate_latest

    metrics = Metrics()
    metrics.build.info({"version": "1"})
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=generate_latest(metrics.registry), capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
