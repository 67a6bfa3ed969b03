"""The journal's bytes, and that no damage passes unseen."""

import hashlib
import json
import struct
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from es_service import journal
from es_service.errors import JournalError, RunError
from es_service.journal import MAGIC, Change, Close, Commit, Header, decode, encode, scan

HEADER = Header({"seed": 7, "model": {"kind": "egg", "width": 16}}, 0x0123456789ABCDEF)


def commit(generation, record=b"\x01\x02\x03", digest=None):
    digest = HEADER.digest if generation == 0 else generation + 99 if digest is None else digest
    return Commit(generation, 15, 512, -1000 - generation, -90, 3, digest, record)


RECORDS = (HEADER, commit(0), commit(1), Change(2, {"seed": 7, "population": 32}), commit(2), commit(3, b""))
CLOSED = (*RECORDS, Close(4, 0xFEDCBA9876543210))


def file_of(records):
    return MAGIC + b"".join(encode(record) for record in records)


def ends_of(records):
    """Offset after each record."""
    ends = [len(MAGIC)]
    for record in records:
        ends.append(ends[-1] + len(encode(record)))
    return ends[1:]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal.bin"


def scan_of(path: Path, data: bytes):
    with path.open("r+b" if path.exists() else "wb") as file:  # opening with "w" makes ext4 flush at each close
        file.write(data)
        file.truncate()
    return scan(path)


def records_of(contents):
    """Everything before the close, in file order."""
    after = {change.generation: change for change in contents.changes}
    found = [contents.header]
    for generation, record in enumerate(contents.commits):
        found += [after[generation]] if generation in after else []
        found.append(record)
    return found + [change for change in contents.changes if change.generation == len(contents.commits)]


# Exact bytes


def test_records_have_the_bytes_that_the_format_fixes():
    payload = struct.pack("<QIiqiiQ", 3, 15, 512, -1003, -90, 3, 102) + b"\x05\x06"
    head = struct.pack("<BI", 2, len(payload))
    expected = head + struct.pack("<I", crc32(head)) + payload + struct.pack("<I", crc32(payload))
    assert encode(commit(3, b"\x05\x06")) == expected
    assert encode(Close(4, 5))[9:-4] == struct.pack("<QQ", 4, 5)
    assert encode(HEADER)[9:-4] == b'{"digest":"0123456789abcdef","spec":{"model":{"kind":"egg","width":16},"seed":7}}'
    assert encode(Change(2, {"b": 1, "a": "\u00e9"}))[9:-4] == b'{"generation":2,"spec":{"a":"\\u00e9","b":1}}'
    assert [encode(record)[0] for record in (HEADER, commit(0), Change(1, {}), Close(1, 1))] == [1, 2, 3, 4]


def test_known_hash():
    assert hashlib.sha256(file_of(CLOSED)).hexdigest() == (
        "d0855e792d5e73ba7e0ca443811b59f612aba0290a218c6c14edffbf55fe11b9"
    )


def test_a_whole_journal_is_read_back(path):
    data = file_of(CLOSED)
    contents = scan_of(path, data)
    assert records_of(contents) == list(RECORDS)
    assert contents.close == CLOSED[-1]
    assert (contents.valid_bytes, contents.torn_bytes, contents.torn) == (len(data), 0, "")
    assert contents.append_offset == len(file_of(RECORDS))
    assert contents.content_hash == hashlib.sha256(data).hexdigest()


def test_commits_are_read_one_at_a_time(path):
    commits = scan_of(path, file_of(CLOSED)).commits
    assert len(commits) == 4
    assert commits[2] == commit(2)
    assert list(commits.between(1, 3)) == [commit(1), commit(2)]
    assert commits.fields["score_sum"].tolist() == [-1000, -1001, -1002, -1003]
    assert commits.fields["digest"][0] == HEADER.digest
    assert commits.record_bytes.tolist() == [3, 3, 3, 0]
    with pytest.raises(IndexError):
        commits[4]


