"""A small finished run for the tests of the commands, and the command line on it."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from es_service import cli
from es_service.config import resolve
from es_service.directory import RunDirectory
from es_service.session import open_session
from workers.evaluator import Evaluator
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps

GENERATIONS = 6


class Finished(NamedTuple):
    runs_dir: Path
    cache: Path
    name: str = "done"

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.runs_dir, self.name)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _write_corpus(folder: Path) -> None:
    draw = random.Random(3)
    words = ["def", "self", "return", "import", "value", "for", "in", "None", "print", "class"]
    folder.mkdir()
    old = time.time() - 60
    for number in range(40):
        text = " ".join(draw.choice(words) for _ in range(60)) + "\n"
        (folder / f"{number}.txt").write_text(text)
        os.utime(folder / f"{number}.txt", (old, old))


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Six generations of 20 members, keyframes 0, 2, 4, 6, evaluations at 0, 3, 6. Not to be written to."""
    root = tmp_path_factory.mktemp("commands")
    _write_corpus(root / "text")
    finished = Finished(root / "runs", root / "cache")
    config = resolve(
        {
            "population": 20,
            "model": {"width": 16, "layers": 2},
            "algorithm": {"decay": 2},
            "data": {"kind": "files", "paths": [str(root / "text")], "held_out_percent": 20},
            "segment": {"bytes": 8},
            "feeding": {"kind": "members_per_sequence", "members": 4},
            "deployment": {
                "runs_dir": str(finished.runs_dir),
                "generations": GENERATIONS,
                "evaluate_every": 3,
                "evaluation_rows": 16,
                "evaluation_bytes": 8,
                "keyframe_every": 2,
            },
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ES_SERVICE_CACHE", str(finished.cache))
        coordinator = open_session(
            config,
            finished.directory,
            False,
            ReferenceOps(),
            lambda config, corpus: LocalPool({"w": Evaluator(config, corpus.train, ReferenceOps())}),
        )
        assert coordinator.run().generation == GENERATIONS
    return finished


@pytest.fixture
def run_copy(finished_run: Finished, tmp_path: Path) -> Finished:
    """The same run, to be damaged."""
    shutil.copytree(finished_run.runs_dir, tmp_path / "runs")
    return Finished(tmp_path / "runs", finished_run.cache)


@pytest.fixture
def es(
    finished_run: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """`es("journal", "done")`: the command line on the finished run, or on that of `at`."""
    monkeypatch.setenv("ES_SERVICE_CACHE", str(finished_run.cache))

    def call(*words: object, at: Finished = finished_run) -> Outcome:
        without = {"verify", "presets", "eval-file"}
        place = [] if words[0] in without else ["--runs-dir", str(at.runs_dir)]
        capsys.readouterr()
        code = cli.main([*map(str, words), *place])
        return Outcome(code, *capsys.readouterr())

    return call
