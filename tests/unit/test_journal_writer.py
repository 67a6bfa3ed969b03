"""The journal's writer: nothing lost, nothing claimed that is not durable, never two at once."""

import errno
import fcntl
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from es_service import journal_writer
from es_service.durable import write_atomically
from es_service.errors import ConfigError, JournalError, RunError
from es_service.journal import MAGIC, Change, Close, Commit, Header, encode, scan
from es_service.journal_writer import LOCK_FILE, JournalWriter

HEADER = Header({"seed": 7, "model": {"kind": "egg", "width": 16}}, 99)


def commit(generation, record=b"\x01\x02\x03"):
    return Commit(generation, 15, 512, -1000, -90, 3, 99 + generation, record)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.bin"


@pytest.fixture
def writer(path):
    with JournalWriter.create(path, HEADER) as writer:
        yield writer


def written(path, *records):
    with JournalWriter.create(path, HEADER) as writer:
        for record in records:
            writer.append(record)
    return path.read_bytes()


# Appending


def test_appended_bytes_are_the_encoded_records(path):
    records = [commit(0), Change(1, {"seed": 7}), commit(1), Close(2, 5)]
    assert written(path, *records) == MAGIC + b"".join(encode(record) for record in [HEADER, *records])


def test_size_generation_and_fsync_time_are_exposed(path, writer):
    assert (writer.bytes, writer.generation, writer.fsync_seconds) == (path.stat().st_size, 0, 0.0)
    writer.append(commit(0))
    assert (writer.bytes, writer.generation) == (path.stat().st_size, 1)
    assert writer.fsync_seconds > 0


def test_a_record_is_one_write_then_one_fsync(writer, monkeypatch):
    calls = []
    pwrite, fsync = os.pwrite, os.fsync
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: calls.append("write") or pwrite(fd, data, offset))
    monkeypatch.setattr(os, "fsync", lambda fd: calls.append("fsync") or fsync(fd))
    writer.append(commit(0, bytes(100_000)))
    assert calls == ["write", "fsync"]


@pytest.mark.parametrize("record", [commit(1), Change(1, {}), Close(1, 0), HEADER, Commit(0, 1, 1, 1, 1, 1, 98, b"")])
def test_a_record_out_of_order_is_refused_and_the_writer_goes_on(path, writer, record):
    before = path.read_bytes()
    with pytest.raises(JournalError, match="was not written"):
        writer.append(record)
    assert path.read_bytes() == before
    writer.append(commit(0))


def test_nothing_follows_a_close_record(path, writer):
    writer.append(Close(0, 99))
    with pytest.raises(JournalError, match="closed"):
        writer.append(commit(0))


def test_a_writer_that_was_closed_writes_nothing(writer):
    writer.close()
    writer.close()
    with pytest.raises(JournalError, match="closed"):
        writer.append(commit(0))


# Creating and opening


def test_create_refuses_a_second_run_of_the_name(path):
    before = written(path, commit(0))
    with pytest.raises(RunError, match=r"exists: resume"):
        JournalWriter.create(path, HEADER)
    assert path.read_bytes() == before
    JournalWriter.open(path)[0].close()


def test_create_needs_a_directory(tmp_path):
    with pytest.raises(RunError, match="No such file"):
        JournalWriter.create(tmp_path / "missing" / "journal.bin", HEADER)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_an_unwritable_directory_is_named(path, monkeypatch, number):
    written(path)
    monkeypatch.setattr(os, "open", _raises(number))  # root may write anywhere
    with pytest.raises(RunError, match=r"journal\.bin: cannot open the run for writing.*writable"):
        JournalWriter.open(path)


def test_create_leaves_nothing_when_the_disk_is_full(path, monkeypatch):
    monkeypatch.setattr(journal_writer, "write_atomically", _raises(errno.ENOSPC))
    with pytest.raises(RunError, match="free space"):
        JournalWriter.create(path, HEADER)
    assert not path.exists()
    monkeypatch.undo()
    JournalWriter.create(path, HEADER).close()


def test_open_refuses_a_missing_journal(path):
    with pytest.raises(RunError, match="no journal"):
        JournalWriter.open(path)
    assert list(path.parent.iterdir()) == []


def test_open_goes_on_where_the_journal_ends(path):
    first = written(path, commit(0))
    writer, contents = JournalWriter.open(path, HEADER.spec)
    with writer:
        assert (contents.torn_bytes, contents.close, writer.bytes) == (0, None, len(first))
        writer.append(commit(1))
    assert path.read_bytes() == first + encode(commit(1))


