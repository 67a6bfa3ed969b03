"""The CUDA kernels' own text, run on the host through the shim, against the reference: every result equal."""

from pathlib import Path

import numpy as np
import pytest

from es_service.errors import BackendError
from es_service.messages import Commit, Lease, Restore
from es_service.models import egg
from es_service.problem import initial_parameters, layout_of
from es_service.types import EggShape, Layout, Noise, NoiseAddress, TensorSpec
from workers import golden
from workers.evaluator import Evaluator
from workers.ops.cuda import _launch
from workers.ops.cuda.emulated import EmulatedDevice, EmulatedOps
from workers.ops.reference import ReferenceOps

GOLDEN_FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))
REFERENCE = ReferenceOps()


@pytest.fixture(scope="module")
def ops():
    return EmulatedOps(2)


class Case:
    """A random model, noise, text, states and votes. Bytes 0 are frequent: they reset states."""

    def __init__(self, width, layers, rank, pairs, seed=0, sigma_shift=4, rows=3, row_bytes=5):
        rng = np.random.default_rng([seed, width, layers, rank, pairs])
        self.shape, self.layout = EggShape(width, layers, sigma_shift), egg.layout(width, layers)
        self.parameters_P = rng.integers(-128, 128, self.layout.size, dtype=np.int8)
        self.parameters_P[rng.random(self.layout.size) < 0.2] = 127
        self.address = NoiseAddress(int(rng.integers(0, 1 << 63)) * 2 + 1, int(rng.integers(0, 1 << 32)))
        self.rank, self.pairs, self.first = rank, pairs, (1 << 32) - pairs - 3
        self.noise = REFERENCE.noise(self.layout, rank, self.address, self.first, pairs)
        self.rows_SW = rng.integers(0, 256, (rows, row_bytes), dtype=np.uint8)
        self.rows_SW[rng.random(self.rows_SW.shape) < 0.2] = 0
        self.row_of_pair_Q = rng.integers(0, rows, pairs).astype(np.int32)
        self.state_MLD = rng.integers(-128, 128, (2 * pairs, layers, width), dtype=np.int8)
        self.votes_Q = rng.integers(-1, 2, pairs).astype(np.int8)
        self.sums_P = rng.integers(-(1 << 31), 1 << 31, self.layout.size).astype(np.int32)

    def member_scores(self, ops, noise, burn_in=1, state=None):
        model = ops.prepare(self.shape, self.parameters_P)
        return ops.member_scores(model, noise, self.rows_SW, self.row_of_pair_Q, burn_in, state)

    def lazy(self, ops):
        return ops.noise(self.layout, self.rank, self.address, self.first, self.pairs)


# Widths that are no multiple of 32, of 128, or whose divisor is no power of two; ranks; ragged numbers of members.
SHAPES = [(16, 1, 1, 1), (16, 3, 2, 9), (48, 2, 4, 7), (64, 1, 3, 33), (80, 1, 1, 5), (144, 1, 2, 3), (512, 1, 1, 2)]


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_golden_vectors_are_reproduced_exactly(path, ops):
    assert golden.compare(golden.read(path), ops) is None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_member_scores_and_states_equal_the_reference_for_counters_and_for_recorded_noise(shape, ops):
    case = Case(*shape, sigma_shift=sum(shape) % 7)
    expected_state = case.state_MLD.copy()
    expected = case.member_scores(REFERENCE, case.noise, state=expected_state)
    for noise in (case.lazy(ops), case.noise):
        state = case.state_MLD.copy()
        assert np.array_equal(expected, case.member_scores(ops, noise, state=state))
        assert np.array_equal(expected_state, state)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lazy_noise_becomes_the_reference_noise(shape, ops):
    case = Case(*shape)
    noise = case.lazy(ops)
    assert np.array_equal(case.noise.factors_QF, noise.factors_QF)
    assert np.array_equal(case.noise.products_QV, noise.products_QV)
    assert np.array_equal(case.noise.factors_QF[-1, 3:9], noise.factors_QF[-1, 3:9])


