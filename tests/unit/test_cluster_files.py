"""The files in cluster/: Ray's own checks and code, and what those do not look at."""

from __future__ import annotations

import copy
import os
import re
import subprocess
from pathlib import Path

import jsonschema
import pytest
import yaml
from crds import schema

from es_service.config import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
LAUNCHED = ["h100.yaml", "gcp-h100.yaml", "on-premises.yaml"]
CLOUDS = LAUNCHED[:2]
HEAD_CONTAINER = ["headGroupSpec", "template", "spec", "containers", 0]
MANIFESTS = ["raycluster.yaml", "rayjob.yaml"]
MONITOR = "podmonitor.yaml"
LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def manifest(name):
    """The first object of a file for Kubernetes."""
    return next(yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text()))


def containers(group):
    """Those of a pod by name; Ray's is the first, as KubeRay wants it."""
    found = {container["name"]: container for container in group["template"]["spec"]["containers"]}
    assert next(iter(found)).startswith("ray-")
    return found


def cluster_spec(name):
    spec = manifest(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def test_every_file_is_here():
    assert sorted(path.name for path in CLUSTER.glob("*.yaml")) == sorted(LAUNCHED)
    assert sorted(path.name for path in (CLUSTER / "kuberay").iterdir()) == sorted([*MANIFESTS, MONITOR])


# ray up


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_prepares_and_validates_it(name):
    """What `ray up` does before it touches a provider: schema, node types, counts, defaults."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    assert config["max_workers"] >= sum(kind.get("min_workers", 0) for kind in config["available_node_types"].values())


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_refuses_it_with_a_mistake_in_it(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name)) | {"idle_timeout": 5}
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(config)


@pytest.mark.parametrize("name", LAUNCHED)
def test_nothing_is_left_to_the_defaults_of_the_provider(name):
    """The defaults install a nightly Ray, open ports to the world and keep stopped nodes."""
    config = read(name)
    assert {f"{kind}_commands" for kind in LISTS} <= config.keys()
    assert config["file_mounts"]
    if name in CLOUDS:
        assert config["provider"]["cache_stopped_nodes"] is False
    for kind in config.get("available_node_types", {}).values():
        node = kind["node_config"]
        assert node.get("ImageId") or node["disks"][0]["initializeParams"]["sourceImage"]
        assert "0.0.0.0" not in str(config["provider"])
    if config["provider"]["type"] == "aws":
        assert config["provider"]["security_group"]["IpPermissions"]


def start_commands(config):
    return [command for kind in LISTS[-2:] for command in config[f"{kind}_commands"] if "ray start" in command]


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_ray_is_started_with_a_token_and_a_head_with_redis(name):
    config = read(name)
    head, worker = start_commands(config)
    for command in (head, worker):
        assert re.search(r"\bRAY_AUTH_MODE=token\b.*\bray start", command, re.DOTALL)
    assert any(source == "~/.ray/auth_token" for source in config["file_mounts"].values())
    assert "RAY_REDIS_ADDRESS=127.0.0.1:6390" in head
    assert f"RAY_external_storage_namespace={config['cluster_name']}" in head
    assert any("redis-server --port 6390 --bind 127.0.0.1" in line for line in config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    assert "--metrics-export-port=8090" in head
    assert "--metrics-export-port=8090" in worker


@pytest.mark.parametrize("name", LAUNCHED)
def test_its_commands_are_shell(name):
    for kind in LISTS:
        for command in read(name)[f"{kind}_commands"]:
            subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("name", CLOUDS)
def test_nothing_is_installed_beside_the_pins(name):
    """A boto3 of today brings a botocore that s3fs does not take."""
    pinned = set(re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    (command,) = [line for line in read(name)["head_setup_commands"] if "pip install" in line]
    options, package = command.split("pip install ")[1].rsplit(" ", 1)
    assert options == "--quiet --constraint ~/es-service/dist/constraints.txt"
    assert package in pinned
    assert f"pip install --constraint constraints.txt {package} " in (CLUSTER / name).read_text(), "ray up needs it too"
    assert any("python3-venv" in line for line in read(name)["initialization_commands"])


def test_the_pins_of_the_cloud_clients_go_with_those_of_the_storage():
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pins["boto3"] == pins["botocore"]


def test_the_setup_script_is_shell():
    subprocess.run(["bash", "-n", CLUSTER / "setup.sh"], check=True)


@pytest.mark.parametrize("name", LAUNCHED)
def test_its_mounts_are_what_make_wheel_makes_and_the_script_reads(name):
    mounts = {source: target for target, source in read(name)["file_mounts"].items()}
    home = "/home/" + read(name)["auth"]["ssh_user"]
    assert mounts["./dist"] == f"{home}/es-service/dist"
    assert mounts["~/.ray/auth_token"] == f"{home}/.ray/auth_token"
    (setup,) = read(name)["setup_commands"]
    extras = set(re.fullmatch(r"bash ~/es-service/dist/setup\.sh ([a-z0-9,]+)", setup).group(1).split(","))
    known = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert extras <= set(known)
    assert {"cuda", "data"} <= extras, "what the egg-minipile presets need"
    made = (ROOT / "Makefile").read_text()
    assert "cp constraints.txt cluster/setup.sh dist" in made
    assert "--wheel-dir dist" in made


# What the actors ask for


@pytest.mark.parametrize("preset", ["egg-minipile", "egg-minipile-v2"])
@pytest.mark.parametrize("name", CLOUDS)
def test_node_types_hold_exactly_the_actors(name, preset):
    from es_service.launch import _placed

    types = read(name)["available_node_types"]
    config = load(preset)
    assert types["head"]["resources"]["CPU"] == config.deployment.head_num_cpus == 0
    for nodes in (1, 3):
        placed = _placed(config, [types["head"]["resources"]] + nodes * [types["h100"]["resources"]])
        assert placed.deployment.workers == nodes * 8
        need = placed.deployment.worker.resources
        assert {key: 8 * value for key, value in need.items()} == types["h100"]["resources"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_hold_exactly_the_actors(name):
    from es_service.launch import _placed

    spec = cluster_spec(name)
    head, (group,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    offered = {"CPU": int(group["rayStartParams"]["num-cpus"]), "GPU": int(group["rayStartParams"]["num-gpus"])}
    need = _placed(load("egg-minipile"), [offered]).deployment.worker.resources
    assert {key: 8 * value for key, value in need.items()} == offered
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert (int(limits["cpu"]), int(limits["nvidia.com/gpu"])) == (offered["CPU"], offered["GPU"])


# KubeRay


@pytest.mark.parametrize("name", MANIFESTS)
def test_rays_autoscaler_reads_it(name):
    """The code that runs beside the head in Kubernetes: it validates the config that it derives."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr(
        {"metadata": {"name": "x", "namespace": "default"}, "spec": cluster_spec(name)}
    )
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert (types["h100"]["resources"]["CPU"], types["h100"]["resources"]["GPU"]) == (64, 8)
    assert (types["h100"]["min_workers"], types["h100"]["max_workers"]) == (1, 8)
    assert config["idle_timeout_minutes"] == 10


