"""What every backend owes: the bits of the reference on every shape, and an error for what no kernel can take.

A backend's test is a subclass with `backend`. Each example is computed once by the reference and compared with every
variant of the backend: numbers of threads, instruction sets.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workers.ops
from es_service import ternary
from es_service.errors import BackendError
from es_service.models import egg
from es_service.types import EggShape, Layout, Noise, NoiseAddress, Perturbations, TensorSpec
from workers.ops import base
from workers.ops.reference import ReferenceOps

REFERENCE = ReferenceOps()
U64 = st.integers(0, (1 << 64) - 1)
U32 = st.integers(0, (1 << 32) - 1)


@dataclass
class Case:
    """A model, noise for Q pairs, and text."""

    shape: EggShape
    parameters: np.ndarray
    noise: Noise
    rows: np.ndarray
    row_of_pair: np.ndarray
    burn_in: int
    state: np.ndarray | None

    @property
    def layout(self):
        return egg.layout(self.shape.width, self.shape.layers)

    @property
    def pairs(self) -> int:
        return len(self.row_of_pair)


@st.composite
def cases(draw, widths=(16, 32, 48, 80, 112, 272)) -> Case:
    shape = EggShape(draw(st.sampled_from(widths)), draw(st.integers(1, 2)), draw(st.sampled_from([0, 2, 4, 9])))
    rank = draw(st.integers(1, 3))
    largest = 33 if shape.width <= 48 else 17 if shape.width <= 112 else 2
    pairs = draw(st.sampled_from([n for n in (1, 2, 3, 7, 8, 17, 33) if n <= largest]))
    layout, rng = egg.layout(shape.width, shape.layers), np.random.default_rng(draw(U32))
    if draw(st.booleans()):
        address = NoiseAddress(draw(U64), draw(U32))
        noise = REFERENCE.noise(layout, rank, address, draw(st.integers(0, (1 << 32) - 64)), pairs)
        parameters = egg.initial_parameters(layout, address.seed)
    else:  # values that no table gives, up to saturation
        factors, products = layout.noise_sizes(rank)
        bound = draw(st.sampled_from([1, 48, 127]))
        noise = Noise(
            rank,
            rng.integers(-bound, bound, (pairs, factors), np.int8, endpoint=True),
            rng.integers(-bound * bound, bound * bound, (pairs, products), np.int16, endpoint=True),
        )
        parameters = rng.integers(-127, 127, layout.size, np.int8, endpoint=True)
    burn_in, num_rows = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    rows = rng.integers(0, 256, (num_rows, burn_in + draw(st.integers(1, 4)) + 1), np.uint8)
    rows[rng.random(rows.shape) < draw(st.sampled_from([0.0, 0.3]))] = 0
    row_of_pair = rng.integers(0, num_rows, pairs, np.int32)
    state = None
    if draw(st.booleans()):
        state = rng.integers(-127, 127, (2 * pairs, shape.layers, shape.width), np.int8, endpoint=True)
    return Case(shape, parameters, noise, rows, row_of_pair, burn_in, state)


@st.composite
def perturbations(draw) -> Perturbations:
    tensors, offset = [], 0
    for index, (rows, columns) in enumerate(
        draw(st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20)), min_size=1, max_size=4))
    ):
        shape = (rows, columns) if columns else (rows,)
        tensors.append(TensorSpec(str(index), shape, "matrix" if columns else "vector", index, offset))
        offset += tensors[-1].size
    layout, support = Layout(tuple(tensors)), draw(st.sampled_from(["bernoulli", "exact", "columns"]))
    room = ternary.places(support, layout)
    nonzeros = draw(st.integers(1, room))
    units = draw(st.integers(1, 9 if support == "bernoulli" else room // nonzeros))
    return Perturbations(support, NoiseAddress(draw(U64), draw(U32)), layout, units, nonzeros)


def copy(array):
    return None if array is None else array.copy()


def variants_of(backend: str) -> dict:
    if backend == "reference":
        return {"reference": REFERENCE}
    variants = {f"{backend}, {threads} threads": workers.ops.resolve(backend, threads)[0] for threads in (1, 3)}
    if backend == "native":
        from workers.ops.native import NativeOps, detect

        variants |= {isa: NativeOps(2, isa) for isa, present in detect().items() if present}
    return variants


class OpsContract:
    backend: str
    variants: dict

    @classmethod
    def setup_class(cls):
        cls.variants = variants_of(cls.backend)

    @classmethod
    def teardown_class(cls):
        del cls.variants

    def equal(self, expected, compute) -> None:
        """`compute(ops)` gives the arrays or numbers of `expected`, from every variant."""
        for name, ops in self.variants.items():
            if ops is REFERENCE:
                continue
            for number, (wanted, got) in enumerate(zip(expected, compute(ops), strict=True)):
                assert np.array_equal(wanted, got), f"{name}, output {number}"
                assert np.asarray(wanted).dtype == np.asarray(got).dtype, f"{name}, output {number}"

    @given(
        st.sampled_from([(16, 1), (48, 2), (112, 1)]), st.integers(1, 5), U64, U32,
        st.integers(0, (1 << 32) - 40), st.sampled_from([1, 5, 16, 33]),
    )  # fmt: skip
    @settings(max_examples=12)
    def test_noise(self, size, rank, seed, epoch, first, pairs):
        layout, address = egg.layout(*size), NoiseAddress(seed, epoch)

        def compute(ops):
            noise = ops.noise(layout, rank, address, first, pairs)
            assert noise.rank == rank
            return noise.factors_QF, noise.products_QV

        self.equal(compute(REFERENCE), compute)

    def test_noise_of_the_last_unit_and_epoch(self):
        layout, address = egg.layout(16, 1), NoiseAddress((1 << 64) - 1, (1 << 32) - 1)

        def compute(ops):
            noise = ops.noise(layout, 1, address, (1 << 32) - 1, 1)
            return noise.factors_QF, noise.products_QV

        self.equal(compute(REFERENCE), compute)

    @given(cases())
    @settings(max_examples=30)
    def test_member_scores_and_state(self, case):
        def compute(ops):
            state = copy(case.state)
            model = ops.prepare(case.shape, case.parameters)
            scores = ops.member_scores(model, case.noise, case.rows, case.row_of_pair, case.burn_in, state)
            return (scores,) if state is None else (scores, state)

        self.equal(compute(REFERENCE), compute)

    def test_the_forward_pass_wraps_modulo_2_32(self):
        """Rank 40 and saturated activations: (x . B) A passes 2^31."""
        shape, layout = EggShape(16, 1, 0), egg.layout(16, 1)
        parameters = np.full(layout.size, 100, np.int8)
        factors, products = layout.noise_sizes(40)
        noise = Noise(40, np.full((2, factors), 127, np.int8), np.full((2, products), 16129, np.int16))
        rows = np.array([[65, 66, 67]], np.uint8)

        def compute(ops):
            return (ops.member_scores(ops.prepare(shape, parameters), noise, rows, np.zeros(2, np.int32), 0),)

        self.equal(compute(REFERENCE), compute)

    @given(cases())
    @settings(max_examples=20)
    def test_scores_and_state(self, case):
        def compute(ops):
            state = None if case.state is None else case.state[: len(case.rows)].copy()
            if state is not None and len(state) < len(case.rows):
                state = None
            scores = ops.scores(ops.prepare(case.shape, case.parameters), case.rows, case.burn_in, state)
            return (scores,) if state is None else (scores, state)

        self.equal(compute(REFERENCE), compute)

    @given(cases(), st.booleans())
    @settings(max_examples=20)
    def test_logits_and_state(self, case, perturbed):
        tokens = np.resize(case.rows[:, 0], 2 * case.pairs)

        def compute(ops):
            state = np.zeros((2 * case.pairs, case.shape.layers, case.shape.width), np.int8)
            state[:] = 0 if case.state is None else case.state
            model = ops.prepare(case.shape, case.parameters)
            return ops.logits(model, tokens, state, case.noise if perturbed else None), state

        self.equal(compute(REFERENCE), compute)

    @given(cases(), st.booleans(), st.booleans(), U32)
    @settings(max_examples=25)
    def test_accumulate_adds_modulo_2_32(self, case, sign_noise, near_the_edge, seed):
        rng = np.random.default_rng(seed)
        votes = rng.integers(-1, 2, case.pairs, np.int8)
        start = np.full(case.layout.size, (1 << 31) - 5 if near_the_edge else 0, np.int32)

        def compute(ops):
            sums = start.copy()
            ops.accumulate(case.layout, case.noise, votes, sign_noise, sums)
            return (sums,)

        self.equal(compute(REFERENCE), compute)

    def test_accumulate_does_wrap(self):
        layout = egg.layout(16, 1)
        factors, products = layout.noise_sizes(1)
        noise = Noise(1, np.full((3, factors), 127, np.int8), np.full((3, products), 16129, np.int16))
        for ops in self.variants.values():
            sums = np.full(layout.size, (1 << 31) - 1, np.int32)
            ops.accumulate(layout, noise, np.ones(3, np.int8), False, sums)
            assert (sums == -(1 << 31) + 3 * 16129 - 1).all()

    @given(st.integers(1, 200), U32, st.sampled_from([0, 1, 16, 160, 16 << 31, (16 << 31) + 1, 1 << 61]))
    @settings(max_examples=40)
    def test_apply(self, size, seed, threshold):
        rng = np.random.default_rng(seed)
        parameters = rng.integers(-127, 127, size, np.int8, endpoint=True)
        parameters[rng.random(size) < 0.3] = 127
        parameters[rng.random(size) < 0.3] = -127
        sums = rng.integers(-15, 15, size, np.int32)
        sums[rng.random(size) < 0.1] = -(1 << 31)
        sums[rng.random(size) < 0.1] = (1 << 31) - 1

        def compute(ops):
            moved = parameters.copy()
            return ops.apply(moved, sums, threshold), moved

        self.equal(compute(REFERENCE), compute)

    @given(
        st.sampled_from([(16, 1, 1, 5), (16, 3, 2, 33), (48, 1, 3, 9)]), st.booleans(),
        st.sampled_from([0, 1, 4_000, 16 << 31, 1 << 61]), U32,
    )  # fmt: skip
    @settings(max_examples=15)
    def test_update_is_accumulate_and_apply_of_all_units(self, sizes, sign_noise, threshold, seed):
        width, layers, rank, units = sizes
        layout, address, rng = egg.layout(width, layers), NoiseAddress(seed, 7), np.random.default_rng(seed)
        parameters = rng.integers(-127, 127, layout.size, np.int8, endpoint=True)
        votes = rng.integers(-1, 2, units, np.int8) * np.int8(seed % 5 != 0)
        sums, expected = np.zeros(layout.size, np.int32), parameters.copy()
        noise = REFERENCE.noise(layout, rank, address, 0, units)
        REFERENCE.accumulate(layout, noise, votes, sign_noise, sums)
        count = REFERENCE.apply(expected, sums, threshold)

        def compute(ops):
            moved = parameters.copy()
            return ops.update(layout, rank, address, votes, sign_noise, threshold, moved), moved

        self.equal((count, expected), compute)

    def test_update_of_units_in_parts(self, monkeypatch):
        monkeypatch.setattr(base, "_UPDATE_NOISE_BYTES", 1)
        layout, address = egg.layout(16, 1), NoiseAddress(4, 4)
        votes, parameters = np.array([1, -1, 0, 1, 1], np.int8), egg.initial_parameters(egg.layout(16, 1), 1)
        sums, expected = np.zeros(layout.size, np.int32), parameters.copy()
        REFERENCE.accumulate(layout, REFERENCE.noise(layout, 2, address, 0, 5), votes, False, sums)
        REFERENCE.apply(expected, sums, 9_000)
        for ops in self.variants.values():
            moved = parameters.copy()
            ops.update(layout, 2, address, votes, False, 9_000, moved)
            assert np.array_equal(expected, moved)

    @given(st.sampled_from([(16, 1), (16, 3), (48, 1), (80, 2)]), U32)
    @settings(max_examples=12)
    def test_digest(self, size, seed):
        layout = egg.layout(*size)
        parameters = np.random.default_rng(seed).integers(-128, 128, layout.size, np.int8)
        expected = REFERENCE.digest(layout, parameters)
        changed = parameters.copy()
        changed[seed % layout.size] ^= 1
        for ops in self.variants.values():
            assert ops.digest(layout, parameters) == expected
            assert ops.digest(layout, changed) != expected

    @given(perturbations(), st.data())
    @settings(max_examples=25)
    def test_ternary_non_zeros_and_step(self, p, data):
        first = data.draw(st.integers(0, p.units - 1))
        units = data.draw(st.integers(1, p.units - first))
        rng = np.random.default_rng(data.draw(U32))
        votes, weights = (rng.integers(-1, 2, size, np.int8) for size in (p.units, p.layout.size))

        def compute(ops):
            found, moved = ops.ternary_nonzeros(p, first, units), weights.copy()
            changed = ops.ternary_step(p, votes, moved)
            return found.starts_U1, found.positions_N, found.signs_N, moved, changed

        self.equal(compute(REFERENCE), compute)

    def test_ternary_step_of_a_large_model(self):
        """More non-zeros and weights than one thread takes at once."""
        layout = Layout((TensorSpec("a", (100, 150), "matrix", 0, 0), TensorSpec("b", (100,), "vector", 1, 15000)))
        rng = np.random.default_rng(1)
        for support, units, nonzeros in (("exact", 15, 1000), ("columns", 30, 5), ("bernoulli", 6, 4000)):
            p = Perturbations(support, NoiseAddress(5, 6), layout, units, nonzeros)
            votes, weights = (rng.integers(-1, 2, size, np.int8) for size in (units, layout.size))

            def compute(ops, p=p, votes=votes, weights=weights):
                moved = weights.copy()
                return ops.ternary_step(p, votes, moved), moved, ops.ternary_nonzeros(p, 0, p.units).positions_N

            self.equal(compute(REFERENCE), compute)

    def test_prepare_is_a_snapshot(self):
        shape, layout = EggShape(16, 1, 4), egg.layout(16, 1)
        rows = np.arange(12, dtype=np.uint8).reshape(2, 6)
        for ops in self.variants.values():
            parameters = egg.initial_parameters(layout, 1)
            model = ops.prepare(shape, parameters)
            before = ops.scores(model, rows, 0)
            parameters[:] = 0
            assert np.array_equal(before, ops.scores(model, rows, 0))

    def test_inputs_are_left_alone(self):
        shape, layout = EggShape(16, 1, 4), egg.layout(16, 1)
        for ops in self.variants.values():
            parameters = egg.initial_parameters(layout, 1)
            noise = ops.noise(layout, 1, NoiseAddress(1, 0), 0, 2)
            votes = np.array([1, -1], np.int8)
            rows, row_of_pair = np.ones((1, 4), np.uint8), np.zeros(2, np.int32)
            inputs = [parameters, noise.factors_QF, noise.products_QV, votes, rows, row_of_pair]
            before = [array.copy() for array in inputs]
            for array in inputs:
                array.setflags(write=False)
            ops.member_scores(ops.prepare(shape, parameters), noise, rows, row_of_pair, 1)
            ops.accumulate(layout, noise, votes, True, np.zeros(layout.size, np.int32))
            ops.digest(layout, parameters)
            assert all(np.array_equal(old, new) for old, new in zip(before, inputs, strict=True))

    # Laws.

    @given(cases(widths=(16, 48)))
    @settings(max_examples=8)
    def test_members_of_a_pair_are_antithetic(self, case):
        """Turning the sign of the noise exchanges them, to the bit: the shift floors the same sum."""
        layout = case.layout
        turned_QF = case.noise.factors_QF.copy()
        for slot in layout.noise_slots(case.noise.rank):
            if slot.second >= 0:
                turned_QF[:, slot.first : slot.second] *= -1
        turned = Noise(case.noise.rank, turned_QF, -case.noise.products_QV)
        for ops in self.variants.values():
            model = ops.prepare(case.shape, case.parameters)
            scores = ops.member_scores(model, case.noise, case.rows, case.row_of_pair, case.burn_in)
            exchanged = ops.member_scores(model, turned, case.rows, case.row_of_pair, case.burn_in)
            assert np.array_equal(scores.reshape(-1, 2)[:, ::-1].reshape(-1), exchanged)

    @given(cases(widths=(16, 48)), st.data())
    @settings(max_examples=10)
    def test_any_cut_of_the_pairs_gives_the_same(self, case, data):
        cut = data.draw(st.integers(0, case.pairs))
        votes = np.resize(np.array([1, -1, 0, 1], np.int8), case.pairs)
        parts = [part for part in (slice(0, cut), slice(cut, case.pairs)) if part.start != part.stop]
        for ops in self.variants.values():
            model, sums = ops.prepare(case.shape, case.parameters), np.zeros((2, case.layout.size), np.int32)
            whole = ops.member_scores(model, case.noise, case.rows, case.row_of_pair, case.burn_in)
            ops.accumulate(case.layout, case.noise, votes, False, sums[0])
            scores = []
            for part in parts:
                noise = Noise(case.noise.rank, case.noise.factors_QF[part], case.noise.products_QV[part])
                scores.append(ops.member_scores(model, noise, case.rows, case.row_of_pair[part], case.burn_in))
                ops.accumulate(case.layout, noise, votes[part], False, sums[1])
            assert np.array_equal(np.concatenate(scores), whole)
            assert np.array_equal(sums[0], sums[1])

    # Refusals.

    @pytest.mark.parametrize("change", [
        {"width": 0}, {"width": 24}, {"width": 1040}, {"layers": 0}, {"sigma_shift": -1}, {"sigma_shift": 17},
    ])  # fmt: skip
    def test_shapes_that_are_refused(self, change):
        for ops in self.variants.values():
            with pytest.raises(BackendError):
                ops.prepare(replace(EggShape(16, 1, 4), **change), egg.initial_parameters(egg.layout(16, 1), 1))

    @pytest.mark.parametrize("arguments", [(0, 0, 1), (1, -1, 1), (1, 0, 0), (1, (1 << 32) - 1, 2)])
    def test_noise_that_has_no_address(self, arguments):
        rank, first, pairs = arguments
        for ops in self.variants.values():
            with pytest.raises(BackendError, match="cannot be addressed"):
                ops.noise(egg.layout(16, 1), rank, NoiseAddress(1, 0), first, pairs)

    def test_arrays_that_are_refused(self):
        for ops in self.variants.values():
            for number, call in enumerate(bad_calls(ops)):
                try:
                    call()
                except BackendError:
                    continue
                pytest.fail(f"call {number} was taken by {ops.name}")


def bad_calls(ops):
    """Calls with one argument of the wrong dtype, shape, order or range."""
    shape, layout = EggShape(16, 1, 4), egg.layout(16, 1)
    flat = egg.initial_parameters(layout, 1)
    model, noise = ops.prepare(shape, flat), ops.noise(layout, 1, NoiseAddress(1, 0), 0, 2)
    rows, row_of_pair = np.ones((2, 4), np.uint8), np.zeros(2, np.int32)
    state, sums, votes = np.zeros((4, 1, 16), np.int8), np.zeros(layout.size, np.int32), np.ones(2, np.int8)
    factors, products = noise.factors_QF, noise.products_QV
    for bad in (flat[:-1], flat.astype(np.int16), np.repeat(flat, 2)[::2]):
        yield lambda bad=bad: ops.prepare(shape, bad)
        yield lambda bad=bad: ops.digest(layout, bad)
        yield lambda bad=bad: ops.apply(bad, sums, 1)
    for bad in (
        Noise(1, factors[:1], products), Noise(1, factors[:, :-1], products), Noise(2, factors, products),
        Noise(1, factors.astype(np.int16), products), Noise(1, factors, products.astype(np.int8)),
        Noise(1, np.asfortranarray(factors), products), Noise(1, factors, products[:, :-1]),
    ):  # fmt: skip
        yield lambda bad=bad: ops.member_scores(model, bad, rows, row_of_pair, 0)
        yield lambda bad=bad: ops.accumulate(layout, bad, votes, False, sums)
        yield lambda bad=bad: ops.logits(model, rows[0], state, bad)
    for bad in (rows[:, :1], rows[:0], rows[0], rows.astype(np.int8), np.asfortranarray(np.ones((3, 4), np.uint8))):
        yield lambda bad=bad: ops.member_scores(model, noise, bad, row_of_pair, 0)
        yield lambda bad=bad: ops.scores(model, bad, 0)
    for burn_in in (-1, 3):
        yield lambda burn_in=burn_in: ops.member_scores(model, noise, rows, row_of_pair, burn_in)
        yield lambda burn_in=burn_in: ops.scores(model, rows, burn_in)
    for bad in (row_of_pair[:1], row_of_pair - 1, row_of_pair + 2, row_of_pair.astype(np.int64)):
        yield lambda bad=bad: ops.member_scores(model, noise, rows, bad, 0)
    for bad in (state[:2], state.astype(np.int16), np.asfortranarray(np.zeros((4, 2, 16), np.int8))[:, :1]):
        yield lambda bad=bad: ops.member_scores(model, noise, rows, row_of_pair, 0, bad)
        yield lambda bad=bad: ops.logits(model, np.ones(4, np.uint8), bad, noise)
    yield lambda: ops.scores(model, rows, 0, state)
    for bad in (votes[:1], votes * 2, votes * -2, votes.astype(np.int16)):
        yield lambda bad=bad: ops.accumulate(layout, noise, bad, False, sums)
    for bad in (sums[:-1], sums.astype(np.int64)):
        yield lambda bad=bad: ops.accumulate(layout, noise, votes, False, bad)
    yield lambda: ops.apply(flat.copy(), sums.astype(np.int64), 1)
    for threshold in (-1, 1 << 62):
        yield lambda threshold=threshold: ops.apply(flat.copy(), sums, threshold)
    yield from bad_ternary_calls(ops)


def bad_ternary_calls(ops):
    layout, votes = egg.layout(16, 1), np.ones(2, np.int8)
    ternary_weights = np.zeros(layout.size, np.int8)
    good = Perturbations("exact", NoiseAddress(1, 0), layout, 2, 3)
    for bad in (votes[:1], votes * 2, votes.astype(np.int16)):
        yield lambda bad=bad: ops.ternary_step(good, bad, ternary_weights)
    for bad in (ternary_weights[:-1], ternary_weights.astype(np.int16), ternary_weights + np.int8(2)):
        yield lambda bad=bad: ops.ternary_step(good, votes, bad)
    for change in ({"nonzeros": layout.size}, {"nonzeros": 0}, {"support": "columns", "nonzeros": 1000}):
        yield lambda change=change: ops.ternary_step(replace(good, **change), votes, ternary_weights)
    for first, units in ((-1, 1), (0, 0), (1, 2)):
        yield lambda first=first, units=units: ops.ternary_nonzeros(good, first, units)
