"""The steps file: what is written comes back, and no damaged byte passes."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es_service import steps
from es_service.errors import StepsError
from es_service.steps import Step, StepsHeader

CONFIG = {"seed": 3, "model": {"kind": "toy"}, "deployment": {"evaluation_rows": 2}}
I32 = st.integers(-(1 << 31), (1 << 31) - 1)
I64 = st.integers(-(1 << 63), (1 << 63) - 1)


def step(generation, units=7, threshold=None, digest=None):
    rng = np.random.default_rng(generation)
    votes_Q = rng.integers(-1, 2, units).astype(np.int8)
    digest = int(rng.integers(1 << 62)) if digest is None else digest
    return Step(generation, generation // 2 if threshold is None else threshold, votes_Q, (-1000, -9, 12), digest)


def header(generations, changes=(), scores=True):
    return StepsHeader(CONFIG, tuple(changes), generations, 0xABC, scores)


def written(path, made, **changes):
    steps.write(path, header(len(made), **changes), made)
    return steps.scan(path)


def numbers(found):
    return [(s.generation, s.threshold, s.votes_Q.tolist(), s.scores) for s in found]


@given(st.lists(st.tuples(I32, I64, I32, I32), max_size=12), st.integers(1, 40), st.booleans(), st.integers(1, 100))
@settings(max_examples=40)
def test_steps_come_back(tmp_path_factory, rows, units, scores, block_votes):
    made = [
        replace(step(g, units, threshold), scores=tuple(rest) if scores else None)
        for g, (threshold, *rest) in enumerate(rows)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "BLOCK_VOTES", block_votes)
        found = written(tmp_path_factory.mktemp("steps") / "x.steps", made, scores=scores)
        assert found.header == header(len(made), scores=scores)
        assert numbers(found.between(0, len(made))) == numbers(made)
        assert [s.digest for s in found.between(0, len(made)) if s.digest is not None] == [
            made[block.first].digest for block in found.blocks
        ]
        for first in range(len(made)):
            assert numbers(found.between(first, first + 2)) == numbers(made[first : first + 2])
    assert sum(block.bytes for block in found.blocks) < found.bytes == found.path.stat().st_size


def test_a_block_ends_with_enough_votes_and_before_a_change(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "BLOCK_VOTES", 30)
    made = [step(g, 7 if g < 6 else 9) for g in range(9)]
    spec = {"seed": 3, "model": {"kind": "larger"}}
    found = written(tmp_path / "x.steps", made, changes=[(6, spec)])
    assert [(block.first, block.generations, block.units) for block in found.blocks] == [
        (0, 5, 7),
        (5, 1, 7),
        (6, 3, 9),
    ]
    assert numbers(found.between(0, 9)) == numbers(made)
    assert found.header.spec_at(5) == {"seed": 3, "model": {"kind": "toy"}}
    assert found.header.spec_at(6) == found.header.spec_at(9) == spec


def test_only_the_blocks_that_are_asked_for_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "BLOCK_VOTES", 10)
    found = written(tmp_path / "x.steps", [step(g, 10) for g in range(6)])
    decoded = []
    real = steps.decode
    monkeypatch.setattr(steps, "decode", lambda data, count: decoded.append(count) or real(data, count))
    assert [s.generation for s in found.between(2, 4)] == [2, 3]
    assert decoded == [10, 10]


def test_equal_steps_are_equal_files(tmp_path):
    made = [step(g) for g in range(5)]
    first, second = written(tmp_path / "a", made), written(tmp_path / "b", made)
    assert first.path.read_bytes() == second.path.read_bytes()


def test_the_bytes_are_those_of_the_documentation(tmp_path):
    """Files must be readable for good: a change to these bytes is a new format version."""
    votes_Q = np.array([1, 0, -1], np.int8)
    made = [Step(0, 5, votes_Q, (-40, -30, -10), 0xA1B2), Step(1, 5, votes_Q[::-1], (-41, -30, -11), 0)]
    path = written(tmp_path / "x", made).path
    text = (
        b'{"changes":[],"config":{"deployment":{"evaluation_rows":2},"model":{"kind":"toy"},"seed":3},'
        b'"digest":"0000000000000abc","format_version":1,"generations":2,"scores":true}'
    )
    data = path.read_bytes()
    assert data[:9] == b"ESS1\x01" + len(text).to_bytes(4, "little")
    assert data[13 : 13 + len(text)] == text
    block = data[17 + len(text) :]
    parts = ["b2a1000000000000", "00", "02", "03", "02", "020a", "08", "014f3b13", "01010001", "0202", "146469785634"]
    assert block.hex()[:2] == "02"
    assert block[9:-4].hex() == "".join(parts)


@pytest.fixture
def whole(tmp_path):
    return written(tmp_path / "x.steps", [step(g) for g in range(3)])


def damaged(path, data):
    path.write_bytes(data)
    with pytest.raises(StepsError, match=r"x\.steps, byte \d+: ") as caught:
        list(steps.scan(path).between(0, 3))
    return int(re.search(r"byte (\d+)", str(caught.value))[1])


def test_truncation_at_every_byte_is_found(whole):
    data = whole.path.read_bytes()
    for size in range(len(data)):
        assert damaged(whole.path, data[:size]) in (0, 4, whole.blocks[0].offset)


def test_a_flipped_bit_in_every_byte_is_found_at_its_record(whole):
    data, block = whole.path.read_bytes(), whole.blocks[0].offset
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        assert damaged(whole.path, flipped) == max(start for start in (0, 4, block) if start <= place)


def test_what_follows_the_last_generation_is_found(whole):
    data = whole.path.read_bytes()
    assert damaged(whole.path, data + b"\0") == len(data)
    assert damaged(whole.path, data + data[whole.blocks[0].offset :]) == len(data)


def test_blocks_out_of_order_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "BLOCK_VOTES", 1)
    found = written(tmp_path / "x.steps", [step(g) for g in range(3)])
    data, (_, second, third) = found.path.read_bytes(), found.blocks
    swapped = data[: second.offset] + data[third.offset :] + data[second.offset : third.offset]
    assert damaged(found.path, swapped) == second.offset


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"format_version": 2}, "format version is 2"),
        ({"generations": -1}, "do not ascend"),
        ({"changes": [{"generation": 9, "spec": {}}]}, "do not ascend"),
        ({"digest": "xyz"}, "not the record|record is not"),
        ({"config": None, "changes": 3}, "record is not"),
    ],
)
def test_a_header_that_was_written_wrong(tmp_path, change, problem):
    values = {
        "changes": [], "config": CONFIG, "digest": "0", "format_version": 1, "generations": 0, "scores": True
    } | change  # fmt: skip
    path = tmp_path / "x.steps"
    path.write_bytes(steps.MAGIC + steps._frame(1, steps.canonical_json(values)))
    with pytest.raises(StepsError, match=problem):
        steps.scan(path)


def test_a_block_that_claims_more_than_a_block_can_hold(tmp_path):
    path = tmp_path / "x.steps"
    payload = bytes(8) + steps.varint(0) + steps.varint(1 << 40) + steps.varint(9) + bytes(20)
    written(path, [])
    path.write_bytes(path.read_bytes().replace(b'"generations":0', b'"generations":1'))
    data = steps.MAGIC + steps._frame(1, path.read_bytes()[13:-4]) + steps._frame(2, payload)
    path.write_bytes(data)
    with pytest.raises(StepsError, match="generations of 9 votes are no block"):
        steps.scan(path)


def test_a_run_without_generations(tmp_path):
    found = written(tmp_path / "x.steps", [])
    assert (found.blocks, list(found.between(0, 5))) == ((), [])


def test_what_cannot_be_read_or_written_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(StepsError, match="No such file"):
        steps.scan(tmp_path / "none.steps")
    with pytest.raises(StepsError, match="directory"):
        steps.scan(tmp_path)

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StepsError, match="cannot be written: No space left"):
        written(tmp_path / "x.steps", [step(0)])
    assert not list(tmp_path.iterdir())
