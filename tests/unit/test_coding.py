"""The entropy coder: exact, near the entropy, its bytes fixed for good."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es_service import coding
from es_service.errors import MessageError

SHARES = [(0.5, 0.25, 0.25), (0.45, 0.275, 0.275), (0.01, 0.495, 0.495), (0.9, 0.1, 0.0), (1 / 3, 1 / 3, 1 / 3)]


def draw(shares, count, seed=1):
    return np.random.default_rng(seed).choice(np.array([0, 1, -1], np.int8), count, p=shares)


def votes(values):
    return np.array(values, np.int8)


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=400))
def test_votes_come_back(values):
    code = coding.encode(votes(values))
    assert np.array_equal(coding.decode(code, len(values)), votes(values))
    assert coding.encode(votes(values)) == code


@given(st.sampled_from(SHARES), st.integers(1, 20_000), st.integers(0, 1000))
@settings(max_examples=25)
def test_drawn_votes_come_back(shares, count, seed):
    votes_Q = draw(shares, count, seed)
    assert np.array_equal(coding.decode(coding.encode(votes_Q), count), votes_Q)


@pytest.mark.parametrize("shares", SHARES)
def test_large_blocks_come_within_1_percent_of_the_entropy(shares):
    votes_Q = draw(shares, 1 << 16)
    zero, plus, minus = np.bincount(votes_Q % 3, minlength=3).tolist()
    least = coding.entropy_bits((zero, plus, minus)) * votes_Q.size
    assert least <= 8 * len(coding.encode(votes_Q)) < 1.01 * least


def test_votes_of_which_half_are_zero_take_at_most_1_55_bits():
    assert 8 * len(coding.encode(draw((0.5, 0.25, 0.25), 1 << 16))) / (1 << 16) < 1.51


@pytest.mark.parametrize("value", [-1, 0, 1])
def test_votes_that_are_all_equal_cost_nothing_but_the_head(value):
    code = coding.encode(np.full(100_000, value, np.int8))
    assert len(code) <= 11
    assert (coding.decode(code, 100_000) == value).all()


def test_the_bytes_are_those_of_the_documentation():
    """Files must be readable for good: a change to these bytes is a new format version."""
    assert coding.encode(votes([0])).hex() == "0000000000000100"
    values = [0, 1, -1, 1, 0, 0, 0, 1, -1, 0, 0, 0, 0, 1, -1, -1, 0, 1, 0, 0, 1, 0, -1, 1] * 3
    assert coding.encode(votes(values)).hex() == "150f9b7006e32449428a3b5f0eb65710930b0fc1"


@given(st.lists(st.integers(-1, 1), min_size=1, max_size=60), st.data())
def test_a_code_that_is_not_one_is_an_error_and_never_another_exception(values, data):
    """The checksums of the file find damage; behind them a wrong code must still end in order."""
    code = bytearray(coding.encode(votes(values)))
    bit = data.draw(st.integers(0, 8 * len(code) - 1))
    code[bit // 8] ^= 1 << bit % 8
    try:
        found = coding.decode(bytes(code), len(values))
    except MessageError:
        return
    assert coding.encode(found) == code  # a state with another rest: the code of other votes


@given(st.lists(st.integers(-1, 1), min_size=30, max_size=60), st.integers(1, 60))
def test_a_code_cut_short_or_too_long_is_an_error(values, cut):
    code = coding.encode(votes(values))
    for data in (code[:-cut], code + bytes(cut)):
        with pytest.raises(MessageError):
            coding.decode(data, len(values))


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=3))
def test_numbers_come_back(value, before):
    data = before + coding.varint(value) + b"rest"
    assert coding.read_varint(data, len(before)) == (value, len(data) - 4)


def test_zigzag_keeps_small_numbers_small():
    assert [coding.zigzag(value) for value in (0, -1, 1, -2, 2)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("data", "problem"), [(b"", "end"), (b"\x80", "end"), (b"\x80\0", "zero"), (b"\xff" * 11, "end")]
)
def test_numbers_that_are_not_whole(data, problem):
    with pytest.raises(MessageError, match=problem):
        coding.read_varint(data, 0)


def test_entropy():
    assert coding.entropy_bits((2, 1, 1)) == 1.5
    assert coding.entropy_bits((0, 7, 0)) == 0
    assert coding.entropy_bits((0, 0, 0)) == 0


def test_a_code_made_with_other_counts_is_refused(monkeypatch):
    """It would decode, but `encode` makes one code of given votes and no other."""
    values = votes([1, 1, -1, 0, 0, 0, 0, 0, 0, 0])
    monkeypatch.setattr(coding, "_counts", lambda packed: [5, 3, 2])
    code = coding.encode(values)
    monkeypatch.undo()
    with pytest.raises(MessageError, match=r"says \[5, 3, 2\] and holds \[7, 2, 1\]"):
        coding.decode(code, 10)
