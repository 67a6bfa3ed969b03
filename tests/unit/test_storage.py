"""Storage: a run is rebuilt from it bit for bit, and nothing that it does stops a run."""

from __future__ import annotations

import threading
import time

import fsspec
import pytest
from harness import deployed, expected, local, train

from es_service import storage as module
from es_service.directory import RunDirectory
from es_service.errors import ConfigError, RunError
from es_service.journal import scan
from es_service.storage import Storage, fetch


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    """An empty storage."""
    yield f"file://{tmp_path}/storage" if request.param == "file" else "memory://runs"
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_BYTES", 100)


def fetched(url, name, tmp_path):
    directory = RunDirectory(tmp_path / f"elsewhere-{time.monotonic_ns()}", name)
    fetch(url, name, directory)
    return directory


def files(directory):
    return {path.relative_to(directory.path).as_posix(): path.read_bytes() for path in directory.path.rglob("*.*")}


def lacking_news(run):
    """The run's files without the lines that tell of the last upload, and without the table of its present workers."""
    stored = [b'"stored"', b'"storage_']
    return {
        name: b"".join(line for line in data.splitlines(True) if not any(word in line for word in stored))
        if name.endswith(".jsonl") else data
        for name, data in files(run.directory).items()
        if not name.endswith(".lock") and name != "workers.json"
    }  # fmt: skip


@pytest.mark.parametrize("every", [0.001, 100])
def test_a_fetched_run_is_the_run(tiny_config, url, tmp_path, small_segments, every):
    run = train(tiny_config(deployment__storage_url=url, deployment__storage_every_seconds=every))
    assert run.journal == expected(run.config)
    there = fetched(url, run.directory.name, tmp_path)
    assert lacking_news(type(run)(run.config, there, run.finish)) == lacking_news(run)
    assert scan(there.journal_path).close is not None
    assert [generation for generation in (0, 2, 4, 5) if (there.keyframes_path / f"{generation}.safetensors").exists()]
    longer = deployed(run.config, generations=9, runs_dir=there.path.parent)
    assert train(longer, directory=there).journal == expected(longer)


