"""noise_step as a whole: exact derivatives, byte-identical journals whatever the workers do, exact replay, learning."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from harness import chaos, deployed, hasty, local, train

from es_service import cli
from es_service.config import load, resolve
from es_service.data.examples import batch_indices
from es_service.driver import figures
from es_service.errors import ConfigError
from es_service.messages import decode
from es_service.models.ternary_net import judge, logits
from es_service.page.board import Board, Seen
from es_service.page.server import about_of
from es_service.problem import algorithm_of, initial_parameters, layout_of, net_of
from es_service.replay import Replay
from es_service.session import with_corpus
from es_service.tail import Facts
from es_service.types import NonZeros
from workers.evaluator import Evaluator
from workers.local_pool import LocalPool
from workers.ops.reference import ReferenceOps
from workers.tasks.ternary import CHUNK, TernaryTask
from workers.tasks.ternary_torch import Judge

torch = pytest.importorskip("torch")

OPS = ReferenceOps()
DENSITY = {"kind": "staged", "nonzeros": [4, 2], "below": [8.0]}


@pytest.fixture(scope="module")
def small(tmp_path_factory, corpus_dir):
    """`small("digits", support="columns")`: a run of a few small generations, with changes of its algorithm."""
    runs_dir = tmp_path_factory.mktemp("runs")

    def make(data="digits", population=23, **algorithm):
        text = {"kind": "files", "paths": [corpus_dir / "train"], "held_out_paths": [corpus_dir / "held_out"]}
        model = {"kind": "ternary_mlp"} if data == "digits" else {"kind": "ternary_lm", "context": 3, "embedding": 5}
        return resolve(
            {
                "population": population,
                "model": model | {"width": 13, "layers": 2},
                "algorithm": {"kind": "noise_step", "density": DENSITY} | algorithm,
                "data": {"kind": "digits"} if data == "digits" else text,
                "feeding": {"kind": "batch", "size": 50},
                "deployment": {
                    "runs_dir": runs_dir, "generations": 6, "lease_pairs": 5, "evaluate_every": 3,
                    "evaluation_rows": 20, "evaluation_bytes": 7, "keyframe_every": 2, "detach": True, "audit_share": 0,
                },
            }
        )  # fmt: skip

    return make


def task_of(config, threads=1) -> TernaryTask:
    config, corpus = with_corpus(config)
    task = TernaryTask(config, corpus.train, ReferenceOps(threads))
    task.prepare(initial_parameters(config))
    return task


# Alignments.


def gradient(config) -> np.ndarray:
    """Minus the gradient of the loss of generation 0 by reverse mode, flat."""
    task = task_of(config)
    task.evaluate(0, 1, 0, 5)  # looks at the batch
    judge = task.judge
    weights = [weight.clone().requires_grad_() for weight in judge._weights]
    judge._loss(judge._logits(weights, [], []), judge._targets).backward()
    return -np.concatenate([weight.grad.numpy().ravel() for weight in weights])


@pytest.mark.parametrize("data", ["digits", "text"])
@pytest.mark.parametrize("support", ["exact", "columns", "bernoulli"])
def test_forward_mode_equals_reverse_mode(small, data, support):
    config = small(data, 5, support=support, density={"kind": "constant", "nonzeros": 5})
    expected_P = gradient(config)
    outcome = task_of(config).evaluate(0, 5, 0, 5)
    found = OPS.ternary_nonzeros(algorithm_of(config).perturbations(0, 5), 0, 5)
    for unit in range(5):
        part = slice(found.starts_U1[unit], found.starts_U1[unit + 1])
        expected = float((expected_P[found.positions_N[part]] * found.signs_N[part]).sum())
        assert outcome.values[unit] == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("data", ["digits", "text"])
def test_single_coordinates_in_every_tensor(small, data):
    config, task = small(data), task_of(small(data))
    expected_P = gradient(config)
    task.evaluate(0, 1, 0, 5)  # looks at the batch
    for tensor in layout_of(config).tensors:
        places = np.random.default_rng(tensor.index).integers(0, tensor.size, CHUNK) + tensor.offset
        ones = NonZeros(np.arange(CHUNK + 1), places, np.ones(CHUNK, np.int8))
        assert task.judge.derivatives(ones) == pytest.approx(expected_P[places], abs=1e-5, rel=1e-5)


@pytest.mark.parametrize(("preset", "forwards"), [("digits", 106), ("text", 131), ("mnist", 34)])
def test_operations_of_a_generation_are_those_of_the_docs(preset, forwards):
    """docs/noise-step.md, in forward passes over the batch; the batch is smaller here."""
    from torch.utils.flop_counter import FlopCounterMode

    config, batch = load(f"noise-step-{preset}"), 8
    net = net_of(config)
    judge = Judge(net, "loss", CHUNK)
    inputs = np.zeros((batch, net.context or net.sizes[0]), np.uint8)
    with FlopCounterMode(display=False) as look:
        judge.look_at(initial_parameters(config), inputs, np.zeros(batch, np.uint8))
    judge.prepare_derivatives()
    with FlopCounterMode(display=False) as chunk:
        judge.derivatives(NonZeros(np.zeros(CHUNK + 1, np.int64), np.empty(0, np.int64), np.empty(0, np.int8)))
    chunks = -(-config.population // CHUNK)
    assert look.get_total_flops() == net.flops() * batch
    assert round(1 + chunks * chunk.get_total_flops() / look.get_total_flops()) == forwards


def wrong(config, weights, inputs, targets) -> float:
    """Share of the examples whose label is not the only one with the largest logit."""
    z = logits(net_of(config), weights, inputs).astype(np.float64)
    near = z > z.max(axis=1, keepdims=True) - 2**-12 * np.abs(z).max(axis=1, keepdims=True)
    return 1 - float((near[np.arange(len(z)), targets] & (near.sum(axis=1) == 1)).mean())


def test_ties_are_errors(small):
    """With all weights 0 all logits are equal, and nothing is right."""
    config = small("digits", 5, alignment="antithetic", objective="errors")
    task = task_of(config)
    task.prepare(np.zeros(layout_of(config).size, np.int8))
    task.evaluate(0, 4, 0, 5)
    assert task.judge._errors(task.judge._made[-1]) == 1
    assert task.judge._errors(torch.tensor([[3.0, 3.0 + 1e-6] + 8 * [0.0]] * 50)) == 1


@pytest.mark.parametrize("data", ["digits", "text"])
def test_differences_are_those_of_the_two_ends(small, data):
    for objective in ("loss", "errors"):
        config = small(data, 5, alignment="antithetic", objective=objective)
        task = task_of(config)
        outcome = task.evaluate(0, 4, 0, 5)
        inputs, targets = task.examples.take(batch_indices(config.seed, 0, task.batch, len(task.examples)))
        found = OPS.ternary_nonzeros(algorithm_of(config).perturbations(0, 4), 0, 5)
        for unit in range(5):
            values = []
            for sign in (-1, 1):
                weights = initial_parameters(config)
                weights[found.positions_N[4 * unit : 4 * unit + 4]] += sign * found.signs_N[4 * unit : 4 * unit + 4]
                judged = judge(net_of(config), weights, inputs, targets)
                loss = judged.bits * np.log(2) / 50
                values.append(loss if objective == "loss" else wrong(config, weights, inputs, targets))
            assert outcome.values[unit] == pytest.approx((values[0] - values[1]) / 2, abs=1e-5)


@pytest.mark.parametrize("alignment", ["forward_mode", "antithetic"])
def test_alignments_are_the_same_bits_for_any_cut_and_any_threads(small, alignment):
    config = small(alignment=alignment)
    whole = task_of(config).evaluate(3, 4, 0, 23)
    for threads, cuts in ((1, (5, 10, 8)), (3, (20, 3)), (2, (23,))):
        task, first, parts = task_of(config, threads), 0, []
        for units in cuts:
            parts.append(task.evaluate(3, 4, first, units))
            first += units
        assert np.array_equal(
            np.concatenate([part.values for part in parts]).view(np.uint32), whole.values.view(np.uint32)
        )
        assert sum(part.score_sum for part in parts) == whole.score_sum
        assert min(part.score_min for part in parts) == whole.score_min
        assert max(part.score_max for part in parts) == whole.score_max


def test_the_recorded_scores_are_the_loss_of_the_definition_and_the_promise(small):
    config = small()
    task = task_of(config)
    outcome = task.evaluate(2, 4, 0, 5)
    inputs, targets = task.examples.take(batch_indices(config.seed, 2, 50, len(task.examples)))
    bits = judge(net_of(config), initial_parameters(config), inputs, targets).bits
    gains = np.abs(outcome.values) * 16 * 50 / np.log(2)
    assert outcome.score_min == pytest.approx(-16 * bits, abs=1)
    assert outcome.score_sum - 5 * outcome.score_min == pytest.approx(gains.sum(), abs=2.5)
    assert outcome.score_max - outcome.score_min == pytest.approx(gains.max(), abs=0.5)


def test_parameters_are_a_snapshot(small):
    config = small()
    task, parameters = task_of(config), initial_parameters(config)
    task.prepare(parameters)
    parameters[:] = 0
    assert np.array_equal(task.evaluate(0, 4, 0, 5).values, task_of(config).evaluate(0, 4, 0, 5).values)


OTHER_CPU = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"}
"""Makes PyTorch use the kernels of an older CPU; read when it starts."""
ELSEWHERE = """
import sys
import numpy as np
from es_service.config import RunConfig
from es_service.messages import Lease, encode
from es_service.session import with_corpus
from workers.evaluator import Evaluator
from workers.ops.reference import ReferenceOps
for name in sys.argv[1:]:
    config, corpus = with_corpus(RunConfig.model_validate_json(open(name + ".json").read()))
    evaluator = Evaluator(config, corpus.train, ReferenceOps())
    evaluator._take(np.load(name + ".npy"), 0, 0)
    results = [encode(evaluator.evaluate(Lease(g, 5, 18, 0), 2)) for g in range(30)]
    open(name + ".bin", "wb").write(b"".join(len(r).to_bytes(4, "little") + r for r in results))
