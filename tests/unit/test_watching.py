"""Page and trackers beside `train` and `resume`: when there are any, and what is said where there can be none."""

from __future__ import annotations

import re
import socket
import sys
from argparse import Namespace

import pytest

from es_service.commands.watching import watching
from es_service.directory import RunDirectory
from es_service.errors import ConfigError

LOCAL = ("--set", "deployment.pool=local")


def flags(**changes):
    return Namespace(**{"dashboard": None, "dashboard_port": 0, "tensorboard": False, "wandb": False} | changes)


def said(capsys, config, directory, **changes):
    with watching(config, directory, flags(**changes), resume=False) as announce:
        announce()
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("terminal", "wanted", "detach", "page"),
    [(True, None, False, True), (False, None, False, False), (True, False, False, False), (False, True, False, True),
     (True, None, True, False)],
)  # fmt: skip
def test_by_default_there_is_a_page_where_a_person_sits(
    finished_run, capsys, monkeypatch, tiny_config, terminal, wanted, detach, page
):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    config = tiny_config(deployment__detach=detach)
    out = said(capsys, config, finished_run.directory, dashboard=wanted)
    assert bool(re.search(r"live page: http://127\.0\.0\.1:\d+/", out)) == page


@pytest.mark.parametrize("option", ["dashboard", "tensorboard", "wandb"])
def test_a_detached_run_has_nobody_to_look_on(tmp_path, tiny_config, option, capsys):
    with pytest.raises(ConfigError, match=rf"--{option}: .*`es-service dashboard NAME`"):
        said(capsys, tiny_config(deployment__detach=True), RunDirectory(tmp_path, "r"), **{option: True})


def test_a_run_whose_files_are_elsewhere_is_said_to_be(tmp_path, tiny_config, capsys):
    directory = RunDirectory(tmp_path, "r")
    out = said(capsys, tiny_config(deployment__detach=False), directory, dashboard=True)
    assert out.startswith("no page and no tracker")
    assert f"es-service dashboard r --runs-dir {tmp_path}" in out
    assert not directory.path.exists()


def test_a_resumed_run_has_its_page_and_its_events_for_tensorboard(es, run_copy):
    pytest.importorskip("tensorboard", reason="pip install 'es-service[tensorboard]'")
    outcome = es("resume", "done", *LOCAL, "--dashboard", "--dashboard-port", "0", "--tensorboard", at=run_copy)
    assert outcome.code == 0, outcome.err
    assert "live page: http://127.0.0.1:" in outcome.out
    assert len(list((run_copy.directory.path / "tensorboard").glob("events.out.tfevents.*"))) == 1
    assert "the run goes on without it" not in outcome.err


def test_a_port_that_is_taken_is_said_before_anything_starts(es, run_copy):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = es("resume", "done", *LOCAL, "--dashboard", "--dashboard-port", port, at=run_copy)
        assert es("dashboard", "done", "--port", port, at=run_copy).code == 2
    assert outcome.code == 2
    assert f"port {port}: the page cannot be served there" in outcome.err
    assert "kernels:" not in outcome.out


def test_a_page_of_no_run(es):
    outcome = es("dashboard", "nobody")
    assert outcome.code == 3
    assert "no run of this name" in outcome.err
