"""Schemas of the Kubernetes objects in cluster/kuberay, as the API server applies them.

`crds.json.gz` holds version v1 of the CRDs of KubeRay 1.7.0 and prometheus-operator 0.93.0 without their
descriptions; both projects are under the Apache License 2.0. They are in no package registry.
`python tests/crds.py FOLDER` makes the file from a folder with the CRDs as YAML: KubeRay's
`ray-operator/config/crd/bases` and `example/prometheus-operator-crd` of prometheus-operator.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).with_name("crds.json.gz")
KINDS = ("RayCluster", "RayJob", "PodMonitor", "PrometheusRule")


def schema(kind: str) -> dict[str, Any]:
    """JSON schema of a kind. Unknown fields are refused; int-or-string is either."""
    read: dict[str, Any] = json.loads(gzip.decompress(SCHEMAS.read_bytes()))
    return _strict(read[kind])


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _strict(value) for key, value in node.items()}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if str(node.get("pattern")).startswith("^(?i)"):  # as Go writes it
        node["pattern"] = "(?i)^" + node["pattern"].removeprefix("^(?i)")
    if "properties" in node and node["properties"].get("kind") != {"type": "string"}:
        node.setdefault("additionalProperties", False)
    return node


def _bare(node: Any) -> Any:
    """Without descriptions, which are strings; a property of that name is a mapping."""
    if isinstance(node, list):
        return [_bare(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: value for key, value in node.items() if key != "description" or not isinstance(value, str)}
    return {key: _bare(value) for key, value in kept.items()}


def _main(folder: Path) -> None:
    found = {}
    for path in folder.glob("*.yaml"):
        crd = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
        kind = crd["spec"]["names"]["kind"]
        if kind in KINDS:
            (version,) = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
            found[kind] = _bare(version["schema"]["openAPIV3Schema"])
    text = json.dumps({kind: found[kind] for kind in KINDS}, separators=(",", ":"))
    SCHEMAS.write_bytes(gzip.compress(text.encode(), 9, mtime=0))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
