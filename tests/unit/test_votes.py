import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service.errors import MessageError
from es_service.votes import pack, pack_2bit, packed_size, unpack, unpack_2bit

VOTES = st.lists(st.integers(-1, 1), max_size=64)


def slow_pack(votes: list[int]) -> bytes:
    """formats.md, Votes, word for word."""
    digits = [{0: 0, 1: 1, -1: 2}[vote] for vote in votes]
    digits += [0] * (-len(digits) % 5)
    return bytes(sum(digits[i + k] * 3**k for k in range(5)) for i in range(0, len(digits), 5))


def test_known_answers():
    assert pack(np.array([1, -1, 0, 1, -1], np.int8)) == bytes([1 + 2 * 3 + 27 + 2 * 81])
    assert pack(np.array([-1] * 5, np.int8)) == bytes([242])
    assert pack(np.array([0, 1], np.int8)) == bytes([3])
    assert pack(np.array([], np.int8)) == b""


@given(VOTES)
def test_packs_as_defined_and_back(votes):
    packed = pack(np.array(votes, np.int8))
    assert packed == slow_pack(votes)
    assert len(packed) == packed_size(len(votes))
    unpacked = unpack(packed, len(votes))
    assert unpacked.dtype == np.int8
    assert unpacked.tolist() == votes


@given(st.binary(max_size=8), st.integers(0, 40))
def test_what_unpacks_packs_to_the_same_bytes(packed, count):
    try:
        votes = unpack(packed, count)
    except MessageError:
        return
    assert pack(votes) == packed


def test_every_byte_below_243_is_a_vote_group():
    for byte in range(243):
        assert pack(unpack(bytes([byte]), 5)) == bytes([byte])


@pytest.mark.parametrize("byte", range(243, 256))
def test_bytes_of_243_or_more_are_rejected(byte):
    with pytest.raises(MessageError, match=r"byte 1 .* 243"):
        unpack(bytes([0, byte]), 10)


@pytest.mark.parametrize(("packed", "count"), [(b"\x03", 1), (b"\x51", 4), (b"\x00\x01", 5), (b"", 1), (b"\0", -1)])
def test_padding_and_length_are_checked(packed, count):
    with pytest.raises(MessageError):
        unpack(packed, count)


@pytest.mark.parametrize(
    "votes", [np.array([2], np.int8), np.array([-2], np.int8), np.zeros(3), np.zeros((1, 5), np.int8)]
)
def test_only_int8_votes_are_packed(votes):
    with pytest.raises(MessageError):
        pack(votes)


def test_a_writable_array_of_its_own_comes_back():
    first = unpack(b"\x01", 5)
    first[:] = 0
    assert unpack(b"\x01", 5).tolist() == [1, 0, 0, 0, 0]


# Two bits a vote.


@given(VOTES)
def test_two_bits_hold_the_same_votes_and_convert_both_ways(votes):
    array = np.array(votes, np.int8)
    narrow, wide = pack(array), pack_2bit(array)
    digits = [{0: 0, 1: 1, -1: 2}[vote] for vote in votes] + [0] * (-len(votes) % 4)
    assert wide == bytes(sum(digits[i + k] << 2 * k for k in range(4)) for i in range(0, len(digits), 4))
    assert unpack_2bit(wide, len(votes)).tolist() == votes
    assert unpack_2bit(wide, len(votes)).dtype == np.int8
    assert pack(unpack_2bit(wide, len(votes))) == narrow
    assert pack_2bit(unpack(narrow, len(votes))) == wide


@pytest.mark.parametrize(("packed", "count"), [(b"\x03", 4), (b"\x10", 2), (b"\0\0", 4), (b"", 1), (b"\0", -1)])
def test_what_two_bits_cannot_be_is_refused(packed, count):
    with pytest.raises(MessageError):
        unpack_2bit(packed, count)
    with pytest.raises(MessageError):
        pack_2bit(np.array([2], np.int8))