@pytest.mark.parametrize("name", MANIFESTS)
def test_pods_have_token_mode_the_pinned_ray_and_no_root(name):
    import ray

    spec = cluster_spec(name)
    assert spec["rayVersion"] == ray.__version__
    assert spec["authOptions"] == {"mode": "token"}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for name, container in containers(group).items():
            assert container["resources"]["limits"] == container["resources"]["requests"]
            if name.startswith("ray-"):
                assert {"name": "RAY_AUTH_MODE", "value": "token"} in container["env"]


def test_the_job_goes_on_where_the_last_cluster_stopped():
    from es_service.cli import build_parser

    spec = manifest("rayjob.yaml")["spec"]
    words = spec["entrypoint"].split()
    arguments = build_parser().parse_args(words[1:])
    assert arguments.or_resume
    load(arguments.source, arguments.overrides)
    assert spec["backoffLimit"] > 0
    assert float(yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_prometheus_beside_the_head_reads_what_the_service_and_ray_write(name):
    """The shipped config, at a place from which its rules are found, and both of its lists, shared with Ray."""
    from es_service.config import DeploymentConfig

    head = cluster_spec(name)["headGroupSpec"]
    ray, prometheus = containers(head).values()
    assert f"prom/{prometheus['name']}:" in prometheus["image"]
    assert prometheus["image"] in (ROOT / "dashboards" / "compose.yaml").read_text()
    ours, theirs = (
        {mount["mountPath"]: mount for mount in container["volumeMounts"]} for container in (prometheus, ray)
    )
    config = prometheus["args"][0].removeprefix("--config.file=")
    shipped = yaml.safe_load((CLUSTER / "prometheus.yml").read_text())
    rules = [os.path.normpath(f"{config}/../{path}") for path in shipped["rule_files"]]
    made = re.search(r"create configmap (\S+) (.*)", (CLUSTER / "kuberay" / name).read_text())
    files = {Path(word).name: ROOT / word for word in re.findall(r"--from-file=(\S+)", made[2])}
    for path in (config, *rules):
        assert ours[path]["name"] == made[1]
        assert files[ours[path]["subPath"]].is_file()
    assert files["prometheus.yml"] == CLUSTER / "prometheus.yml"
    lists = [path for job in shipped["scrape_configs"] for path in job["file_sd_configs"][0]["files"]]
    assert Path(lists[0]).parent == DeploymentConfig().metrics_targets_dir
    for path in lists:
        (shared,) = [folder for folder in theirs if path.startswith(f"{folder}/")]
        assert ours[shared]["name"] == theirs[shared]["name"]
    volumes = {volume["name"]: volume for volume in head["template"]["spec"]["volumes"]}
    assert volumes.keys() >= {mount["name"] for mount in (*ours.values(), *theirs.values())}
    assert volumes[made[1]]["configMap"]["name"] == made[1]
    assert theirs["/tmp/ray"]["name"] == "ray-logs", "KubeRay's autoscaler mounts the volume of that name"


@pytest.mark.parametrize("name", MANIFESTS)
def test_rays_exporter_listens_in_every_pod(name):
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        port = int(group["rayStartParams"]["metrics-export-port"])
        assert {"containerPort": port, "name": "metrics"} in next(iter(containers(group).values()))["ports"]


def test_an_operators_prometheus_takes_all_of_it_from_there():
    monitor = manifest(MONITOR)["spec"]
    assert monitor["selector"]["matchLabels"] == {"ray.io/node-type": "head"}
    (endpoint,) = monitor["podMetricsEndpoints"]
    for name in MANIFESTS:
        ports = containers(cluster_spec(name)["headGroupSpec"])["prometheus"]["ports"]
        assert [port["name"] for port in ports] == [endpoint["port"]]
    jobs = [job["job_name"] for job in yaml.safe_load((CLUSTER / "prometheus.yml").read_text())["scrape_configs"]]
    assert (endpoint["path"], endpoint["honorLabels"]) == ("/federate", True)
    assert endpoint["params"] == {"match[]": [f'{{job="{job}"}}' for job in jobs]}


@pytest.mark.parametrize("name", [*MANIFESTS, MONITOR])
def test_it_fits_the_schema_of_its_kind(name):
    document = manifest(name)
    jsonschema.validate(document, schema(document["kind"]))
    for path in (["spec"], ["spec", *deepest(document["spec"])]):
        wrong = copy.deepcopy(document)
        node = wrong
        for key in path:
            node = node[key]
        node["noSuchField"] = 1
        with pytest.raises(jsonschema.ValidationError, match="noSuchField"):
            jsonschema.validate(wrong, schema(document["kind"]))


def deepest(node):
    """Where a field of a container or an endpoint is: below lists and templates."""
    if "podMetricsEndpoints" in node:
        return ["podMetricsEndpoints", 0]
    return [*(["rayClusterSpec"] if "rayClusterSpec" in node else []), *HEAD_CONTAINER]


def test_the_alerts_fit_the_operator_as_the_manual_sends_them():
    manual = (ROOT / "docs" / "operations.md").read_text()
    command = re.search(r"^(\{ printf .*\}) \| kubectl apply -f -$", manual, re.MULTILINE | re.DOTALL)[1]
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, check=True, capture_output=True, text=True)
    document = yaml.safe_load(done.stdout)
    jsonschema.validate(document, schema(document["kind"]))
    assert document["spec"] == yaml.safe_load((ROOT / "dashboards" / "alerts.yml").read_text())