def test_a_commit_that_changes_after_the_scan_is_found(path):
    data = bytearray(file_of(RECORDS))
    commits = scan_of(path, bytes(data)).commits
    for offset in range(ends_of(RECORDS)[0] + 9, ends_of(RECORDS)[1]):
        damaged = bytearray(data)
        damaged[offset] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(JournalError, match="changed since"):
            commits[0]
    path.write_bytes(data[:-2])
    with pytest.raises(JournalError, match="changed since"):
        commits[3]


def test_the_spec_of_a_generation_follows_the_changes(path):
    contents = scan_of(path, file_of(RECORDS))
    assert contents.spec_at(1) == HEADER.spec
    assert contents.spec_at(2) == contents.spec_at(9) == {"seed": 7, "population": 32}


def test_a_header_alone_is_a_journal(path):
    contents = scan_of(path, file_of([HEADER]))
    assert len(contents.commits) == 0
    assert list(contents.commits) == []


# Truncation and torn writes


@pytest.mark.parametrize("records", [RECORDS, CLOSED], ids=["open", "closed"])
def test_truncation_at_every_byte(path, records):
    data, ends = file_of(records), ends_of(records)
    for size in range(len(data)):
        if size < ends[0]:
            with pytest.raises(JournalError, match="no commit"):
                scan_of(path, data[:size])
            continue
        contents = scan_of(path, data[:size])
        valid = max(end for end in ends if end <= size)
        assert (contents.valid_bytes, contents.torn_bytes) == (valid, size - valid)
        assert bool(contents.torn) == (size != valid)
        assert contents.content_hash == hashlib.sha256(data[:valid]).hexdigest()
        assert records_of(contents) == list(records[: ends.index(valid) + 1])


@pytest.mark.parametrize("last", [commit(4), Change(4, {"seed": 8}), Close(4, 77)], ids=["commit", "change", "close"])
def test_a_torn_write_of_every_length_is_cut(path, last):
    """Every prefix of the last record, also where the file system left zeros up to its full size or beyond."""
    data, whole = file_of(RECORDS), encode(last)
    for done in range(len(whole)):
        for zeros in (0, 1, len(whole) - done, len(whole) - done + 50):
            tail = whole[:done] + bytes(zeros)
            if done + zeros == 0 or tail == whole:
                continue
            if not any(whole[done:]) or (zeros > len(whole) - done and done > 8):
                continue  # whole after all, or zeros behind a whole head's record: see below
            contents = scan_of(path, data + tail)
            assert (contents.valid_bytes, contents.torn_bytes) == (len(data), len(tail))
            assert contents.torn


def test_zeros_behind_a_torn_payload_are_an_error(path):
    """The head says where the record ends, and one append never leaves bytes beyond it."""
    with pytest.raises(JournalError, match="checksum is wrong"):
        scan_of(path, file_of(RECORDS) + encode(commit(4))[:20] + bytes(200))


def test_zeros_behind_a_whole_record_are_cut(path):
    contents = scan_of(path, file_of(RECORDS) + bytes(4096))
    assert (contents.valid_bytes, contents.torn_bytes) == (len(file_of(RECORDS)), 4096)
    assert "zeros" in contents.torn


# Flipped bits


def outcome(path, data):
    """The offset that an error names, or the contents."""
    try:
        return scan_of(path, data)
    except JournalError as error:
        return int(str(error).removeprefix(f"{path}, byte ").split(":")[0])


