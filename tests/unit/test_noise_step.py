"""noise_step: codes, the median rule, density schedules, audits, the order of batches, the networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from es_service import votes
from es_service.algorithms import noise_step
from es_service.algorithms.base import Past
from es_service.algorithms.density import AutomaticDensity, ConstantDensity, StagedDensity, Step
from es_service.algorithms.noise_step import NoiseStep, NoiseStepConfig, codes
from es_service.data.examples import TextExamples, batch_indices, windows_of_rows
from es_service.errors import DivergenceError, MessageError
from es_service.messages import Lease, LeaseResult, encode
from es_service.models.ternary_net import Net, TernaryLmConfig, TernaryMlpConfig, initial_parameters, judge, logits
from es_service.types import Layout, Part, TensorSpec
from workers.ops.reference import ReferenceOps

LAYOUT = Layout((TensorSpec("w", (6, 10), "matrix", 0, 0),))
OPS = ReferenceOps()


def rule(units: int = 8, **config) -> NoiseStep:
    return NoiseStep(NoiseStepConfig(**config), LAYOUT, units, 1024, 7)


def floats(values) -> np.ndarray:
    return np.array(values, np.float32)


# Codes and votes.


def test_codes_are_bits_20_to_27_and_saturate():
    values = floats([0, 2**-32, 2**-31, 2**-31 * 1.125, 1, -1, 1.99, 2, 1e9, 0.3])
    bits = (np.abs(values).view(np.uint32) >> 20) & 0xFF
    found = codes(values)
    assert found.tolist()[:3] == [0, 0, 0]
    assert found[[3, 4, 5, 6, 9]].tolist() == bits[[3, 4, 5, 6, 9]].tolist()
    assert found[[7, 8]].tolist() == [255, 255]
    assert (np.diff(codes(np.geomspace(2**-31, 1.99, 500).astype(np.float32)).astype(int)) >= 0).all()


@given(st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=40), st.data())
def test_votes_are_signs_from_the_lower_median_on_whatever_the_leases(values, data):
    alignments = floats(values)
    r = rule(len(values))
    found = r.votes(r.close([r.encode(alignments)]))
    magnitude = codes(alignments).tolist()
    median = sorted(magnitude)[(len(values) - 1) // 2]
    expected = [
        0 if code < median or code == 0 else 1 if value > 0 else -1
        for code, value in zip(magnitude, values, strict=True)
    ]
    assert found.tolist() == expected
    cut = data.draw(st.integers(0, len(values)))
    parts = [r.encode(part) for part in (alignments[:cut], alignments[cut:]) if len(part)]
    for part, units in zip(parts, [n for n in (cut, len(values) - cut) if n], strict=True):
        r.check(part, units)
    assert r.close(parts) == votes.pack(found)


def test_ties_at_the_median_are_all_kept():
    r = rule(4)
    assert r.votes(r.close([r.encode(floats([0.5, -0.5, 0.5, 0.1]))])).tolist() == [1, -1, 1, 0]
    assert r.votes(r.close([r.encode(floats([0.1, -0.1, 0.5, 0.7]))])).tolist() == [1, -1, 1, 1]


def test_perturbations_without_effect_never_vote_even_where_they_are_most():
    r = rule(4)
    assert r.votes(r.close([r.encode(floats([0, 0, 0, -0.5]))])).tolist() == [0, 0, 0, -1]
    assert r.votes(r.close([r.encode(floats([0, 0, 0, 0]))])).tolist() == [0, 0, 0, 0]


def test_a_loss_that_overflows_is_an_error():
    for bad in (np.nan, np.inf):
        with pytest.raises(DivergenceError, match="not a finite number"):
            rule().encode(floats([bad, 1]))


def test_payloads_that_encode_cannot_have_made():
    r = rule()
    good = r.encode(floats([0.5, -0.5, 0.0]))
    r.check(good, 3)
    for payload in (b"", good + b"\0", good[:-1], good[:3] + b"\x0a", good[:3] + b"\x06"):
        with pytest.raises(MessageError):
            r.check(payload, 3)


def result(alignments, payload=None, loss=1.5, batch=1024, **config):
    """Of a lease of these alignments, as a worker encodes it."""
    level, unit = round(loss * 16 * batch / np.log(2)), 16 * batch / np.log(2)
    gains = np.rint(np.abs(floats(alignments)) * unit).astype(int)
    lease = Lease(0, 0, len(alignments), 0)
    payload = rule(**config).encode(floats(alignments)) if payload is None else payload
    return LeaseResult(
        1, lease, int(gains.sum()) - level * len(alignments), -level, int(gains.max()) - level, 0, 0, 0.0, payload
    )


FORWARD, LOSSES, ERRORS = {}, {"alignment": "antithetic"}, {"alignment": "antithetic", "objective": "errors"}


@pytest.mark.parametrize(
    ("config", "other", "agreed"),
    [
        (FORWARD, [0.5, -0.01, 1e-5, 0.0], True),
        (FORWARD, [0.5001, -0.01001, 1e-5, 0.0], True),
        (FORWARD, [0.5, -0.01, -1e-4, 0.0], True),  # both are far below the largest
        (FORWARD, [0.5, -0.01, 1e-5, 2e-4], True),
        (FORWARD, [0.5, -0.01, 1e-5, 8e-4], False),
        (FORWARD, [0.5, 0.01, 1e-5, 0.0], False),  # another sign
        (FORWARD, [0.5, -0.014, 1e-5, 0.0], False),
        (FORWARD, [0.5, 0.0, 1e-5, 0.0], False),
        (FORWARD, [-0.5, -0.01, 1e-5, 0.0], False),
        (LOSSES, [0.5, -0.01, -1e-4, 0.0], True),
        (LOSSES, [0.5, 0.01, 1e-5, 0.0], False),
    ],
)
def test_audits_take_what_other_cpus_make_of_the_same_sums(config, other, agreed):
    honest, given = result([0.5, -0.01, 1e-5, 0.0], **config), result(other, **config)
    assert rule(**config).agrees(honest, given) is agreed
    assert rule(**config).agrees(given, honest) is agreed


def test_differences_of_losses_are_rounded_with_the_losses():
    """A loss of 5 nats is known to 1e-5: where all differences are as small, their signs say nothing."""
    a, b = ([2e-5, -3e-6, 4e-6], [2.4e-5, 3e-6, -1e-6])
    assert rule(**LOSSES).agrees(result(a, loss=5, **LOSSES), result(b, loss=5, **LOSSES))
    assert not rule(**LOSSES).agrees(result(a, loss=0.05, **LOSSES), result(b, loss=0.05, **LOSSES))
    assert not rule().agrees(result(a, loss=5), result(b, loss=5))


def test_error_counts_may_differ_by_one_example():
    r = NoiseStep(NoiseStepConfig(**ERRORS), LAYOUT, 8, 50, 7)
    counts = np.arange(-20, 21)

    def counted(errors):
        return result(errors / 100, batch=50, **ERRORS)

    assert r.agrees(counted(counts), counted(counts + np.tile([1, -1, 0], 14)[:41]))
    for place, more in ((17, 2), (20, 2), (21, -2), (0, 6), (40, -6)):  # codes of large counts are coarser
        off = counts.copy()
        off[place] += more
        assert not r.agrees(counted(counts), counted(off)), place


def test_audits_do_not_trust_the_largest_that_a_liar_claims():
    honest = result([0.01, -0.01, 0.001, 0.0])
    for lie in (
        result([1e9, -0.01, 0.001, 0.0]),
        result([0.01, 0.01, 1e9, 0.0]),
        replace(honest, payload=honest.payload[:-1]),
    ):
        assert not rule().agrees(honest, lie)
        assert not rule().agrees(lie, honest)


def test_audits_compare_the_scores_on_which_the_density_depends():
    r, a = rule(), result([0.01, 0.02, 0.03, 0.04])
    assert r.agrees(a, replace(a, score_sum=a.score_sum - 8, score_min=a.score_min - 2, score_max=a.score_max - 2))
    assert r.agrees(a, replace(a, score_sum=a.score_sum + 15))
    for name, more in (("score_min", -200), ("score_min", 200), ("score_sum", 100), ("score_max", 100)):
        lie = replace(a, **{name: getattr(a, name) + more})
        assert not r.agrees(a, lie)
        assert not r.agrees(lie, a)


def test_a_worker_sends_nine_bits_a_perturbation_and_73_bytes_a_lease():
    payload = rule().encode(floats([0.5] * 64))
    assert len(encode(LeaseResult(1, Lease(0, 0, 64, 0), 0, 0, 0, 0, 0, 0.0, payload))) == 73 + 64 * 9 // 8


# The step.


@pytest.mark.parametrize("support", ["exact", "columns", "bernoulli"])
def test_weights_stay_ternary_and_move_by_at_most_one(support):
    r = rule(5, support=support)
    weights = np.random.default_rng(2).integers(-1, 2, LAYOUT.size, np.int8)
    for generation in range(40):
        before = weights.copy()
        ballot = np.random.default_rng(generation).integers(-1, 2, 5, np.int8)
        changed = r.update(OPS, weights, generation, 2, votes.pack(ballot))
        assert np.abs(weights).max() <= 1
        assert np.abs(weights - before).max(initial=0) <= 1
        assert changed == (weights != before).sum()
    assert len(np.unique(weights)) == 3


def test_a_step_goes_along_the_perturbation_that_voted_yes():
    r, weights = rule(3), np.zeros(LAYOUT.size, np.int8)
    r.update(OPS, weights, 4, 2, votes.pack(np.array([1, 0, -1], np.int8)))
    found = OPS.ternary_nonzeros(r.perturbations(4, 2), 0, 3)
    expected = np.zeros(LAYOUT.size, np.int8)
    expected[found.positions_N[:2]] = found.signs_N[:2]
    expected[found.positions_N[4:]] = -found.signs_N[4:]
    assert np.array_equal(weights, expected)


def test_a_record_without_non_zeros_is_refused():
    with pytest.raises(MessageError, match="0 non-zeros"):
        rule(3).update(OPS, np.zeros(LAYOUT.size, np.int8), 4, 0, votes.pack(np.zeros(3, np.int8)))


@pytest.mark.parametrize("support", ["exact", "columns", "bernoulli"])
@pytest.mark.parametrize("chunk", [1, 7, 1 << 16])
def test_parts_are_those_of_the_whole_update_whatever_the_chunks(support, chunk, monkeypatch):
    monkeypatch.setattr(noise_step, "_CHUNK", chunk)
    layout = Layout((TensorSpec("a", (5, 4), "matrix", 0, 0), TensorSpec("b", (13, 7), "matrix", 1, 20)))
    r = NoiseStep(NoiseStepConfig(support=support), layout, 5, 1024, 7)
    weights = np.random.default_rng(2).integers(-1, 2, layout.size, np.int8)
    parts = {(t, first, stop): layout.views(weights)[t.name][first:stop].copy().reshape(-1)
             for t in layout.tensors for first, stop in ((0, t.shape[0]), (2, 4))}  # fmt: skip
    for generation in range(6):
        record = votes.pack(np.random.default_rng(generation).integers(-1, 2, 5, np.int8))
        before = weights.copy()
        r.update(OPS, weights, generation, 2, record)
        for (tensor, first, stop), values in parts.items():
            changed = r.update_part(OPS, Part(tensor, first, stop), values, generation, 2, record)
            now, then = (layout.views(model)[tensor.name][first:stop].reshape(-1) for model in (weights, before))
            assert np.array_equal(values, now)
            assert changed == (now != then).sum()


# Density.


def step(nonzeros: int, loss: float) -> Step:
    return Step(nonzeros, loss, 0, 0)


def test_the_published_schedule_falls_with_the_loss_and_stays():
    schedule = StagedDensity()
    assert schedule.next([]) == schedule.most == 16
    assert schedule.next([step(16, 2.5)]) == 16
    assert schedule.next([step(16, 1.9)]) == 4
    assert schedule.next([step(4, 2.5)]) == 4
    assert schedule.next([step(16, 0.5)]) == 1
    assert schedule.next([step(1, 5.0)]) == 1
    assert ConstantDensity(nonzeros=3).next([step(3, 0.1)]) == 3


def test_the_loss_of_a_record_is_in_nats_an_example():
    r = rule(10)
    unit = 16 * 1024 / np.log(2)
    loss = 1.9
    level = round(loss * unit)
    past = Past(10, 16, -10 * level + 321, -level, -level + 99)
    seen = []

    class Spy(ConstantDensity):
        def next(self, history):
            seen.append(history[-1])
            return 1

    r.config = NoiseStepConfig().model_copy(update={"density": Spy()})
    r.threshold(1, [past])
    assert seen[0].loss == pytest.approx(1.9, abs=1e-4)
    assert (seen[0].level, seen[0].promise) == (level, 321)
    assert rule(10).threshold(1, [past]) == 4


def course(k, share, generations, noise=0, seed=0):
    """Generations with k non-zeros in which `share` of the promises comes true."""
    rng, level, steps = np.random.default_rng(seed), 1e6, []
    for _ in range(generations):
        promise = int(rng.integers(800, 1200))
        steps.append(Step(k, 0.0, round(level + noise * rng.standard_normal()), promise))
        level -= share * promise
    return steps


def test_the_automatic_schedule_follows_the_share_of_promises_that_come_true():
    schedule = AutomaticDensity()
    assert schedule.next([]) == 16
    assert schedule.next(course(16, 0.05, 3)) == 16, "too few generations to judge"
    assert [schedule.next(course(16, share, 8)) for share in (-0.5, 0.1, 0.2, 0.4, 0.9)] == [8, 8, 16, 32, 32]
    assert schedule.next(course(1, 0, 8)) == 1
    assert schedule.next(course(256, 0.9, 8)) == 256
    assert schedule.next([Step(4, 0.0, 5, 0)] * 9) == 4, "nothing was promised"
    steps = course(16, 0.9, 12)
    other = [replace(step, nonzeros=8) for step in steps[:9]]
    assert schedule.next(other + steps[9:]) == 16, "only generations with this k count"


def test_the_automatic_schedule_waits_until_it_is_sure():
    noisy = [AutomaticDensity().next(course(16, 0.05, 6, 300, seed)) for seed in range(200)]
    assert noisy.count(16) > 150
    assert [AutomaticDensity().next(course(16, 0.05, 64, 300, seed)) for seed in range(50)] == [8] * 50


@given(st.integers(0, 2**32), st.integers(4, 80), st.floats(-1, 2), st.integers(0, 2000))
def test_the_automatic_schedule_is_least_squares_with_three_standard_errors(seed, generations, share, noise):
    steps = course(16, share, generations, noise, seed)
    window = steps[-64:]
    path = np.concatenate([[0], np.cumsum([step.promise for step in window])[:-1]]).astype(float)
    level = np.array([step.level for step in window], float)
    (slope, offset), *_ = np.linalg.lstsq(np.column_stack([path, np.ones(len(path))]), level, rcond=None)
    residual = level - slope * path - offset
    error = np.sqrt((residual**2).sum() / (len(path) - 2) / ((path - path.mean()) ** 2).sum())
    low, high = 0.15 + slope - 3 * error, -slope - 3 * error - 0.3
    assume(min(abs(low), abs(high)) > 1e-6)
    assert AutomaticDensity().next(steps) == (8 if low > 0 else 32 if high > 0 else 16)


# Batches.


def test_batches_go_through_all_examples_before_any_comes_again():
    order = np.concatenate([batch_indices(3, g, 7, 20) for g in range(20)])
    for number in range(7):
        assert sorted(order[20 * number : 20 * number + 20].tolist()) == list(range(20))
    assert not np.array_equal(order[:20], order[20:40])
    assert not np.array_equal(batch_indices(4, 0, 7, 20), order[:7])
    assert sorted(batch_indices(3, 0, 45, 20).tolist()) == sorted([*range(20), *range(20), *order[40:45].tolist()])


def test_text_examples_are_bytes_with_what_comes_before_them():
    split = np.arange(1, 9, dtype=np.uint8)
    examples = TextExamples(split, 3)
    inputs, targets = examples.take(np.array([0, 1, 6]))
    assert inputs.tolist() == [[0, 0, 1], [0, 1, 2], [5, 6, 7]]
    assert targets.tolist() == [2, 3, 8]
    assert len(examples) == 7
    inputs, targets = windows_of_rows(np.array([[1, 2, 3], [4, 5, 6]], np.uint8), 2)
    assert inputs.tolist() == [[0, 1], [1, 2], [0, 4], [4, 5]]
    assert targets.tolist() == [2, 3, 5, 6]


# Networks.


def test_sizes_of_the_networks():
    net = Net.of_images(TernaryMlpConfig(), 784, 10, 255)
    assert net.layout().size == 269_322
    assert [t.name for t in net.layout().tensors][:2] == ["layers.0.weight", "layers.0.bias"]
    assert net.flops() == 2 * 268_800
    text = Net.of_text(TernaryLmConfig()).layout()
    assert [t.shape for t in text.tensors[:2]] == [(256, 32), (256, 256)]


def test_initial_values_are_ternary_from_the_seed_and_even():
    layout = Net.of_images(TernaryMlpConfig(), 784, 10, 255).layout()
    drawn = initial_parameters(layout, 5)
    shares = np.bincount(drawn + 1) / layout.size
    assert np.abs(shares - np.array([85, 86, 85]) / 256).max() < 0.005
    assert not np.array_equal(drawn, initial_parameters(layout, 6))
    assert drawn[:8].tolist() == [-1, 0, -1, 1, 0, -1, 1, -1]


def test_judge_is_cross_entropy_in_bits_and_right_predictions():
    net = Net((3, 4, 2), scale=0.5, white=16)
    parameters = initial_parameters(net.layout(), 2)
    inputs = np.random.default_rng(1).integers(0, 17, (9, 3), np.uint8)
    targets = np.array([0, 1, 0, 1, 1, 0, 1, 0, 0], np.uint8)
    z = logits(net, parameters, inputs).astype(np.float64)
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    found = judge(net, parameters, inputs, targets)
    assert found.bits == pytest.approx(-np.log2(p[np.arange(9), targets]).sum(), rel=1e-6)
    assert (found.right, found.examples) == ((z.argmax(1) == targets).sum(), 9)
