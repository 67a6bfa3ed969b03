"""The EGGROLL rule: thresholds, payloads, and what an update does."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from es_service import votes
from es_service.algorithms import eggroll
from es_service.algorithms.eggroll import Eggroll, EggrollConfig, threshold
from es_service.errors import MessageError
from es_service.models import egg
from es_service.types import NoiseAddress
from workers.ops.reference import ReferenceOps

LAYOUT = egg.layout(16, 1)
OPS = ReferenceOps()


def rule(population=40, **changes):
    return Eggroll(EggrollConfig(**changes), LAYOUT, population, seed=9)


def test_thresholds_of_the_paper():
    config = EggrollConfig()
    known = {0: 0, 1: 0, 2: 0, 3: 0, 10: 2, 50: 9, 100: 13, 500: 25, 999: 29}
    assert {g: threshold(config, g) for g in known} == known
    assert all(threshold(config, g) <= threshold(config, g + 1) for g in range(2000))


def test_a_constant_alpha_is_the_share_of_weights_that_chance_would_move():
    config = EggrollConfig(alpha=0.05)
    assert threshold(config, 0) == threshold(config, 10**6) == int(16 * NormalDist().inv_cdf(0.975)) == 31
    assert threshold(EggrollConfig(alpha=1.0), 5) == 0


@pytest.mark.parametrize(("reuse", "epochs"), [(0, [0, 0, 0, 0, 0]), (1, [0, 1, 2, 3, 4]), (3, [0, 0, 0, 1, 1])])
def test_epochs(reuse, epochs):
    assert [rule(noise_reuse=reuse).address(g) for g in range(5)] == [NoiseAddress(9, e) for e in epochs]


def test_payloads_join_to_the_record():
    r, rng = rule(population=46), np.random.default_rng(0)
    scores = rng.integers(-3, 4, 46, np.int32)
    payloads = [r.encode(scores[a:b]) for a, b in ((0, 20), (20, 40), (40, 46))]
    for payload, units in zip(payloads, (10, 10, 3), strict=True):
        r.check(payload, units)
    assert r.close(payloads) == r.encode(scores)
    assert np.array_equal(r.votes(r.close(payloads)), votes.from_scores(scores))


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0\0", b"\xf3\0", b"\0\x09"])
def test_payloads_that_nobody_can_have_encoded_are_refused(payload):
    with pytest.raises(MessageError):
        rule().check(payload, 7)
    rule().check(b"\xf2\x04", 7)


def test_an_update_moves_along_the_noise_for_plus_one_and_against_it_for_minus_one():
    r = rule(population=2, alpha=0.5)
    noise, k = OPS.noise(LAYOUT, 1, r.address(4), 0, 1), r.threshold(4, ())
    start_P = egg.initial_parameters(LAYOUT, 9)
    steps = {}
    for vote in (1, -1, 0):
        parameters_P = start_P.copy()
        moved = r.update(OPS, parameters_P, 4, k, votes.pack(np.array([vote], np.int8)))
        steps[vote] = parameters_P.astype(int) - start_P
        assert moved == np.count_nonzero(steps[vote]) or vote == 0
    assert np.array_equal(steps[1], -steps[-1])
    assert not steps[0].any()
    slot = next(LAYOUT.noise_slots(1))
    a_O, b_I = (noise.factors_QF[0, at : at + n].astype(int) for at, n in zip((0, slot.second), (256, 16), strict=True))
    outer_OI, step_OI = np.outer(a_O, b_I), steps[1][: 256 * 16].reshape(256, 16)
    assert (step_OI * outer_OI >= 0).all()
    assert np.array_equal(step_OI != 0, 16 * abs(outer_OI) >= k * 256)
    assert 0.2 < (step_OI != 0).mean() < 0.8


@pytest.mark.parametrize("changes", [{}, {"rank": 2}, {"sign_noise": True}])
def test_the_size_of_the_chunks_does_not_matter(changes, monkeypatch):
    r, rng = rule(**changes), np.random.default_rng(1)
    record = votes.pack(rng.integers(-1, 2, 20, np.int8))
    results = []
    for chunk_bytes in (1, 40_000, 1 << 30):
        monkeypatch.setattr(eggroll, "_CHUNK_BYTES", chunk_bytes)
        parameters_P = egg.initial_parameters(LAYOUT, 9)
        r.update(OPS, parameters_P, 2, 5, record)
        results.append(parameters_P)
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], egg.initial_parameters(LAYOUT, 9))


def test_a_negative_threshold_is_refused_before_anything_moves():
    parameters_P = egg.initial_parameters(LAYOUT, 9)
    with pytest.raises(MessageError, match="generation 3: threshold -1 is negative"):
        rule().update(OPS, parameters_P, 3, -1, votes.pack(np.ones(20, np.int8)))
    assert np.array_equal(parameters_P, egg.initial_parameters(LAYOUT, 9))


def test_initial_parameters_are_a_function_of_the_seed():
    first, again, other = (egg.initial_parameters(LAYOUT, seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    views = LAYOUT.views(first)
    assert set(views["ln_out"].tolist()) == set(views["blocks.0.ln1"].tolist()) == {16}
    assert not views["blocks.0.att.bf"].any()
    assert not views["blocks.0.att.bh"].any()


@pytest.mark.parametrize(("width", "layers", "count"), [(256, 6, 4_856_064), (16, 1, 513 * 16 + 4 * 16 + 12 * 256)])
def test_parameter_count_of_the_spec(width, layers, count):
    assert egg.layout(width, layers).size == count