@pytest.mark.parametrize("count", range(1, len(CLOSED) + 1))
def test_every_flipped_bit_is_found(path, count):
    """In the last record it is cut and reported, in an earlier one it is an error at that record's offset."""
    records = CLOSED[:count]
    data, ends = file_of(records), ends_of(records)
    starts = [len(MAGIC), *ends[:-1]]
    first = starts[-1] if count < len(CLOSED) else 0  # earlier records are the same in every round but the last
    for bit in range(8 * first, 8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        found = outcome(path, bytes(damaged))
        if bit // 8 < len(MAGIC):
            assert found == 0
        elif count == 1 or bit // 8 < starts[-1]:
            assert found == max(start for start in starts if start <= bit // 8)
        else:
            assert not isinstance(found, int)
            assert (found.valid_bytes, found.torn_bytes) == (starts[-1], len(data) - starts[-1])
            assert found.torn
            assert found.content_hash == hashlib.sha256(data[: starts[-1]]).hexdigest()
            assert records_of(found) == list(records[:-1])


def test_a_flipped_length_is_not_a_torn_tail(path):
    data, ends = file_of(RECORDS), ends_of(RECORDS)
    for start in ends[:-2]:
        for offset in range(start + 1, start + 5):
            for bit in range(8):
                damaged = bytearray(data)
                damaged[offset] ^= 1 << bit
                with pytest.raises(JournalError, match=f"byte {start}: the checksum of the record's type and length"):
                    scan_of(path, bytes(damaged))


def test_a_damaged_head_before_equal_records_is_never_cut(path):
    """The proof that a damaged record is the last one is its payload's checksum; no later record may imitate it."""
    records = [HEADER, *(commit(g, bytes(26)) for g in range(40))]
    data, ends = file_of(records), ends_of(records)
    for start in ends[:-2]:
        damaged = bytearray(data)
        damaged[start + 2] ^= 0x10
        with pytest.raises(JournalError, match=f"byte {start}:"):
            scan_of(path, bytes(damaged))


def test_a_damaged_head_and_a_damaged_payload_are_an_error(path):
    data, start = bytearray(file_of(RECORDS)), ends_of(RECORDS)[-2]
    data[start] ^= 1
    data[-1] ^= 1
    with pytest.raises(JournalError, match="truncate -s"):
        scan_of(path, bytes(data))


@given(st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_damage_changes_what_is_read(path, data):
    """Any bytes replaced, any tail cut: an error, or a prefix of the records with the rest reported."""
    whole = file_of(CLOSED)
    start = data.draw(st.integers(0, len(whole) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=24))
    end = data.draw(st.integers(start + 1, len(whole)))
    damaged = (whole[:start] + patch + whole[start + len(patch) :])[: max(end, start + len(patch))]
    found = outcome(path, damaged)
    if isinstance(found, int):
        return
    kept = [*records_of(found), *([found.close] if found.close else [])]
    assert kept == list(CLOSED[: len(kept)])
    assert found.valid_bytes == ends_of(CLOSED)[len(kept) - 1]
    assert bool(found.torn) == (found.torn_bytes > 0) == (damaged != whole[: found.valid_bytes])


# Well-formed bytes that mean nothing


def raw(kind, payload):
    head = struct.pack("<BI", kind, len(payload))
    return head + struct.pack("<I", crc32(head)) + payload + struct.pack("<I", crc32(payload))


def json_record(kind, **values):
    return raw(kind, json.dumps(values, sort_keys=True, separators=(",", ":")).encode())


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        (encode(commit(5)), "generation 5 where 4 is next"),
        (encode(commit(3)), "generation 3 where 4 is next"),
        (encode(Close(3, 1)), "generation 3 where 4 is next"),
        (encode(Change(5, {})), "generation 5 where 4 is next"),
        (encode(HEADER), "second header"),
        (raw(5, b"new"), "type 5 is unknown"),
        (raw(0, b""), "type 0 is unknown"),
        (raw(2, b"short"), "too short"),
        (raw(4, b"short"), "not 16"),
        (raw(3, b'{"generation": 4, "spec": {}}'), "not canonical"),
        (raw(3, b"[]"), "other fields"),
        (raw(3, b"{"), "record is not"),
        (raw(3, b"\xff"), "record is not"),
        (raw(3, b"[" * 100_000), "other fields"),
        (json_record(3, generation=4), "other fields"),
        (json_record(3, generation=4, spec={}, more=1), "not canonical"),
        (json_record(3, generation=4, spec=[]), "not canonical"),
        (json_record(3, generation=True, spec={}), "unsigned"),
        (json_record(3, generation=-1, spec={}), "unsigned"),
        (encode(Close(4, 1)) + encode(commit(4)), "follows the close"),
        (encode(Close(4, 1)) + b"\x02", "follow the close"),
        (encode(Close(4, 1)) + bytes(100), "follow the close"),
        (struct.pack("<BI", 2, 1 << 30) + struct.pack("<I", crc32(struct.pack("<BI", 2, 1 << 30))) + b"1234", "limit"),
        (b"garbage that is no record at all", "type and length"),
    ],
)
def test_records_that_cannot_follow_are_errors(path, tail, message):
    with pytest.raises(JournalError, match=message):
        scan_of(path, file_of(RECORDS) + tail)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no commit"),
        (b"ESJ2" + encode(HEADER), "another version"),
        (b"PK\3\4" + encode(HEADER), "not a journal"),
        (MAGIC + encode(commit(0)), "header is missing"),
        (MAGIC + json_record(1, digest="0123456789ABCDEF", spec={}), "not canonical"),
        (MAGIC + json_record(1, digest="12", spec={}), "not canonical"),
        (MAGIC + json_record(1, digest=12, spec={}), "other fields"),
        (MAGIC + json_record(1, digest="-1", spec={}), "unsigned"),
        (MAGIC + encode(HEADER) + encode(commit(0))[:9] + encode(Commit(0, 1, 1, 1, 1, 1, 1, b""))[9:], "checksum"),
        (MAGIC + encode(HEADER) + encode(Commit(0, 1, 1, 1, 1, 1, 1, b"")), "the header says"),
        (bytes(4096), "not a journal"),
    ],
)
def test_foreign_files_are_errors(path, data, message):
    if message == "checksum":
        data += encode(commit(1))
    with pytest.raises(JournalError, match=message):
        scan_of(path, data)