"""


def results_of(path: Path) -> list:
    data, results = path.read_bytes(), []
    while data:
        size = int.from_bytes(data[:4], "little")
        results.append(decode(data[4 : 4 + size]))
        data = data[4 + size :]
    return results


def test_workers_of_another_cpu_type_are_not_taken_for_liars(small, tmp_path):
    """PyTorch with the kernels of an older CPU, in a process of its own, on weights that have been trained."""
    modes = {"forward": {}, "losses": {"alignment": "antithetic"},
             "errors": {"alignment": "antithetic", "objective": "errors"}}  # fmt: skip
    trained = train(deployed(small(), generations=40))
    weights = Replay(trained.contents, trained.config, trained.directory, OPS).rebuild(40).parameters_P
    for name, mode in modes.items():
        (tmp_path / f"{name}.json").write_text(small(**mode).model_dump_json())
        np.save(tmp_path / f"{name}.npy", weights)
    for folder, variables in (("here", {}), ("there", OTHER_CPU)):
        names = [str(tmp_path / name) for name in modes]
        subprocess.run([sys.executable, "-c", ELSEWHERE, *names], check=True, env=os.environ | variables)
        for name in modes:
            (tmp_path / f"{name}.bin").rename(tmp_path / f"{name}.{folder}")
    differing = 0
    for name, mode in modes.items():
        agrees = algorithm_of(small(**mode)).agrees
        here, there = (results_of(tmp_path / f"{name}.{folder}") for folder in ("here", "there"))
        assert all(agrees(a, b) and agrees(b, a) for a, b in zip(here, there, strict=True)), name
        differing += sum(a.payload != b.payload for a, b in zip(here, there, strict=True))
    if not differing:
        pytest.skip("this PyTorch computes the same bits with the kernels of an older CPU")


# The law.


@pytest.fixture(scope="module")
def undisturbed(small):
    runs = {}

    def run(data="digits"):
        if data not in runs:
            runs[data] = train(small(data))
        return runs[data]

    return run


@pytest.mark.parametrize("data", ["digits", "text"])
def test_workers_leases_and_their_order_do_not_matter(small, undisturbed, data):
    rng = random.Random(2)
    others = [
        train(small(data), local(3, rng.choice)),
        train(small(data), local(2, rng.choice, shares=True)),
        train(deployed(small(data), lease_pairs=10), local(2)),
        train(small(data), local(2, ops=lambda: ReferenceOps(3))),
    ]
    for other in others:
        assert other.journal == undisturbed(data).journal
    commits = undisturbed(data).contents.commits
    assert {commit.units for commit in commits} == {23}
    assert set(commits.fields["threshold"].tolist()) <= {4, 2}


@pytest.mark.parametrize("change", [{"support": "columns", "density": {"kind": "constant"}}, {"support": "bernoulli"},
                                    {"alignment": "antithetic", "objective": "errors"}])  # fmt: skip
def test_other_supports_and_objectives(small, change):
    assert train(small(**change), local(3, random.Random(1).choice)).journal == train(small(**change)).journal


@pytest.mark.parametrize("lie", [{"score_min": -(10**6)}, {"score_sum": 10**6}])
def test_a_worker_whose_votes_are_right_and_scores_wrong_is_found(small, lie):
    """The scores decide the density of the generations that follow."""

    class Liar(Evaluator):
        def evaluate(self, lease, threshold):
            result = super().evaluate(lease, threshold)
            return replace(result, **{name: getattr(result, name) + value for name, value in lie.items()})

    def make(config, corpus):
        def evaluator(kind=Evaluator):
            return kind(config, corpus.train, ReferenceOps())

        return LocalPool({"w0": evaluator(Liar), "w1": evaluator()}, lambda names: names[0], make_referee=evaluator)

    config = small(density={"kind": "automatic", "most": 16})
    run = train(deployed(config, audit_share=1.0), make)
    assert run.events["quarantined"] == 1
    assert run.journal == train(config).journal


@pytest.mark.parametrize("seed", range(2))
def test_chaos(small, undisturbed, seed):
    assert train(small(), chaos(seed, corrupt=True), prepare=hasty).journal == undisturbed().journal


def test_the_automatic_density_goes_on_after_a_resume(small):
    config = deployed(small(density={"kind": "automatic", "most": 16}), generations=10)
    whole = train(config)
    assert len(set(whole.contents.commits.fields["threshold"].tolist())) > 1
    assert train(config, local(3, random.Random(1).choice)).journal == whole.journal
    first = train(deployed(config, generations=6))
    assert train(config, directory=first.directory).journal == whole.journal


def test_a_stop_and_a_resume_keep_the_schedule(small, undisturbed):
    """The second stage begins after the resume, from what the journal says of the loss before it."""
    whole = undisturbed()
    assert set(whole.contents.commits.fields["threshold"].tolist()) == {4, 2}
    for stop in range(1, 6):
        first = train(deployed(small(), generations=stop))
        assert train(small(), directory=first.directory).journal == whole.journal


@pytest.mark.parametrize("alignment", ["forward_mode", "antithetic"])
def test_a_resume_counts_the_examples_of_the_generations_before(small, alignment):
    config = deployed(small(alignment=alignment), generations=2, metrics_port=0)
    run, totals = train(config), []

    def keep(coordinator):
        totals.append(coordinator.telemetry.metrics.model_bytes._value.get())

    train(deployed(config, generations=3), directory=run.directory, prepare=keep)
    lines = [row["model_bytes"] for row in run.directory.metrics() if "model_bytes" in row]
    assert totals == [sum(lines[:2])]
    assert totals == [2 * 23 * 50 * (2 if alignment == "antithetic" else 1)]


def test_replay_gives_every_generation_bit_for_bit(small, undisturbed):
    run = undisturbed()
    replay = Replay(run.contents, run.config, run.directory, OPS)
    generations = list(replay.steps(replay.first(), 6))
    assert generations[-1].digest == run.contents.close.digest
    assert {value for canonical in generations for value in np.unique(canonical.parameters_P).tolist()} == {-1, 0, 1}
    assert len({canonical.digest for canonical in generations}) == 6


def test_what_the_model_cannot_hold_is_refused_before_anything_starts(small):
    with pytest.raises(ConfigError, match=r"algorithm.density: up to 100 non-zeros in each of 23 perturb"):
        with_corpus(small(density={"kind": "constant", "nonzeros": 100}))
    with pytest.raises(ConfigError, match="columns; use fewer"):
        with_corpus(small(support="columns", density={"kind": "constant", "nonzeros": 5}))


def test_without_pytorch_the_remedy_is_named(small, monkeypatch):
    from es_service.errors import BackendError
    from workers import tasks

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match=r"pip install 'es-service\[torch\]'"):
        tasks.check(small())


def test_the_digits_preset_learns(tmp_path):
    overrides = ["deployment.generations=12", "feeding.size=256", "deployment.detach=true", "deployment.pool=local"]
    config = load("noise-step-digits", [*overrides, f"deployment.runs_dir='{tmp_path}'"])
    run = train(config, local(1, ops=lambda: ReferenceOps(2)))
    rows = [row for row in run.directory.metrics() if row["kind"] == "evaluation"]
    assert rows[0]["accuracy"] < 0.2
    assert rows[-1]["accuracy"] > 0.3
    assert rows[-1]["bits_per_byte"] < rows[0]["bits_per_byte"] / 4


def test_what_is_shown_speaks_of_batches_labels_and_accuracy(small):
    shown = []

    def keep(coordinator):
        committed = coordinator.telemetry.committed

        def told(*arguments):
            committed(*arguments)
            shown.append(figures(coordinator.heartbeat()))

        coordinator.telemetry.committed = told

    train(small(), prepare=keep)
    assert "bits/label" in shown[-1]
    assert "accuracy" in shown[-1]
    assert " labels/s" in shown[-1]
    assert "byte" not in shown[-1]


def test_status_says_what_a_run_counts(undisturbed, capsys):
    run, text = undisturbed("digits"), undisturbed("text")
    assert cli.main(["status", "--runs-dir", str(run.directory.path.parent)]) == 0
    listed = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "bits/label" in listed[run.directory.name]
    assert " labels/s" in listed[run.directory.name]
    assert "bits/byte" in listed[text.directory.name]
    assert " bytes/s" in listed[text.directory.name]
    assert "bits/byte" not in listed["run"]
    assert cli.main(["status", run.directory.name, "--runs-dir", str(run.directory.path.parent)]) == 0
    one = capsys.readouterr().out
    assert " labels/s" in one
    assert "accuracy" in one
    assert "bits/byte" not in one
    assert " bytes/s" not in one


@pytest.mark.parametrize(
    ("data", "loss", "speed"), [("digits", "bits/label", "labels/s"), ("text", "bits/byte", "bytes/s")]
)
def test_the_page_says_what_a_run_counts(undisturbed, data, loss, speed):
    run = undisturbed(data)
    about = about_of(run.config, "x")
    assert "batches of 50" in about["words"]
    assert (about["units"]["loss"], about["units"]["speed"], about["units"]["votes"]) == (loss, speed, "perturbations")
    board, rows = Board(about), list(run.directory.metrics())
    board.take(Facts(rows))
    news = board.news(Seen())
    expected = [[row["generation"], round(row["accuracy"], 4)] for row in rows if row["kind"] == "evaluation"]
    assert news["accuracy"]["rows"] == expected
    assert news["now"]["accuracy"] == [row["accuracy"] for row in rows if row["kind"] == "evaluation"][-1]
