"""Noise addressing: Random123's known answers, the table, random access, and that no two addresses share a byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from es_service import noise
from es_service.models import egg
from es_service.noise import MAX_ENTRIES, MAX_GENERATIONS, MAX_TENSORS, MAX_UNITS, TABLE, Stream, philox4x32
from es_service.types import NoiseAddress
from workers.ops.reference import ReferenceOps

# Random123, tests/kat_vectors: philox4x32 10.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert philox4x32(np.array(words(counter), np.uint32), tuple(words(key))).tolist() == words(expected)


def test_bytes_are_addressed_as_specified():
    """Byte n mod 4, least significant first, of word (n mod 16) div 4 of block n div 16."""
    seed, epoch, tensor, unit = 0x0123456789ABCDEF, 5, 77, 123456
    got = noise.uniform_bytes(seed, epoch, Stream.FACTOR_B, tensor, unit, 50)[0]
    for n in range(50):
        counter = np.array([n // 16, int(Stream.FACTOR_B) << 24 | tensor, unit, epoch], np.uint32)
        word = int(philox4x32(counter, (0x89ABCDEF, 0x01234567))[n % 16 // 4])
        assert got[n] == word >> 8 * (n % 4) & 255


def test_table_is_the_one_of_the_spec():
    runs = (
        "0:3 1:7 2:6 3:6 4:6 5:6 6:6 7:6 8:6 9:5 10:6 11:5 12:4 13:5 14:4 15:4 16:4 17:4 18:3 19:3 20:3 21:3 22:3 23:2 "
        "24:2 25:2 26:1 27:2 28:1 29:2 30:1 31:1 32:1 34:1 35:1 37:1 40:1 48:1"
    )
    upper = [int(v) for v, count in (run.split(":") for run in runs.split()) for _ in range(int(count))]
    assert TABLE[128:].tolist() == upper
    assert TABLE.shape == (256,)
    assert np.array_equal(TABLE[::-1], -TABLE)
    assert (np.diff(TABLE.astype(int)) >= 0).all()
    assert float(np.sqrt((TABLE.astype(float) ** 2).mean())) == pytest.approx(15.995, abs=5e-4)
    assert not TABLE.flags.writeable


def test_table_entries_are_bin_means_of_the_normal_distribution():
    """Mean of 16 Z over (a, b) is 16 (phi(a) - phi(b)) / (1 / 256)."""
    from statistics import NormalDist

    normal = NormalDist()
    edges = [normal.inv_cdf(i / 256) for i in range(1, 256)]
    density = [0.0, *(normal.pdf(edge) for edge in edges), 0.0]
    assert TABLE.tolist() == [round(16 * 256 * (density[b] - density[b + 1])) for b in range(256)]


ADDRESSES = st.tuples(
    st.integers(0, MAX_GENERATIONS - 1),
    st.integers(0, MAX_UNITS - 1),
    st.sampled_from(Stream),
    st.integers(0, MAX_TENSORS - 1),
    st.integers(0, MAX_ENTRIES - 1),
)


@pytest.fixture
def counters(monkeypatch):
    """Philox replaced by a record of the counters asked for; byte i of each block is i."""
    seen = []

    def record(counter, key):
        seen.append(counter.reshape(-1, 4).copy())
        block = np.frombuffer(bytes(range(16)), "<u4").astype(np.uint32)
        return np.broadcast_to(block, counter.shape).copy()

    monkeypatch.setattr(noise, "philox4x32", record)
    return seen


def place(seen, address):
    """(counter, byte) that one entry is read from."""
    epoch, unit, stream, tensor, entry = address
    byte = noise.uniform_bytes(1, epoch, stream, tensor, unit, 1, first=entry)
    (counter,) = seen.pop()
    return (*counter.tolist(), int(byte[0, 0]))


def test_no_two_addresses_share_a_byte(counters):
    """The map from (epoch, unit, stream, tensor, entry) to (counter, byte) can be undone, up to all limits."""

    @given(ADDRESSES)
    @settings(max_examples=300)
    def check(address):
        block, middle, unit, epoch, byte = place(counters, address)
        assert (epoch, unit, middle >> 24, middle & 0xFFFFFF, 16 * block + byte) == address

    check()
    limits = (MAX_GENERATIONS - 1, MAX_UNITS - 1, Stream.SAMPLING, MAX_TENSORS - 1, MAX_ENTRIES - 1)
    assert place(counters, limits) == ((1 << 32) - 1, (7 << 24) + (1 << 24) - 1, (1 << 32) - 1, (1 << 32) - 1, 15)


@pytest.mark.parametrize("rank", [1, 3])
def test_all_counters_of_a_small_run_differ(counters, rank):
    layout, units = egg.layout(16, 2), 24
    for epoch in (0, 1):
        for first in range(0, units, 8):
            ReferenceOps().noise(layout, rank, NoiseAddress(3, epoch), first, 8)
    egg.initial_parameters(layout, 3)
    used = np.concatenate(counters)
    matrices = [t for t in layout.tensors if t.kind == "matrix"]
    blocks = sum(-(-rank * size // 16) for t in matrices for size in t.shape)
    blocks += sum(2 * -(-t.size // 16) for t in layout.tensors if t.kind == "vector")
    initial = sum(-(-t.size // 16) for t in matrices)
    assert len(used) == 2 * units * blocks + initial
    assert len(np.unique(used, axis=0)) == len(used)


@given(st.integers(0, (1 << 64) - 1), ADDRESSES, st.integers(1, 80), st.integers(0, 100), st.integers(1, 3))
@settings(max_examples=60)
def test_any_part_can_be_had_alone(seed, address, size, skip, count):
    epoch, unit, stream, tensor, first = address
    unit, first = min(unit, MAX_UNITS - count), min(first, MAX_ENTRIES - skip - size)
    units = np.arange(unit, unit + count)
    whole = noise.entries(seed, epoch, stream, tensor, units, skip + size, first)
    part = noise.entries(seed, epoch, stream, tensor, units, size, first + skip)
    assert part.shape == (count, size)
    assert part.dtype == np.int8
    assert np.array_equal(part, whole[:, skip:])
    alone = noise.entries(seed, epoch, stream, tensor, units[-1], size, first + skip)
    assert np.array_equal(alone[0], part[-1])


def test_every_part_of_the_address_counts():
    base = {"seed": 1, "epoch": 2, "stream": Stream.FACTOR_A, "tensor": 3, "units_Q": 4, "size": 64, "first": 0}
    changes = {"seed": 1 + (1 << 32), "epoch": 3, "stream": Stream.FACTOR_B, "tensor": 4, "units_Q": 5, "first": 64}
    outcomes = [noise.uniform_bytes(**(base | {key: value})).tobytes() for key, value in changes.items()]
    assert len({noise.uniform_bytes(**base).tobytes(), *outcomes}) == len(changes) + 1


def test_bytes_are_uniform_and_entries_have_the_moments_of_the_table():
    got = noise.uniform_bytes(11, 0, Stream.FACTOR_A, 0, np.arange(64), 4096).reshape(-1)
    counts = np.bincount(got, minlength=256)
    expected = got.size / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)
    values = TABLE[got].astype(float)
    assert abs(values.mean()) < 6 * 16 / np.sqrt(got.size)
    assert values.std() == pytest.approx(15.995, rel=0.01)