def test_a_missing_journal_names_the_path(path):
    with pytest.raises(RunError, match=r"journal\.bin.*No such file"):
        scan(path)
    with pytest.raises(RunError, match="Is a directory"):
        scan(path.parent)


# Encoding


@pytest.mark.parametrize(
    "record",
    [
        Commit(0, 1 << 32, 0, 0, 0, 0, 0, b""),
        Commit(0, 0, 0, 1 << 63, 0, 0, 0, b""),
        Commit(0, 0, 0, 0, 0, 0, -1, b""),
        Header({}, 1 << 64),
        Header({"x": float("nan")}, 0),
        Header({"x": object()}, 0),
        Change(-1, {}),
        Close(0, -1),
    ],
    ids=lambda record: type(record).__name__,
)
def test_a_field_out_of_range_is_refused(record):
    with pytest.raises(JournalError, match="cannot be written"):
        encode(record)


def test_a_record_longer_than_the_limit_is_refused(monkeypatch):
    monkeypatch.setattr(journal, "MAX_PAYLOAD_BYTES", 50)
    encode(commit(0, bytes(10)))
    with pytest.raises(JournalError, match="of 51 bytes is longer"):
        encode(commit(0, bytes(11)))


U64, I32 = st.integers(0, 2**64 - 1), st.integers(-(2**31), 2**31 - 1)
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
SPECS = st.dictionaries(
    st.text(), st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
COMMITS = st.builds(
    Commit, U64, st.integers(0, 2**32 - 1), I32, st.integers(-(2**63), 2**63 - 1), I32, I32, U64, st.binary()
)


@given(st.builds(Header, SPECS, U64) | COMMITS | st.builds(Change, U64, SPECS) | st.builds(Close, U64, U64))
@settings(deadline=None)
def test_records_round_trip(record):
    data = encode(record)
    assert decode(data[0], data[9:-4]) == record


def test_scan_holds_one_record_at_a_time(path):
    """26 KB a generation; memory must not grow with the votes."""
    import tracemalloc

    path.write_bytes(file_of([HEADER, *(commit(g, bytes(26_000)) for g in range(200))]))
    tracemalloc.start()
    contents = scan(path)
    assert sum(len(record.record) for record in contents.commits) == 200 * 26_000
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1_000_000