def test_a_disk_lost_at_any_moment_costs_only_what_was_not_stored(tiny_config, tmp_path, monkeypatch):
    """After any write to the storage, what it holds can be gone on with, to the same journal."""
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)  # the header is in the first
    url, states = "memory://lost", []
    store = fsspec.filesystem("memory").store
    write = Storage.write

    def noted(self, name, data):
        write(self, name, data)
        states.append({path: bytes(file.getvalue()) for path, file in store.items()})

    monkeypatch.setattr(Storage, "write", noted)
    config = tiny_config(deployment__storage_url=url, deployment__storage_every_seconds=0.001)
    run = train(deployed(config, generations=30))
    held = [state for state in states if any("/journal.bin/" in path for path in state)]
    assert any("/journal.bin/00000000000000001000" in path for path in held[-1])
    monkeypatch.setattr(Storage, "write", write)
    for state in held[:: len(held) // 6]:
        store.clear()
        fsspec.filesystem("memory").pipe(state)
        there = fetched(url, run.directory.name, tmp_path)
        assert run.journal.startswith(there.journal_path.read_bytes())
        again = train(deployed(run.config, runs_dir=there.path.parent), directory=there)
        assert again.journal == run.journal
        assert fetched(url, run.directory.name, tmp_path).journal_path.read_bytes() == run.journal
    store.clear()


def test_a_resumed_run_goes_on_in_its_storage(tiny_config, url, tmp_path, small_segments):
    """The close record of the first part is overwritten by the second, wherever the segments end."""
    for goal in (1, 2, 4):
        first = train(tiny_config(deployment__storage_url=url, deployment__generations=goal))
        second = train(deployed(first.config, generations=goal + 2), directory=first.directory)
        there = fetched(url, first.directory.name, tmp_path)
        assert there.journal_path.read_bytes() == second.journal == expected(second.config)
        assert second.directory.metrics_path.read_bytes().startswith(there.metrics_path.read_bytes())


def test_a_close_record_that_is_stored_does_not_shut_the_run_out(tiny_config, url, tmp_path, small_segments):
    """What was written in its place before anything of it was stored: commits, or a change of the population."""
    for goal in (1, 2, 4):
        first = train(tiny_config(deployment__storage_url=url, deployment__generations=goal))
        config = deployed(first.config, generations=goal + 1, storage_url="")  # as a head that is killed soon
        train(config, directory=first.directory)
        grown = deployed(first.config, generations=goal + 2).model_copy(update={"population": 80})
        last = train(grown, directory=first.directory)
        assert len(last.contents.changes) == 1
        assert fetched(url, first.directory.name, tmp_path).journal_path.read_bytes() == last.journal
        more = deployed(grown, generations=goal + 3).model_copy(update={"population": 120})
        last = train(more, directory=first.directory)
        assert fetched(url, first.directory.name, tmp_path).journal_path.read_bytes() == last.journal


def test_old_keyframes_are_removed_there_too(tiny_config, url):
    run = train(tiny_config(deployment__storage_url=url, deployment__keep_keyframes=2))
    names = [name for name, _ in Storage(url, run.directory.name).names("keyframes")]
    assert names == ["4.safetensors", "5.safetensors"]


def test_keyframes_that_were_set_aside_are_removed_there_and_no_others(tiny_config, url):
    run = train(tiny_config(deployment__storage_url=url, deployment__generations=4))
    stored = Storage(url, run.directory.name)
    assert [name for name, _ in stored.names("keyframes")] == ["0.safetensors", "2.safetensors", "4.safetensors"]
    (run.directory.keyframes_path / "0.safetensors").unlink()  # to make room here
    wrong = run.directory.keyframes_path / "2.safetensors"
    wrong.rename(f"{wrong}.wrong")
    train(deployed(run.config, generations=5), directory=run.directory)
    assert [name for name, _ in stored.names("keyframes")] == ["0.safetensors", "4.safetensors", "5.safetensors"]


# What goes wrong there.


def test_keyframes_hold_up_no_journal(tiny_config, tmp_path, monkeypatch):
    """Neither one that cannot be written there nor one that is removed here before it is read."""
    write, generations = Storage.write, module.keyframes.list_generations

    def too_big(self, name, data):
        if name.startswith("keyframes/4."):
            raise OSError("too big")
        write(self, name, data)

    monkeypatch.setattr(module.keyframes, "list_generations", lambda path: [1, *generations(path)])
    monkeypatch.setattr(Storage, "write", too_big)
    url = f"file://{tmp_path}/storage"
    run = train(tiny_config(deployment__storage_url=url))
    assert fetched(url, run.directory.name, tmp_path).journal_path.read_bytes() == run.journal
    reasons = [event["reason"] for event in run.directory.events() if event["kind"] == "storage_failed"]
    assert reasons == ["OSError: too big"]


def test_an_outage_is_two_events_and_the_rest_is_stored_later(tiny_config, tmp_path, monkeypatch):
    write, failures = Storage.write, []

    def flaky(self, name, data):
        if len(failures) < 3:
            failures.append(name)
            raise ConnectionError("no route to the bucket")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", flaky)
    url = f"file://{tmp_path}/storage"
    config = tiny_config(deployment__storage_url=url, deployment__storage_every_seconds=0.001)
    run = train(config, prepare=lambda coordinator: time.sleep(0.1))
    assert run.journal == expected(config)
    assert len(failures) == 3
    assert (run.events["storage_failed"], run.events["storage_recovered"]) == (1, 1)
    assert fetched(url, run.directory.name, tmp_path).journal_path.read_bytes() == run.journal


def test_a_storage_that_fails_to_the_end_is_said_and_stops_nothing(tiny_config, tmp_path, monkeypatch, capsys):
    from es_service.cli import main

    monkeypatch.setattr(Storage, "write", lambda self, name, data: (_ for _ in ()).throw(PermissionError("denied")))
    monkeypatch.setattr(module, "_LAST_TRIES", 1)
    config = tiny_config(deployment__storage_url=f"file://{tmp_path}/storage", deployment__storage_every_seconds=0.001)
    seen = []
    run = train(config, prepare=lambda coordinator: seen.append(coordinator))
    assert run.finish.reason == "goal"
    assert run.journal == expected(config)
    assert seen[0].heartbeat().storage == "PermissionError: denied"
    assert run.events["storage_failed"] == 1
    assert main(["status", run.directory.name, "--runs-dir", str(run.directory.path.parent)]) == 0
    assert "failing: PermissionError: denied" in capsys.readouterr().out


def test_a_storage_that_hangs_holds_up_no_commit(tiny_config, tmp_path, monkeypatch):
    hanging, let_go = threading.Event(), threading.Event()

    def hang(self, name, data):
        hanging.set()
        let_go.wait(60)

    monkeypatch.setattr(Storage, "write", hang)
    monkeypatch.setattr(module, "_LAST_SECONDS", 0.05)
    config = tiny_config(deployment__storage_url=f"file://{tmp_path}/storage", deployment__storage_every_seconds=0.001)
    try:
        run = train(config, prepare=lambda coordinator: hanging.wait(60))
        assert run.journal == expected(config)
        reasons = [event["reason"] for event in run.directory.events() if event["kind"] == "storage_failed"]
        assert reasons == ["the last files were not stored in time"]
    finally:
        let_go.set()


def test_the_head_that_started_last_stores(tiny_config, url, tmp_path, small_segments):
    """An old head that is still alive, as behind a broken network, cuts nothing of what a new one stored."""
    there = []

    def another(coordinator):
        name = coordinator.directory.name
        begun = coordinator.directory.journal_path.stat().st_size
        while sum(size for _, size in Storage(url, name).segments("journal.bin")) < begun:
            time.sleep(0.001)
        directory = fetched(url, name, tmp_path)
        config = deployed(directory.read_config(), runs_dir=directory.path.parent, generations=9)
        there.append(train(config, directory=directory))

    config = tiny_config(deployment__storage_url=url, deployment__storage_every_seconds=0.001)
    run = train(config, prepare=another)
    assert (
        fetched(url, run.directory.name, tmp_path).journal_path.read_bytes()
        == there[0].journal
        == expected(there[0].config)
    )
    reasons = [event["reason"] for event in run.directory.events() if event["kind"] == "storage_failed"]
    assert reasons == ["RunError: another head stores this run now; stop this one"]


# What is refused.


def test_a_name_that_is_taken_there(tiny_config, url, tmp_path):
    run = train(tiny_config(deployment__storage_url=url))
    again = deployed(run.config, runs_dir=tmp_path)
    with pytest.raises(RunError, match="holds a run of this name"):
        train_new(again, RunDirectory(tmp_path, run.directory.name))
    assert not (tmp_path / run.directory.name).exists()


def train_new(config, directory):
    from es_service.session import open_session
    from workers.ops.reference import ReferenceOps

    open_session(config, directory, False, ReferenceOps(), local())


def test_another_run_there(tiny_config, url):
    run = train(tiny_config(deployment__storage_url=url))
    other = train(tiny_config(seed=99, deployment__storage_url=""))
    there = Storage(url, other.directory.name)
    for name, _ in list(Storage(url, run.directory.name).segments("journal.bin")):
        part = Storage(url, run.directory.name).segment("journal.bin", name)
        there.write(part, Storage(url, run.directory.name).read(part))
    with pytest.raises(RunError, match="holds another run"):
        train(deployed(other.config, storage_url=url, generations=7), directory=other.directory)


def test_more_of_the_run_there_than_here(tiny_config, url, tmp_path):
    run = train(tiny_config(deployment__storage_url=url))
    there = fetched(url, run.directory.name, tmp_path)
    train(deployed(run.config, generations=9, runs_dir=there.path.parent), directory=there)
    with pytest.raises(RunError, match=r"went on elsewhere.*--from"):
        train(deployed(run.config, generations=7), directory=run.directory)


def test_a_url_that_nobody_knows(tiny_config):
    with pytest.raises(ConfigError, match=r"deployment\.storage_url.*nosuch"):
        train(tiny_config(deployment__storage_url="nosuch://bucket"))
    with pytest.raises(ConfigError, match=r"deployment\.storage_url"):
        tiny_config(deployment__storage_url="/mnt/nfs")


def test_a_storage_that_does_not_answer(tiny_config, monkeypatch):
    def names(self, folder):
        raise TimeoutError("no answer")

    monkeypatch.setattr(Storage, "names", names)
    with pytest.raises(RunError, match=r"cannot be read \(TimeoutError: no answer\)"):
        train(tiny_config(deployment__storage_url="memory://x"))
    with pytest.raises(RunError, match="cannot be fetched"):
        fetch("memory://x", "run", RunDirectory(tiny_config().deployment.runs_dir, "none"))


@pytest.mark.parametrize(("question", "call"), [*(("names", n) for n in range(1, 7)), ("read", 1)])
def test_a_storage_that_goes_away_while_a_run_starts(tiny_config, monkeypatch, question, call):
    """At any of the questions that a resumed run asks: the error names the field, and the journal is free again."""
    run = train(tiny_config(deployment__storage_url="memory://away"))
    longer, ask, calls = deployed(run.config, generations=9), getattr(Storage, question), []

    def failing(self, name):
        calls.append(name)
        if len(calls) == call:
            raise ConnectionResetError("the network is down")
        return ask(self, name)

    monkeypatch.setattr(Storage, question, failing)
    said = r"deployment\.storage_url: memory://away.* cannot be read \(ConnectionResetError.*storage_url=''"
    with pytest.raises(RunError, match=said):
        train(longer, directory=run.directory)
    assert len(calls) == call
    assert train(longer, directory=run.directory).journal == expected(longer)
    fsspec.filesystem("memory").store.clear()


# The commands.


def test_fetch_resume_from_and_train_or_resume(es, finished_run, tmp_path):
    """One run over four directories, as after lost disks."""
    url = f"file://{tmp_path}/storage"
    source = tmp_path / "run.toml"
    source.write_text(toml(finished_run.directory.read_config(), url))
    at = {place: finished_run._replace(runs_dir=tmp_path / place) for place in "abcd"}
    pool = ("--set", "deployment.pool=local")
    begin = ("train", source, "--name", "moved", "--or-resume", *pool)
    for _ in range(2):
        assert "stopped at generation 6: goal" in es(*begin, at=at["a"]).out
    further = es(*begin, "--set", "deployment.generations=8", at=at["b"]).out
    assert "fetched file://" in further
    assert "stopped at generation 8: goal" in further
    last = es("resume", "moved", "--from", url, *pool, "--set", "deployment.generations=9", at=at["c"]).out
    assert "stopped at generation 9: goal" in last
    assert es("fetch", "moved", "--from", url, at=at["d"]).code == 0
    assert es("status", "moved", "--json", at=at["d"]).json["state"] == "finished"
    journals = {at[place].runs_dir.joinpath("moved", "journal.bin").read_bytes() for place in "cd"}
    assert len(journals) == 1
    here = es("fetch", "moved", "--from", url, at=at["d"])
    assert (here.code, "is here already" in here.err) == (3, True)
    nowhere = es("fetch", "other", "--from", url, at=at["d"])
    assert (nowhere.code, "there is no run here" in nowhere.err) == (3, True)
    nameless = es("train", source, "--or-resume", at=at["d"])
    assert (nameless.code, "--name" in nameless.err) == (2, True)


def toml(config, url):
    return f"""
population = 20
[model]
width = 16
layers = 2
[algorithm]
decay = 2
[data]
kind = "files"
paths = ["{config.data.paths[0]}"]
held_out_percent = 20
[segment]
bytes = 8
[feeding]
kind = "members_per_sequence"
members = 4
[deployment]
generations = 6
evaluation_rows = 16
evaluation_bytes = 8
storage_url = "{url}"
"""
