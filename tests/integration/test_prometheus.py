"""A real Prometheus (Debian's) scrapes a real run on Ray with the shipped config; every query goes through its API.

GPU figures come from an exposition in a file, in Ray's words (their names are checked), as this machine has no GPU.
"""

from __future__ import annotations

import http.server
import json
import math
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from dashboards import ROOT, alerts, panel_queries
from es_service.config import resolve
from es_service.directory import RunDirectory
from es_service.exporter import Exporter
from es_service.launch import launch
from es_service.metrics import WORKER_METRICS, Metrics
from es_service.session import with_corpus

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(not shutil.which("prometheus"), reason="no Prometheus here: apt-get install prometheus"),
]

RUN, CLASSIFIER = "scraped", "classifier"
WINDOW = "30s"
PATIENCE_SECONDS = 150


@pytest.fixture
def config(corpus_dir, tmp_path):
    """Two workers on the node that declares a GPU; the run goes on until it is stopped."""
    tree = {
        "population": 320,
        "model": {"width": 32, "layers": 1},
        "data": {"kind": "files", "paths": [corpus_dir / "train"], "held_out_paths": [corpus_dir / "held_out"]},
        "segment": {"bytes": 8},
        "feeding": {"kind": "members_per_sequence", "members": 32},
        "deployment": {
            "runs_dir": tmp_path / "runs", "generations": 10**6, "lease_pairs": 40, "evaluation_rows": 4,
            "evaluation_bytes": 8, "evaluate_every": 50, "keyframe_every": 10**6, "time_limit_seconds": 250,
            "workers": 2, "worker": {"threads": 1, "num_gpus": 0.5, "backend": "reference"},
            "aggregator_backend": "reference", "metrics_targets_dir": tmp_path / "targets",
        },
    }  # fmt: skip
    return with_corpus(resolve(tree))[0]