@pytest.mark.parametrize("tile", _launch.TILES)
@pytest.mark.parametrize("order", [0, 1, 12345])
def test_every_tile_in_every_order_of_threads_and_over_several_tiles_a_block(tile, order, monkeypatch):
    monkeypatch.setattr(_launch, "TILES", (tile,))
    ops = EmulatedOps(1, EmulatedDevice(1, multiprocessors=2, order=order))
    case = Case(32, 2, 1, 3 * tile // 2 + 1, seed=order, row_bytes=4)
    expected = case.member_scores(REFERENCE, case.noise, burn_in=2)
    assert np.array_equal(expected, case.member_scores(ops, case.lazy(ops), burn_in=2))


def test_a_lease_in_several_waves_equals_one(ops, monkeypatch):
    monkeypatch.setattr("workers.ops.cuda._ops._NOISE_BYTES", 1)
    monkeypatch.setattr(_launch, "TILES", (16,))
    case = Case(16, 1, 2, 60)
    state, expected_state = case.state_MLD.copy(), case.state_MLD.copy()
    expected = case.member_scores(REFERENCE, case.noise, state=expected_state)
    assert np.array_equal(expected, case.member_scores(ops, case.noise, state=state))
    assert np.array_equal(expected_state, state)


@pytest.mark.parametrize("burn_in", [0, 3])
def test_unperturbed_scores_of_an_odd_number_of_rows(burn_in, ops):
    case = Case(48, 2, 1, 4, rows=7)
    state, expected_state = case.state_MLD[:7].copy(), case.state_MLD[:7].copy()
    model, expected_model = ops.prepare(case.shape, case.parameters_P), REFERENCE.prepare(case.shape, case.parameters_P)
    expected = REFERENCE.scores(expected_model, case.rows_SW, burn_in, expected_state)
    assert np.array_equal(expected, ops.scores(model, case.rows_SW, burn_in, state))
    assert np.array_equal(expected_state, state)


@pytest.mark.parametrize("noisy", [False, True])
def test_logits_of_one_byte(noisy, ops):
    case = Case(80, 1, 3, 6)
    tokens = np.arange(12, dtype=np.uint8) * 20
    results = []
    for one, noise in ((REFERENCE, case.noise), (ops, case.lazy(ops))):
        state = case.state_MLD.copy()
        model = one.prepare(case.shape, case.parameters_P)
        results.append((one.logits(model, tokens, state, noise if noisy else None), state))
    assert np.array_equal(results[0][0], results[1][0])
    assert np.array_equal(results[0][1], results[1][1])


@pytest.mark.parametrize("sign_noise", [False, True])
@pytest.mark.parametrize("shape", [(16, 1, 1, 9), (48, 1, 3, 70), (144, 1, 2, 5), (16, 1, 1, 200)], ids=str)
def test_accumulate_adds_to_sums_modulo_2_32(shape, sign_noise, ops):
    case = Case(*shape)
    expected = case.sums_P.copy()
    REFERENCE.accumulate(case.layout, case.noise, case.votes_Q, sign_noise, expected)
    for noise in (case.lazy(ops), case.noise):
        sums = case.sums_P.copy()
        ops.accumulate(case.layout, noise, case.votes_Q, sign_noise, sums)
        assert np.array_equal(expected, sums)


def test_accumulate_for_a_layout_whose_rows_share_counters(ops):
    tensors = (TensorSpec("w", (5, 37), "matrix", 0, 0), TensorSpec("v", (19,), "vector", 1, 185))
    layout, address, votes = Layout(tensors), NoiseAddress(9, 1), np.array([1, -1, 1, 0, -1], np.int8)
    expected, sums = np.ones(layout.size, np.int32), np.ones(layout.size, np.int32)
    noise = REFERENCE.noise(layout, 3, address, 2, 5)
    assert np.array_equal(noise.factors_QF, ops.noise(layout, 3, address, 2, 5).factors_QF)
    REFERENCE.accumulate(layout, noise, votes, False, expected)
    ops.accumulate(layout, ops.noise(layout, 3, address, 2, 5), votes, False, sums)
    assert np.array_equal(expected, sums)
    assert REFERENCE.digest(layout, sums[:204].astype(np.int8)) == ops.digest(layout, sums[:204].astype(np.int8))


def test_accumulate_of_extreme_recorded_noise_and_of_abstentions(ops):
    case = Case(16, 1, 1, 4)
    noise = Noise(1, np.full_like(case.noise.factors_QF, -127), np.full_like(case.noise.products_QV, 16384))
    votes = np.array([1, -1, 0, -1], np.int8)
    expected, sums = np.zeros(case.layout.size, np.int32), np.zeros(case.layout.size, np.int32)
    REFERENCE.accumulate(case.layout, noise, votes, False, expected)
    ops.accumulate(case.layout, noise, votes, False, sums)
    assert np.array_equal(expected, sums)
    ops.accumulate(case.layout, noise, np.zeros(4, np.int8), False, sums)
    assert np.array_equal(expected, sums)


@pytest.mark.parametrize("whole_counters", [True, False])
def test_the_step_in_the_epilogue_takes_what_earlier_launches_left_modulo_2_32(whole_counters, ops, monkeypatch):
    """Sums near the ends of int32, so that they wrap, and none of them is written by the launch that takes the step."""
    monkeypatch.setattr(_launch, "in_whole_counters", lambda _: whole_counters)
    case = Case(144, 1, 2, 9)
    case.sums_P |= np.int32(0x7FFF0000)
    sums, expected = case.sums_P.copy(), case.parameters_P.copy()
    REFERENCE.accumulate(case.layout, case.noise, case.votes_Q, False, sums)
    assert (np.sign(sums) != np.sign(case.sums_P)).sum() > 1000
    least = 1 << 30
    count = REFERENCE.apply(expected, sums, 16 * least)
    parameters, moved, before = case.parameters_P.copy(), np.zeros(1, np.uint64), case.sums_P.copy()
    step = _launch.Step(parameters, moved, least)
    ops._add(case.layout, case.lazy(ops), case.votes_Q, False, before, step)
    assert np.array_equal(expected, parameters)
    assert count == int(moved[0])
    assert np.array_equal(case.sums_P, before)


@pytest.mark.parametrize(("limit", "launches"), [("_MAX_DEPTH", 4), ("_NOISE_BYTES", 7)])
def test_an_update_in_several_launches_equals_one(limit, launches, monkeypatch):
    device, names = EmulatedDevice(1), []
    monkeypatch.setattr(f"workers.ops.cuda._ops.{limit}", 4 if limit == "_MAX_DEPTH" else 1)
    monkeypatch.setattr(_launch, "in_whole_counters", lambda _: limit == "_MAX_DEPTH")
    monkeypatch.setattr(device, "launch", lambda *a, to=device.launch: (names.append(a[0]), to(*a)))
    case, ops = Case(16, 1, 2, 7), EmulatedOps(1, device)
    case.votes_Q[:] = 1, -1, 1, 1, -1, 0, 1
    expected, parameters = case.parameters_P.copy(), case.parameters_P.copy()
    arguments = (case.layout, 2, case.address, case.votes_Q, False, 5_000)
    assert REFERENCE.update(*arguments, expected) == ops.update(*arguments, parameters)
    assert np.array_equal(expected, parameters)
    voted = launches - (limit == "_NOISE_BYTES")  # the unit that abstained has no launch of its own
    assert (names.count("vote_matrix"), names.count("apply_step")) == (voted, 0)


def test_an_update_without_votes_still_takes_the_step(ops):
    case = Case(16, 1, 1, 4)
    expected, parameters = case.parameters_P.copy(), case.parameters_P.copy()
    arguments = (case.layout, 1, case.address, np.zeros(4, np.int8), False, 0)
    assert REFERENCE.update(*arguments, expected) == ops.update(*arguments, parameters) == case.layout.size
    assert np.array_equal(expected, parameters)


@pytest.mark.parametrize("threshold", [0, 1, 16, 17, 1 << 30, 1 << 35, (1 << 35) + 1, (1 << 62) - 1])
def test_apply_moves_what_the_reference_moves(threshold, ops):
    rng = np.random.default_rng(threshold)
    sums_P = rng.integers(-(1 << 31), 1 << 31, 1000).astype(np.int32)
    sums_P[:6] = -(1 << 31), (1 << 31) - 1, 0, 1, -1, 2
    sums_P[100:200] = rng.integers(-3, 4, 100)
    expected = rng.integers(-127, 128, 1000, dtype=np.int8)
    parameters_P = expected.copy()
    assert REFERENCE.apply(expected, sums_P, threshold) == ops.apply(parameters_P, sums_P, threshold)
    assert np.array_equal(expected, parameters_P)


def test_digest(ops):
    case = Case(48, 2, 1, 1)
    assert REFERENCE.digest(case.layout, case.parameters_P) == ops.digest(case.layout, case.parameters_P)


def test_a_model_that_fits_no_tile_is_refused(ops, monkeypatch):
    monkeypatch.setattr(ops.device, "shared_limit", 5_000)
    case = Case(64, 1, 1, 2)
    with pytest.raises(BackendError, match="shared memory"):
        case.member_scores(ops, case.noise)


def test_without_a_compiler_the_backend_says_what_is_missing(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BackendError, match=r"install g\+\+"):
        EmulatedOps()


def test_a_worker_on_these_kernels_votes_and_updates_as_one_on_the_reference(ops, tiny_config):
    config, train = tiny_config(), np.random.default_rng(2).integers(0, 256, 20_000, dtype=np.uint8)
    results = []
    for one in (REFERENCE, ops):
        worker, layout = Evaluator(config, train, one), layout_of(config)
        parameters_P = initial_parameters(config)
        worker.restore(Restore(worker.run, 0, one.digest(layout, parameters_P), b""))
        answers = []
        for generation in range(2):
            answers.append(worker.evaluate(Lease(generation, 0, 20, 0), 0))
            worker.advance(Commit(generation, worker.algorithm.threshold(generation, ()), answers[-1].payload))
        results.append(
            [(a.payload, a.digest, a.score_sum, a.score_min, a.score_max) for a in answers] + [worker._digest]
        )
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("width", "rank", "sigma_shift"), [(64, 1, 4), (64, 3, 0), (256, 1, 4), (16, 4, 9), (48, 2, 16)]
)
def test_the_largest_values_that_arrays_can_hold(width, rank, sigma_shift, ops):
    """One shift stands for two where int32 cannot overflow: these are the values closest to it, and beyond."""
    case, rng = Case(width, 1, rank, 4, sigma_shift=sigma_shift), np.random.default_rng(width)
    case.parameters_P = rng.choice(np.array([-128, 127], np.int8), case.layout.size)
    factors_QF = rng.choice(np.array([-128, 127], np.int8), case.noise.factors_QF.shape)
    factors_QF[0], factors_QF[1] = -128, 127
    products_QV = rng.choice(np.array([-32768, 32767, 0], np.int16), case.noise.products_QV.shape)
    noise = Noise(rank, factors_QF, products_QV)
    assert np.array_equal(case.member_scores(REFERENCE, noise), case.member_scores(ops, noise))