def test_open_cuts_and_reports_a_torn_tail_at_every_byte(path):
    whole = written(path, commit(0), commit(1))
    good = len(whole) - len(encode(commit(1)))
    for size in range(good + 1, len(whole)):
        path.write_bytes(whole[:size])
        writer, contents = JournalWriter.open(path)
        with writer:
            assert (contents.valid_bytes, contents.torn_bytes) == (good, size - good)
            assert path.stat().st_size == good
            writer.append(commit(1))
        assert path.read_bytes() == whole


def test_open_leaves_a_damaged_journal_as_it_is(path):
    damaged = bytearray(written(path, commit(0), commit(1)))
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    for _ in range(2):  # the lock is given up
        with pytest.raises(JournalError, match="byte "):
            JournalWriter.open(path)
    assert path.read_bytes() == damaged


def test_resume_after_close_gives_the_bytes_of_an_undisturbed_run(tmp_path):
    path, undisturbed = tmp_path / "journal.bin", tmp_path / "other" / "journal.bin"
    undisturbed.parent.mkdir()
    expected = written(undisturbed, commit(0), commit(1), Close(2, 5))
    written(path, commit(0), Close(1, 4))
    writer, contents = JournalWriter.open(path)
    with writer:
        assert contents.close == Close(1, 4)
        assert contents.append_offset == writer.bytes
        writer.append(commit(1))
        writer.append(Close(2, 5))
    assert path.read_bytes() == expected


def test_a_resume_that_comes_to_nothing_leaves_a_finished_run_finished(path):
    before = written(path, commit(0), Close(1, 4))
    JournalWriter.open(path)[0].close()
    assert path.read_bytes() == before


def test_another_config_is_refused_by_field(path):
    written(path, commit(0))
    other = {"seed": 7, "model": {"kind": "egg", "width": 32}, "extra": 1}
    with pytest.raises(ConfigError, match=r"extra is None .* 1 .*; model\.width is 16 .* 32 in the config"):
        JournalWriter.open(path, other)
    JournalWriter.open(path, HEADER.spec)[0].close()


def test_the_spec_to_resume_with_is_that_of_the_last_change(path):
    written(path, commit(0), Change(1, {"seed": 8}))
    with pytest.raises(ConfigError, match="model is"):
        JournalWriter.open(path, HEADER.spec)
    JournalWriter.open(path, {"seed": 8})[0].close()


# Faults while appending


def _raises(number):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    return fail


def _full_after(count):
    """A disk with room for `count` more bytes: a short write, then ENOSPC."""
    room, pwrite = [count], os.pwrite

    def limited(fd, data, offset):
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = pwrite(fd, bytes(data)[: room[0]], offset)
        room[0] -= done
        return done

    return limited


def test_disk_full_at_every_byte_cuts_back(path, writer, monkeypatch):
    writer.append(commit(0))
    before = path.read_bytes()
    for room in range(len(encode(commit(1)))):
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", _full_after(room))
            with pytest.raises(JournalError, match=r"journal\.bin, byte \d+: .*No space left.*free space.*resume"):
                writer.append(commit(1))
        assert path.read_bytes() == before
        with pytest.raises(JournalError, match="nothing is written since a failure"):
            writer.append(commit(1))
        writer.close()
        writer, contents = JournalWriter.open(path)
        assert contents.torn_bytes == 0
    with writer:
        writer.append(commit(1))
    assert path.read_bytes() == before + encode(commit(1))


def test_where_cutting_back_fails_too_the_next_open_cuts(path, writer, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "pwrite", _full_after(20))
    monkeypatch.setattr(os, "ftruncate", _raises(errno.EIO))
    with pytest.raises(JournalError, match="No space left"):
        writer.append(commit(0))
    monkeypatch.undo()
    assert path.stat().st_size == len(before) + 20
    writer.close()
    reopened, contents = JournalWriter.open(path)
    reopened.close()
    assert contents.torn_bytes == 20
    assert path.read_bytes() == before


