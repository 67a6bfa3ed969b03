"""What the dashboards and alerts ask of Prometheus, for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
BOARDS = sorted((ROOT / "dashboards").glob("*.json"))
ALERTS = ROOT / "dashboards" / "alerts.yml"


def board(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def panels(path: Path) -> list[dict[str, Any]]:
    """Panels that show something."""
    return [panel for panel in board(path)["panels"] if panel["type"] != "row"]


def panel_queries() -> dict[str, str]:
    """PromQL by "dashboard: panel, letter", with Grafana's variables in it."""
    return {
        f"{path.stem}: {panel['title']}, {target['refId']}": target["expr"]
        for path in BOARDS
        for panel in panels(path)
        for target in panel["targets"]
    }


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
