"""Whole models and parts of them from steps: equal to a plain replay, and with no noise but their own."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from es_service import noise, steps, votes
from es_service.errors import DivergenceError, StepsError
from es_service.noise import Stream
from es_service.problem import algorithm_of, initial_parameters, layout_of
from es_service.rebuild import Rebuild
from es_service.steps import Step, StepsHeader
from es_service.types import Part
from workers.ops import resolve
from workers.ops.reference import ReferenceOps

OPS = ReferenceOps()
GENERATIONS = 3


def made(config, path):
    """Steps of random votes, as `write` takes them from a run; and the parameters of each generation."""
    algorithm, layout, rng = algorithm_of(config), layout_of(config), np.random.default_rng(7)
    models = [initial_parameters(config)]
    rows = []
    for generation in range(GENERATIONS):
        votes_Q = rng.integers(-1, 2, algorithm.units).astype(np.int8)
        threshold, digest = 2 + generation, OPS.digest(layout, models[-1])
        rows.append(Step(generation, threshold, votes_Q, None, digest))
        models.append(models[-1].copy())
        algorithm.update(OPS, models[-1], generation, threshold, votes.pack(votes_Q))
    assert len({model.tobytes() for model in models}) == GENERATIONS + 1
    last = OPS.digest(layout, models[-1])
    steps.write(path, StepsHeader(config.spec, (), GENERATIONS, last, False), rows)
    return steps.scan(path), models, rows


EGG = {
    "plain": {"model__layers": 2},
    "rank 3": {"model__layers": 2, "algorithm__rank": 3},
    "signs, one noise for all": {"model__layers": 2, "algorithm__sign_noise": True, "algorithm__noise_reuse": 0},
    "large seed": {"model__layers": 2, "seed": (1 << 64) - 5, "algorithm__rank": 2},
}
TERNARY = {
    support: {
        "population": 12,
        "model": {"kind": "ternary_lm", "context": 3, "embedding": 5, "width": 13, "layers": 2},
        "algorithm": {"kind": "noise_step", "support": support, "density": {"kind": "constant", "nonzeros": 4}},
        "segment": {},
        "feeding": {"kind": "batch", "size": 50},
    }
    for support in ("exact", "columns", "bernoulli")
}


@pytest.fixture(scope="module")
def cases(tiny_config, tmp_path_factory):
    """`cases("rank 3")`: config, steps, models, rows; each is made once."""

    @cache
    def make(name):
        config = tiny_config(**(EGG | TERNARY)[name])
        return config, *made(config, tmp_path_factory.mktemp("steps") / "x.steps")

    return make


@pytest.fixture(params=[*EGG, *TERNARY])
def case(request, cases):
    return cases(request.param)


@pytest.fixture(params=EGG)
def egg_case(request, cases):
    return cases(request.param)


@pytest.fixture(params=TERNARY)
def ternary_case(request, cases):
    return cases(request.param)


@pytest.mark.parametrize("generation", range(GENERATIONS + 1))
def test_every_generation_is_that_of_the_plain_replay(case, generation):
    config, found, models, _ = case
    canonical = Rebuild(found, OPS).model(generation)
    assert np.array_equal(canonical.parameters_P, models[generation])
    assert canonical.digest == OPS.digest(layout_of(config), models[generation])


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_every_tensor_alone_is_that_of_the_plain_replay(case, backend):
    config, found, models, _ = case
    rebuild = Rebuild(found, resolve(backend, 1)[0])
    views = layout_of(config).views(models[-1])
    for tensor in layout_of(config).tensors:
        assert np.array_equal(rebuild.part(Part(tensor, 0, tensor.shape[0]), GENERATIONS), views[tensor.name])


@given(st.data())
@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_rows_of_any_generation_are_those_of_the_plain_replay(case, data):
    config, found, models, _ = case
    tensor = data.draw(st.sampled_from(layout_of(config).tensors))
    first = data.draw(st.integers(0, tensor.shape[0] - 1))
    stop = data.draw(st.integers(first + 1, tensor.shape[0]))
    generation = data.draw(st.integers(0, GENERATIONS))
    rows = layout_of(config).views(models[generation])[tensor.name][first:stop]
    assert np.array_equal(Rebuild(found, OPS).part(Part(tensor, first, stop), generation), rows)


def blocks(first, size):
    """Philox blocks of 16 entries that these entries lie in."""
    return range(first // 16, -(-(first + size) // 16))


@pytest.fixture
def generated(monkeypatch):
    """Counts every Philox block that is generated, by (stream, tensor, unit, epoch, block)."""
    counts = Counter()
    real = noise.philox4x32

    def counting(counter, key):
        for block, stream_and_tensor, unit, epoch in counter.reshape(-1, 4).tolist():
            counts[Stream(stream_and_tensor >> 24), stream_and_tensor & 0xFFFFFF, unit, epoch, block] += 1
        return real(counter, key)

    monkeypatch.setattr(noise, "philox4x32", counting)
    return counts


@pytest.mark.parametrize(("name", "first", "stop"), [("head", 40, 57), ("blocks.1.mlp.1", 0, 16), ("emb", 255, 256)])
def test_rows_of_a_matrix_generate_their_rows_of_a_and_b_of_their_tensor_only(egg_case, generated, name, first, stop):
    config, found, _, rows = egg_case
    tensor = next(tensor for tensor in layout_of(config).tensors if tensor.name == name)
    out_size, in_size = tensor.shape
    rank, address = config.algorithm.rank, algorithm_of(config).address
    expected = Counter()
    for block in blocks(first * in_size, (stop - first) * in_size):
        expected[Stream.INITIAL, tensor.index, 0, 0, block] += 1
    for step in rows:
        for unit in np.flatnonzero(step.votes_Q).tolist():  # a vote of 0 needs no noise
            where = (tensor.index, unit, address(step.generation).epoch)
            for r in range(rank):
                expected.update(
                    (Stream.FACTOR_A, *where, block) for block in blocks(r * out_size + first, stop - first)
                )
            expected.update((Stream.FACTOR_B, *where, block) for block in blocks(0, rank * in_size))
    Rebuild(found, OPS).part(Part(tensor, first, stop), GENERATIONS)
    assert generated == expected


def test_elements_of_a_vector_generate_their_own_two_factors_only(egg_case, generated):
    config, found, _, rows = egg_case
    tensor = next(tensor for tensor in layout_of(config).tensors if tensor.name == "blocks.1.att.bh")
    epoch = algorithm_of(config).address
    Rebuild(found, OPS).part(Part(tensor, 3, 9), GENERATIONS)
    assert generated == Counter(
        (stream, tensor.index, unit, epoch(step.generation).epoch, 0)
        for step in rows
        for unit in np.flatnonzero(step.votes_Q).tolist()
        for stream in (Stream.VECTOR_U, Stream.VECTOR_V)
    )


def test_the_whole_model_generates_far_more(egg_case, generated):
    """The counting is not blind."""
    config, found, _, _ = egg_case
    Rebuild(found, OPS).model(GENERATIONS)
    assert {tensor for _, tensor, *_ in generated} == set(range(len(layout_of(config).tensors)))


def support_counters(generated, found, part):
    """How many Philox counters of the supports a part takes, and all the counters of another kind."""
    generated.clear()
    Rebuild(found, OPS).part(part, GENERATIONS)
    support = sum(times for (stream, *_), times in generated.items() if stream == Stream.TERNARY_SUPPORT)
    return support, {key for key in generated if key[0] != Stream.TERNARY_SUPPORT}


@pytest.mark.parametrize(
    ("name", "first", "stop"), [("layers.1.weight", 4, 9), ("emb", 250, 256), ("layers.0.bias", 2, 12)]
)
def test_weights_of_a_ternary_model_generate_what_they_need_only(ternary_case, generated, name, first, stop):
    """Their initial values and signs, and of the supports what each row takes when it is rebuilt alone."""
    config, found, _, rows = ternary_case
    tensor = next(tensor for tensor in layout_of(config).tensors if tensor.name == name)
    part = Part(tensor, first, stop)
    place = tensor.offset + part.start
    support, others = support_counters(generated, found, part)
    initial = {(Stream.INITIAL, tensor.index, 0, 0, block) for block in blocks(part.start, part.size)}
    signs = {(Stream.TERNARY_SIGN, 0, 0, g, block) for g in range(GENERATIONS) for block in blocks(place, part.size)}
    assert others == initial | signs
    if config.algorithm.support == "bernoulli":
        words = len(range(place // 4, -(-(place + part.size) // 4)))
        assert support == words * sum(np.count_nonzero(step.votes_Q) for step in rows)
    else:
        alone = [support_counters(generated, found, Part(tensor, row, row + 1))[0] for row in range(first, stop)]
        assert support == sum(alone)
        assert support < 50 * GENERATIONS * part.size  # four rounds, repeated while outside: no support is searched


def test_parts_of_many_units_are_summed_in_pieces(egg_case, monkeypatch):
    from es_service.algorithms import eggroll

    config, found, models, _ = egg_case
    monkeypatch.setattr(eggroll, "_CHUNK_BYTES", 4096)
    tensor = layout_of(config).tensors[0]
    rebuilt = Rebuild(found, OPS).part(Part(tensor, 5, 9), GENERATIONS)
    assert np.array_equal(rebuilt, models[-1][5 * 16 : 9 * 16].reshape(4, 16))


def test_a_backend_that_computes_other_bits_is_found(egg_case):
    class Broken(ReferenceOps):
        def _apply(self, parameters_P, sums_P, threshold):
            return super()._apply(parameters_P, sums_P - 1, threshold)

    with pytest.raises(DivergenceError, match=r"x\.steps: generation 3 has digest"):
        Rebuild(egg_case[1], Broken()).model(GENERATIONS)


def test_the_digest_at_the_start_of_a_block_is_compared(case, tmp_path, monkeypatch):
    _, found, _, rows = case
    monkeypatch.setattr(steps, "BLOCK_VOTES", 1)
    path = tmp_path / "y.steps"
    steps.write(path, found.header, [*rows[:1], replace(rows[1], digest=5), *rows[2:]])
    rebuild = Rebuild(steps.scan(path), OPS)
    assert rebuild.model(0).digest == rows[0].digest
    with pytest.raises(DivergenceError, match=r"generation 1 has digest .*, the file says 0000000000000005"):
        rebuild.model(2)


def test_a_run_whose_population_grew(tiny_config, tmp_path):
    """The steps before and after the change follow their own specs."""
    small, large = tiny_config(), tiny_config(population=80)
    layout, current = layout_of(small), initial_parameters(small)
    rows = []
    for generation, config in enumerate([small, large]):
        votes_Q = np.resize(np.array([1, -1, 0], np.int8), config.population // 2)
        rows.append(Step(generation, 3, votes_Q, None, OPS.digest(layout, current)))
        algorithm_of(config).update(OPS, current, generation, 3, votes.pack(votes_Q))
    changes = ((1, large.spec),)
    path = tmp_path / "x.steps"
    steps.write(path, StepsHeader(small.spec, changes, 2, OPS.digest(layout, current), False), rows)
    rebuild = Rebuild(steps.scan(path), OPS)
    assert np.array_equal(rebuild.model(2).parameters_P, current)
    assert np.array_equal(rebuild.part(Part(layout.tensors[-1], 2, 4), 2), layout.views(current)["head"][2:4])
    assert (rebuild.config_at(0).population, rebuild.config_at(1).population) == (40, 80)


def test_a_spec_of_another_version_is_an_error(tiny_config, tmp_path):
    path = tmp_path / "x.steps"
    steps.write(path, StepsHeader(tiny_config().spec | {"sauce": 1}, (), 0, 0, False), [])
    with pytest.raises(StepsError, match="does not know the spec"):
        Rebuild(steps.scan(path), OPS)
