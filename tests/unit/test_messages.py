"""The wire: messages come back as they were, and nothing else is taken."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es_service import messages
from es_service.errors import MessageError
from es_service.messages import (
    MAX_COMMITS,
    Behind,
    Commit,
    Lease,
    LeaseResult,
    Order,
    Restore,
    Share,
    SliceOrder,
    SliceResult,
    decode,
    encode,
)

U64, U32 = st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 32) - 1)
I64, I32 = st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 31), (1 << 31) - 1)
BLOB = st.binary(max_size=40)
LEASES = st.builds(Lease, U64, U32, U32, U32)


def clipped(total, most):
    return max(-most, min(total, most))


RESULTS = st.builds(
    lambda run, lease, total, scores, digest, read, seconds, payload: LeaseResult(
        run, lease, clipped(total, lease.num_units << 32), min(scores), max(scores), digest, read, seconds, payload
    ),
    U64, LEASES, I64, st.tuples(I32, I32), U64, U64, st.floats(0, 1e9), BLOB,
)  # fmt: skip
COMMITS = st.builds(Commit, U64, I32, BLOB, st.booleans())
MESSAGES = st.one_of(
    st.builds(Order, U64, LEASES, I32, st.lists(COMMITS, max_size=4).map(tuple)),
    st.builds(Restore, U64, U64, U64, BLOB),
    RESULTS,
    st.builds(Share, U64, U64, U64, st.text(st.characters(codec="utf-8"), max_size=20)),
    st.builds(Behind, U64, LEASES, I64),
    st.builds(SliceOrder, U64, U64, U32, I32, BLOB),
    st.builds(SliceResult, U64, U64, U32, BLOB),
)
RESULT = LeaseResult(1, Lease(2, 5, 5, 0), -100, -90, -10, 7, 1000, 0.5, b"\1")


@given(MESSAGES)
@settings(max_examples=200)
def test_messages_come_back(message):
    assert decode(encode(message)) == message


@given(MESSAGES, st.data())
@settings(max_examples=100)
def test_cut_and_longer_messages_are_refused(message, data):
    whole = encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for bad in (whole[:cut], whole + b"\0"):
        with pytest.raises(MessageError):
            decode(bad)


@given(st.integers(1, 7), st.binary(max_size=200))
@settings(max_examples=300)
def test_noise_is_refused_or_is_a_message(kind, noise):
    data = bytes([kind]) + noise
    try:
        message = decode(data)
    except MessageError:
        return
    assert encode(message) == data


@pytest.mark.parametrize("kind", [0, 8, 80, 255])
def test_unknown_types_are_refused(kind):
    with pytest.raises(MessageError, match=f"unknown message type {kind}"):
        decode(bytes([kind]) + encode(RESULT)[1:])


def test_sizes_are_bounded(monkeypatch):
    commits = tuple(Commit(n, 0, b"") for n in range(MAX_COMMITS + 1))
    decode(encode(Order(1, RESULT.lease, 3, commits[:-1])))
    with pytest.raises(MessageError, match="257 commits in one order; the limit is 256"):
        decode(encode(Order(1, RESULT.lease, 3, commits)))
    monkeypatch.setattr(messages, "MAX_MESSAGE_BYTES", 50)
    with pytest.raises(MessageError, match=r"outside 1 \.\. 50"):
        decode(encode(RESULT))
    with pytest.raises(MessageError, match="0 bytes"):
        decode(b"")


def test_a_length_is_never_believed_beyond_the_message():
    data = bytearray(encode(Restore(1, 2, 3, b"abc")))
    data[-7:-3] = (1 << 31).to_bytes(4, "little")
    with pytest.raises(MessageError, match="ends inside a field"):
        decode(bytes(data))


@pytest.mark.parametrize("seconds", [math.nan, math.inf, -1.0])
def test_impossible_times_are_refused(seconds):
    with pytest.raises(MessageError, match="not possible"):
        decode(encode(replace(RESULT, seconds=seconds)))


def test_impossible_scores_are_refused():
    with pytest.raises(MessageError, match="not possible"):
        decode(encode(replace(RESULT, score_min=0, score_max=-1)))


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_sum_that_would_not_fit_the_record_of_a_generation_is_refused(sign):
    most = sign * RESULT.lease.num_units << 32
    assert decode(encode(replace(RESULT, score_sum=most))).score_sum == most
    with pytest.raises(MessageError, match="not possible"):
        decode(encode(replace(RESULT, score_sum=most + sign)))


def test_a_result_is_small():
    """What a lease costs beside its votes."""
    assert len(encode(replace(RESULT, payload=b""))) == 73