@pytest.fixture
def gpu_exporter():
    """Serves the exposition of a GPU node; `serve(ip)` says which node it is and gives the address."""
    servers = []

    def serve(ip):
        text = (Path(__file__).parent / "gpu.prom").read_text().replace("@IP@", ip).encode()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def prometheus(config, tmp_path):
    """The URL of a Prometheus with the shipped config; only the intervals and the places of the two lists are ours."""
    shipped = yaml.safe_load((ROOT / "cluster" / "prometheus.yml").read_text())
    shipped["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    shipped["rule_files"] = [str((ROOT / "cluster" / path).resolve()) for path in shipped["rule_files"]]
    heads, ray_nodes = (job["file_sd_configs"][0] for job in shipped["scrape_configs"])
    assert heads["files"] == ["/tmp/es-service/targets/*.json"]
    heads["files"] = [str(config.deployment.metrics_targets_dir / "*.json")]
    assert ray_nodes["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    ray_nodes["files"] = [str(tmp_path / "prom_metrics_service_discovery.json")]
    config.deployment.metrics_targets_dir.mkdir()
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(shipped))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [f"--config.file={path}", f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address={address}"]
    log = (tmp_path / "prometheus.log").open("w")
    process = subprocess.Popen(["prometheus", *flags], stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.fixture
def classifier(prometheus, config, tmp_path):
    """A head's port that shows an accuracy; no run is behind it, as classifiers need torch."""
    metrics = Metrics()
    metrics.goal.set(1)
    metrics.accuracy.labels("held_out").set(0.75)
    exporter = Exporter(config.deployment, RunDirectory(tmp_path, CLASSIFIER), metrics.registry)
    yield exporter
    exporter.close()


def fetch(url):
    """The text there; a server that has just started may take some seconds on a busy machine."""
    until = time.monotonic() + 20
    while True:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)


def get(url, **parameters):
    return json.loads(fetch(f"{url}?{urllib.parse.urlencode(parameters)}"))["data"]


def substituted(query):
    run = CLASSIFIER if "es_service_accuracy" in query else RUN
    return query.replace("$run", run).replace("$__rate_interval", WINDOW)


def finite(result):
    return any(math.isfinite(float(series["value"][1])) for series in result)


def poll(prometheus, queries, handle):
    """Ask until every query has a value; what each gave last."""
    until = time.monotonic() + PATIENCE_SECONDS
    missing, found = dict(queries), {}
    while missing and time.monotonic() < until:
        assert handle.wait(1) is None, "the run has ended"
        handle.heartbeat()
        for name, query in list(missing.items()):
            found[name] = get(f"{prometheus}/api/v1/query", query=substituted(query))["result"]
            if finite(found[name]):
                del missing[name]
    return found, missing


def write_ray_targets(path, address, gpu_exporter):
    """With Ray's own writer, as the test cluster has no dashboard; the GPU's node is one more in its list."""
    import ray
    from ray._private.metrics_agent import PrometheusServiceDiscoveryWriter

    (node,) = [node for node in ray.nodes() if node["Resources"].get("GPU")]
    PrometheusServiceDiscoveryWriter(address, str(path.parent)).write()
    (group,) = json.loads(path.read_text())
    assert group["labels"] == {"job": "ray"}
    assert f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" in group["targets"]
    group["targets"].append(gpu_exporter(node["NodeManagerAddress"]))
    path.write_text(json.dumps([group]))
    return group["targets"]


def test_every_query_of_the_dashboards_and_alerts(config, ray_address, prometheus, classifier, gpu_exporter, tmp_path):
    directory = RunDirectory(config.deployment.runs_dir, RUN)
    queries = panel_queries()
    assert len(queries) > 40
    with launch(config, directory, resume=False, address=ray_address) as (handle, _):
        nodes = write_ray_targets(tmp_path / "prom_metrics_service_discovery.json", ray_address, gpu_exporter)
        both = {"both workers": 'count(ray_es_service_worker_info{run="$run"}) == 2'}
        _, missing = poll(prometheus, queries | both, handle)
        assert not missing, f"no data: {missing}"
        found, _ = poll(prometheus, queries, handle)
        for rule in alerts():
            get(f"{prometheus}/api/v1/query", query=rule["expr"])  # raises where it cannot be evaluated
        (group,) = get(f"{prometheus}/api/v1/rules")["groups"]
        assert {rule["name"]: rule["health"] for rule in group["rules"]} == {r["alert"]: "ok" for r in alerts()}
        check_federation(fetch(f"{prometheus}/{federation()}"))
        runs = {"match[]": "es_service_goal_generations"}
        assert get(f"{prometheus}/api/v1/label/run/values", **runs) == [CLASSIFIER, RUN], (
            "the variable `run` of the dashboards"
        )
        (target,) = json.loads(next(config.deployment.metrics_targets_dir.glob(f"{RUN}-*.json")).read_text())[0][
            "targets"
        ]
        expositions = [text_of(target), *map(text_of, nodes)]
        handle.stop("enough")
        while handle.wait(0.1) is None:
            handle.heartbeat()
    check_values(found)
    check_expositions(expositions)
    assert list(config.deployment.metrics_targets_dir.iterdir()) == [classifier.path]


def text_of(target):
    return fetch(f"http://{target}/metrics")


def federation():
    """What the PodMonitor for Kubernetes makes another Prometheus ask for."""
    monitor = yaml.safe_load((ROOT / "cluster" / "kuberay" / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    return f"{endpoint['path']}?{urllib.parse.urlencode(endpoint['params'], doseq=True)}".removeprefix("/")


def check_federation(text):
    """All that the dashboards and alerts ask for is handed on, under the labels of the runs."""
    names = set(re.findall(r"^(\w+)\{", text, re.MULTILINE))
    asked = " ".join([*panel_queries().values(), *(rule["expr"] for rule in alerts())])
    assert set(re.findall(r"\b((?:es_service|ray|process)_\w+|up)\b(?!\s*\()", asked)) <= names
    assert re.search(rf'^up\{{instance="{RUN}",job="es-service",run="{RUN}"\}} 1 ', text, re.MULTILINE)


def check_values(found):
    """That data came is not all: a few figures whose value is known."""

    def values(name):
        return [float(series["value"][1]) for series in found[name]]

    assert sum(values("run: Vote balance, A")) == pytest.approx(1)
    assert values("run: Members and weights, A") == [320]
    assert values("fleet: GPU utilisation by worker, A") == [0.87, 0.87], "two workers share the GPU"
    assert {series["metric"]["worker"] for series in found["fleet: Model bytes a second, A"]} <= {
        "worker-1",
        "worker-2",
    }
    assert values("service: Head reached, A") == [1]
    assert 0 < values("service: Busy share of the head's loop, A")[0] <= 1.05


def check_expositions(expositions):
    """`promtool check metrics` finds nothing in the head's metrics, nor in ours among Ray's.

    Ray's labels (NodeAddress) break the rule for names and are no choice of ours, so they are left out.
    """
    head, *nodes = expositions
    names = tuple(metric.exported for metric in WORKER_METRICS.values())
    ours = [line for text in nodes for line in text.splitlines() if any(name in line for name in names)]
    assert {name for name in names if any(line.startswith(name) for line in ours)} == set(names)
    rays = re.compile(r"(?:Component|NodeAddress|SessionName|Version|WorkerId)=\"[^\"]*\",?")
    ours = dict.fromkeys(rays.sub("", line) for line in ours)
    for text in (head, "\n".join(ours) + "\n"):
        check = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
        assert (check.returncode, check.stdout, check.stderr) == (0, "", ""), text[:2000]


def test_the_names_of_the_recorded_gpu_metrics_are_those_of_ray():
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    text = (Path(__file__).parent / "gpu.prom").read_text()
    recorded = set(re.findall(r"^ray_(\w+)\{", text, re.MULTILINE))
    assert recorded == {name for name in recorded if name in METRICS_GAUGES}
    for query in panel_queries().values():
        assert set(re.findall(r"\bray_(node_\w+)", query)) <= recorded, query
