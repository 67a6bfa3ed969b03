"""Fixtures for all tests: a private corpus cache, a tiny corpus and configs on it, and the hypothesis profiles.

Those of tests on a Ray cluster are in `cluster_fixtures`, for several folders and one cluster.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from es_service.config import RunConfig, resolve

pytest_plugins = ["cluster_fixtures"]

settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],  # contracts are inherited
)
settings.register_profile("explore", settings.get_profile("ci"), derandomize=False, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

TINY: dict[str, Any] = {
    "population": 40,
    "model": {"width": 16, "layers": 1},
    "segment": {"bytes": 4},
    "feeding": {"kind": "members_per_sequence", "members": 8},
    "deployment": {
        "pool": "local",
        "generations": 5,
        "lease_pairs": 5,
        "evaluate_every": 3,
        "evaluation_rows": 2,
        "keyframe_every": 2,
        "metrics_port": -1,
        "audit_share": 0.0,
        "sliced_updates": "never",
        "detach": True,
    },
}


# Where several processes share the tests, it is file by file. One of them begins with all on Ray, whose cluster is one.
ON_RAY = ("tests/chaos/", "tests/integration/")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ON_RAY[0] if nodeid.startswith(ON_RAY) else super()._split_scope(nodeid)

    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: not item.nodeid.startswith(ON_RAY))


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ES_SERVICE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus_dir(tmp_path_factory) -> Path:
    """Twelve small text files, ten for training and two held out."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(5)
    words = ["def", "return", "the", "of", "self", "x", "=", "(", "):\n", "    ", "é", "0", "and", "import", "\n"]
    for split, count in (("train", 10), ("held_out", 2)):
        (folder / split).mkdir()
        for n in range(count):
            (folder / split / f"{n}.txt").write_text(" ".join(rng.choices(words, k=150)), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_config(corpus_dir, tmp_path_factory):
    """`tiny_config(seed=3, deployment__max_lag=0)`: a config that trains in a fraction of a second, with changes."""
    runs_dir = tmp_path_factory.mktemp("runs")

    def make(**changes: Any) -> RunConfig:
        data = {"kind": "files", "paths": [corpus_dir / "train"], "held_out_paths": [corpus_dir / "held_out"]}
        tree = {**TINY, "data": data, "deployment": TINY["deployment"] | {"runs_dir": runs_dir}}
        for key, value in changes.items():
            *parents, name = key.split("__")
            node = tree
            for parent in parents:
                node[parent] = dict(node.get(parent, {}))
                node = node[parent]
            node[name] = value
        return resolve(tree)

    return make