def test_a_failed_fsync_claims_nothing(path, writer, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", _raises(errno.EIO))
    with pytest.raises(JournalError, match="Input/output error"):
        writer.append(commit(0))
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert (writer.bytes, writer.generation) == (len(before), 0)


def test_an_interrupt_leaves_a_whole_file(path, writer, monkeypatch):
    before = path.read_bytes()

    def interrupt(fd):
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.append(commit(0))
    assert path.read_bytes() == before
    with pytest.raises(JournalError, match="KeyboardInterrupt"):
        writer.append(commit(0))


def test_the_file_size_limit_of_a_real_process(path):
    """A real short write from the kernel, then EFBIG."""
    before = written(path, commit(0))
    script = """
import resource, sys
from pathlib import Path
from es_service.errors import JournalError
from es_service.journal import Commit
from es_service.journal_writer import LOCK_FILE, JournalWriter
path = Path(sys.argv[1])
writer, _ = JournalWriter.open(path)
limit = writer.bytes + 30
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    writer.append(Commit(1, 15, 512, 0, 0, 0, 0, bytes(1000)))
except JournalError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout
    assert "ulimit -f" in done.stdout
    assert path.read_bytes() == before


def test_a_removed_directory_is_noticed(tmp_path):
    directory = tmp_path / "run"
    directory.mkdir()
    with JournalWriter.create(directory / "journal.bin", HEADER) as writer:
        shutil.rmtree(directory)
        with pytest.raises(JournalError, match=r"No such file.*put its directory back"):
            writer.append(commit(0))
    assert not directory.exists()


@pytest.mark.parametrize("change", ["grown", "cut", "replaced"])
def test_a_file_that_another_program_changed_is_not_written(path, writer, change):
    if change == "grown":
        path.write_bytes(path.read_bytes() + b"x")
    elif change == "cut":
        os.truncate(path, writer.bytes - 1)
    else:
        write_atomically(path, path.read_bytes())
    before = path.read_bytes()
    with pytest.raises(RunError, match="another program changed it"):
        writer.append(commit(0))
    assert path.read_bytes() == before


# Two writers


def test_a_second_writer_is_told_who_holds_the_run(path, writer):
    for attempt in (JournalWriter.open, lambda path: JournalWriter.create(path, HEADER)):
        with pytest.raises(RunError, match=rf"in use by pid {os.getpid()} on "):
            attempt(path)
    writer.append(commit(0))


def test_a_glance_of_status_does_not_keep_a_resume_out(path, writer):
    """It holds the lock, shared, for a moment."""
    writer.close()
    glance = os.open(path.parent / LOCK_FILE, os.O_RDONLY)
    fcntl.flock(glance, fcntl.LOCK_SH)
    threading.Timer(0.2, os.close, [glance]).start()
    JournalWriter.open(path)[0].close()


HOLD = """
import sys, time
from pathlib import Path
from es_service.journal_writer import LOCK_FILE, JournalWriter
writer, _ = JournalWriter.open(Path(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""


def test_another_process_holds_the_run_until_it_is_killed(path):
    written(path, commit(0))
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "open\n"
            with pytest.raises(RunError, match=f"in use by pid {process.pid} on "):
                JournalWriter.open(path)
        finally:
            process.send_signal(signal.SIGKILL)
    with JournalWriter.open(path)[0] as writer:
        writer.append(commit(1))


@pytest.fixture
def no_flock(monkeypatch):
    """A network file system on which two heads can both hold the lock."""
    monkeypatch.setattr(journal_writer.fcntl, "flock", lambda *_: None)


def test_a_head_that_was_taken_over_writes_nothing(path, writer, no_flock):
    writer.append(commit(0))
    successor, contents = JournalWriter.open(path)
    with successor:
        assert len(contents.commits) == 1
        with pytest.raises(RunError, match=r"another head took over \(epoch 2 pid"):
            writer.append(commit(1))
        with pytest.raises(JournalError, match="took over"):
            writer.append(commit(1))
        successor.append(commit(1))
    assert len(scan(path).commits) == 2


def test_a_head_that_is_overtaken_during_an_append_does_not_cut_its_successors_records(
    path, writer, no_flock, monkeypatch
):
    """It passes its checks, sleeps, then fails to write: the successor's file stays whole."""
    pwrite = os.pwrite

    def late(fd, data, offset):
        monkeypatch.setattr(os, "pwrite", pwrite)
        with JournalWriter.open(path)[0] as successor:
            successor.append(commit(0))
            successor.append(commit(1))
        raise OSError(errno.EIO, "late")

    monkeypatch.setattr(os, "pwrite", late)
    with pytest.raises(JournalError, match="late"):
        writer.append(commit(0))
    assert len(scan(path).commits) == 2


def test_an_overtaken_heads_late_record_falls_on_its_equal(path, writer, no_flock, monkeypatch):
    """The window that no check can close on such a file system: both write generation 0, at one offset."""
    pwrite = os.pwrite

    def late(fd, data, offset):
        monkeypatch.setattr(os, "pwrite", pwrite)
        with JournalWriter.open(path)[0] as successor:
            successor.append(commit(0))
            successor.append(commit(1))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", late)
    writer.append(commit(0))
    assert list(scan(path).commits) == [commit(0), commit(1)]
    with pytest.raises(RunError, match="took over"):
        writer.append(commit(1))


def test_epochs_rise_by_one_and_a_damaged_one_is_an_error(path):
    written(path)
    for epoch in (2, 3):
        JournalWriter.open(path)[0].close()
        assert (path.parent / "epoch").read_text().startswith(f"{epoch} pid {os.getpid()} on ")
    for text in ("", "x\n"):
        (path.parent / "epoch").write_text(text)
        with pytest.raises(RunError, match="not an epoch number"):
            JournalWriter.open(path)


def test_two_heads_that_raise_the_epoch_at_once_do_not_share_it(path, writer, no_flock):
    first, _ = JournalWriter.open(path)
    (path.parent / "epoch").write_text("1")
    second, _ = JournalWriter.open(path)
    with first, second:
        assert first._epoch.split()[0] == second._epoch.split()[0] == "2"
        with pytest.raises(RunError, match="took over"):
            first.append(commit(0))
        second.append(commit(0))


def test_readers_need_no_lock(path, writer):
    writer.append(commit(0))
    assert len(scan(path).commits) == 1


# Histories


STEPS = st.lists(st.sampled_from(["commit", "change", "close", "tear", "full", "reopen"]), max_size=12)


@given(STEPS, st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_history_of_faults_and_resumes_leaves_the_journal_of_its_records(tmp_path_factory, steps, data):
    path = tmp_path_factory.mktemp("history") / "journal.bin"
    writer, kept = JournalWriter.create(path, HEADER), []
    for step in steps:
        if step == "tear" or step == "reopen" or (kept and isinstance(kept[-1], Close)):
            writer.close()
            if step == "tear" and kept:
                kept.pop()
                size = path.stat().st_size
                start = len(_journal(kept))
                os.truncate(path, data.draw(st.integers(start, size - 1)))
            writer, contents = JournalWriter.open(path)
            if kept and isinstance(kept[-1], Close):
                assert contents.close == kept.pop()
                assert path.read_bytes() == _journal([*kept, contents.close]), "it stays until the run goes on"
                writer.append(commit(sum(isinstance(record, Commit) for record in kept)))
                kept.append(commit(sum(isinstance(record, Commit) for record in kept)))
            continue
        done = sum(isinstance(record, Commit) for record in kept)
        record = {"change": Change(done, {"seed": len(kept)}), "close": Close(done, 5)}.get(step, commit(done))
        if step == "full":
            _append_to_full_disk(writer, record, data.draw(st.integers(0, len(encode(record)) - 1)))
            writer.close()
            writer, _ = JournalWriter.open(path)
        else:
            writer.append(record)
            kept.append(record)
        assert path.read_bytes() == _journal(kept)
    writer.close()
    assert path.read_bytes() == _journal(kept)


def _journal(records):
    return MAGIC + b"".join(encode(record) for record in [HEADER, *records])


def _append_to_full_disk(writer, record, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", _full_after(room))
        with pytest.raises(JournalError):
            writer.append(record)


# Files that appear whole or not at all


def test_write_atomically_keeps_the_old_file_on_failure(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "fsync", _raises(errno.ENOSPC))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_errors_survive_pickling(path, writer):
    writer.close()
    with pytest.raises(JournalError) as caught:
        writer.append(commit(0))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_write_atomically_syncs_the_file_then_its_name(tmp_path, monkeypatch):
    path, synced, fsync = tmp_path / "file", [], os.fsync

    def record(fd):
        synced.append((Path(f"/proc/self/fd/{fd}").readlink().suffix, path.exists()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    write_atomically(path, b"one", b"two")
    assert synced == [(".tmp", False), ("", True)]
    assert path.read_bytes() == b"onetwo"
