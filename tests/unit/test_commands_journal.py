"""journal, status, replay: what they say, and what they make of damage."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from es_service import keyframes
from es_service.journal import MAGIC, Close, encode, scan
from es_service.problem import layout_of
from es_service.votes import pack, unpack
from workers.ops.reference import ReferenceOps

REFERENCE = ("--backend", "reference")


def test_journal_says_what_the_file_holds(es, finished_run):
    values = es("journal", "done", "--json").json
    data = finished_run.directory.journal_path.read_bytes()
    assert values["commits"] == values["generations"] == 6
    assert values["bytes"] == len(data)
    assert values["content_hash"] == hashlib.sha256(data).hexdigest()
    assert values["bits_per_member"] == 0.8
    assert values["closed"]
    assert (values["torn_bytes"], values["torn"]) == (0, "")
    assert values["spec"] == json.loads(json.dumps(finished_run.directory.read_config().spec))
    assert values["spec_hash"] == finished_run.directory.read_config().spec_hash
    assert [values[key]["generation"] for key in ("first_digest", "last_digest")] == [0, 6]


def test_journal_counts_votes_and_wire_bits_as_the_metrics_do(es, finished_run):
    values = es("journal", "done", "--json").json
    rows = [row for row in finished_run.directory.metrics() if row["kind"] == "commit"]
    assert values["votes"]["plus"] == sum(row["votes_plus"] for row in rows)
    assert values["votes"]["minus"] == sum(row["votes_minus"] for row in rows)
    assert sum(values["votes"].values()) == 60
    assert values["wire_bits_per_member"] == pytest.approx(np.mean([row["wire_bits_per_member"] for row in rows]))


def test_journal_as_text_has_both_bits_figures_and_the_spec(es):
    out = es("journal", "done").out
    assert "0.800 in the journal" in out
    assert "on the wire" in out
    assert "closed" in out
    assert "  model.width = 16" in out


def test_journal_needs_neither_config_nor_metrics(es, run_copy):
    run_copy.directory.metrics_path.unlink()
    run_copy.directory.config_path.unlink()
    values = es("journal", "done", "--json", at=run_copy).json
    assert values["wire_bits_per_member"] is None
    assert values["commits"] == 6


def test_journal_of_a_run_under_way_reports_its_torn_tail(es, run_copy):
    path = run_copy.directory.journal_path
    path.write_bytes(path.read_bytes()[: -len(encode(Close(6, 0))) - 5])
    outcome = es("journal", "done", "--json", at=run_copy)
    assert outcome.code == 0
    assert (outcome.json["commits"], outcome.json["closed"]) == (5, False)
    assert outcome.json["torn_bytes"] > 0
    assert outcome.json["last_digest"]["generation"] == 4
    assert "torn tail" in es("journal", "done", at=run_copy).out


@pytest.mark.parametrize("command", ["journal", "status", "replay", "plot", "sample", "eval"])
def test_a_missing_run_is_named_with_what_to_do(es, command):
    outcome = es(command, "nope")
    assert outcome.code == 3
    assert "nope" in outcome.err
    assert "es-service status" in outcome.err
    assert outcome.out == ""


@pytest.mark.parametrize("command", ["journal", "status", "replay", "plot", "sample", "eval"])
def test_a_damaged_journal_is_named_with_the_byte_offset(es, run_copy, command):
    path = run_copy.directory.journal_path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)
    outcome = es(command, "done", at=run_copy)
    assert outcome.code == 3
    assert f"{path}, byte " in outcome.err


@pytest.mark.parametrize("command", ["journal", "status", "replay", "plot"])
@pytest.mark.parametrize("name", ["..", "a/b", "", "a b"])
def test_a_name_that_is_none_is_refused(es, command, name):
    outcome = es(command, name)
    assert outcome.code == 2
    assert "letters, digits" in outcome.err


# status


def test_status_of_a_finished_run(es, finished_run):
    values = es("status", "done", "--json").json
    rows = list(finished_run.directory.metrics())
    last = [row for row in rows if row["kind"] == "commit"][-1]
    assert (values["state"], values["generation"], values["goal"]) == ("finished", 6, 6)
    assert values["held_out"] == [row for row in rows if row["kind"] == "evaluation"][-1]["bits_per_byte"]
    assert values["held_out_generation"] == 6
    assert values["bits_per_byte"] == last["bits_per_byte"]
    assert values["bits_per_member"] == 0.8
    assert values["wire_bits_per_member"] > 0.8
    assert values["bytes_per_second"] > 0
    assert values["reason"] == "goal"


def test_status_as_text_has_both_bits_figures(es):
    out = es("status", "done").out
    assert "0.800 of votes" in out
    assert "on the wire" in out
    assert " bytes/s" in out
    assert "resume" not in out


def test_status_shows_the_newest_text_of_the_model(es, finished_run, run_copy):
    *_, newest = finished_run.directory.samples()
    assert es("status", "done", "--json").json["sample"] == {"generation": 6, "text": newest["text"]}
    out = es("status", "done").out
    assert "text written at generation 6:" in out
    assert newest["text"].split("\n")[0] in out
    run_copy.directory.log_sample(generation=7, text="beyond the journal")
    assert es("status", "done", "--json", at=run_copy).json["sample"]["generation"] == 6
    run_copy.directory.samples_path.unlink()
    assert es("status", "done", "--json", at=run_copy).json["sample"] is None
    assert "text written" not in es("status", "done", at=run_copy).out


def test_status_knows_a_run_under_way_by_its_lock(es, run_copy):
    lock_path = run_copy.directory.path / "journal.lock"
    with lock_path.open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert es("status", "done", "--json", at=run_copy).json["state"] == "running"
        assert "running, by pid" in es("status", "done", at=run_copy).out
    assert es("status", "done", "--json", at=run_copy).json["state"] == "finished"


def test_status_of_a_run_that_was_cut_off_says_how_to_go_on(es, run_copy):
    path = run_copy.directory.journal_path
    path.write_bytes(path.read_bytes()[: -len(encode(Close(6, 0)))])
    out = es("status", "done", at=run_copy).out
    assert "interrupted" in out
    assert "es-service resume done" in out


def test_status_takes_the_newer_of_two_rows_and_none_beyond_the_journal(es, run_copy):
    row = {"kind": "evaluation", "time": 0, "generation": 6, "bits_per_byte": 1.5}
    with run_copy.directory.metrics_path.open("a") as file:
        file.write(json.dumps(row) + "\n" + json.dumps(row | {"generation": 99, "bits_per_byte": 0.5}) + "\n")
        file.write('{"kind": "half a li')
    assert es("status", "done", "--json", at=run_copy).json["held_out"] == 1.5


def test_status_survives_half_a_line_that_a_crash_left_in_the_middle(es, run_copy):
    with run_copy.directory.metrics_path.open("a") as file:
        file.write('{"kind": "half a li{"kind": "evaluation", "time": 0, "generation": 6, "bits_per_byte": 2}\n')
    assert es("status", "done", at=run_copy).code == 0


def test_status_lists_all_runs_and_hides_none_behind_a_damaged_one(es, run_copy):
    broken = run_copy.runs_dir / "broken"
    broken.mkdir()
    (broken / "journal.bin").write_bytes(b"ESJ1nonsense")
    (broken / "config.json").write_bytes(run_copy.directory.config_path.read_bytes())
    outcome = es("status", at=run_copy)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split()[:3] == ["run", "state", "generation"]
    assert "bits/byte" in lines[2]
    assert lines[1].split()[:2] == ["broken", "damaged"]
    assert lines[2].split()[:3] == ["done", "finished", "6/6"]
    assert "byte 4" in lines[3]
    assert [values["state"] for values in es("status", "--json", at=run_copy).json] == ["damaged", "finished"]


def test_status_without_runs_says_how_to_start_one(es, finished_run, tmp_path):
    assert "es-service train" in es("status", at=finished_run._replace(runs_dir=tmp_path / "none")).out


# replay


def test_replay_verify_rebuilds_every_digest_and_keyframe(es):
    outcome = es("replay", "done", "--verify", *REFERENCE)
    assert outcome.code == 0
    assert "6 generations replayed from votes alone; 7 recorded digests and 4 keyframes agree" in outcome.out


def test_replay_gives_the_journals_digest_of_any_generation(es):
    digest = es("journal", "done", "--json").json["last_digest"]["digest"]
    assert f"generation 6: digest {digest}, from keyframe 6 and 0" in es("replay", "done", *REFERENCE).out
    assert "from keyframe 4 and 1 generations" in es("replay", "done", "--to", 5, *REFERENCE).out
    assert "3 recorded digests and 2 keyframes" in es("replay", "done", "--to", 2, "--verify", *REFERENCE).out


@pytest.mark.parametrize("to", [-1, 7])
def test_replay_beyond_the_journal_is_refused(es, to):
    outcome = es("replay", "done", "--to", to)
    assert outcome.code == 2
    assert f"--to: the run has no generation {to}; give 0 to 6" in outcome.err


def test_replay_verify_reports_a_damaged_keyframe_and_replay_passes_it_over(es, run_copy):
    path = run_copy.directory.keyframes_path / "4.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    outcome = es("replay", "done", "--verify", *REFERENCE, at=run_copy)
    assert outcome.code == 1
    assert f"DIFFERENT: {path}" in outcome.out
    outcome = es("replay", "done", "--to", 5, *REFERENCE, at=run_copy)
    assert outcome.code == 0
    assert f"passed over: {path}" in outcome.out
    assert "from keyframe 2" in outcome.out


def test_replay_verify_reports_a_sound_keyframe_of_other_parameters(es, run_copy):
    config = run_copy.directory.read_config()
    layout, ops = layout_of(config), ReferenceOps()
    parameters_P = np.zeros(layout.size, np.int8)
    keyframes.save(
        run_copy.directory.keyframes_path, layout, parameters_P, 2, ops.digest(layout, parameters_P), config.spec_hash
    )
    outcome = es("replay", "done", "--verify", *REFERENCE, at=run_copy)
    assert outcome.code == 1
    assert "parameters differ from the replayed ones" in outcome.out


def test_replay_verify_reports_a_keyframe_after_the_end(es, run_copy):
    folder = run_copy.directory.keyframes_path
    (folder / "9.safetensors").write_bytes((folder / "6.safetensors").read_bytes())
    outcome = es("replay", "done", "--verify", *REFERENCE, at=run_copy)
    assert outcome.code == 1
    assert "keyframe 9: the journal ends at generation 6" in outcome.out


def test_replay_verify_reports_votes_that_give_other_digests(es, run_copy):
    """A journal whose checksums are good and whose votes are not those of the run."""
    path = run_copy.directory.journal_path
    contents = scan(path)
    commits = list(contents.commits)
    votes_Q = -unpack(commits[3].record, 10)
    commits[3] = replace(commits[3], record=pack(votes_Q))
    path.write_bytes(MAGIC + b"".join(map(encode, [contents.header, *commits, contents.close])))
    outcome = es("replay", "done", "--verify", *REFERENCE, at=run_copy)
    assert outcome.code == 1
    assert "DIFFERENT" in outcome.out
    assert "generation 4 has digest" in outcome.out


@pytest.mark.parametrize("command", ["status", "journal", "eval"])
def test_the_page_names_every_key(es, command):
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()
    section = page.split(f"\n## {command}\n")[1].split("\n## ")[0]
    named = re.findall(r"`(\w+)`", section.split("JSON keys:")[1])
    assert set(es(command, "done", "--json").json) <= set(named)
