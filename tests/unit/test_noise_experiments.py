"""The experiments of noise_step in small: alignments both ways, every method learns, runs resume, reports draw."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from benchmarks import noise_methods, noise_report, noise_step, noise_tuning  # noqa: E402
from benchmarks.noise_problem import loss, open_problem, torch_batch  # noqa: E402
from es_service.models.ternary_net import judge  # noqa: E402
from es_service.problem import initial_parameters  # noqa: E402

DIGITS = ("model.width=32", "feeding.size=200", "population=40")
COLUMNS = ("population=30",)  # 131 columns


def digits(*overrides):
    return open_problem("digits", 3, *DIGITS, *overrides)


@pytest.mark.parametrize("density", ["density.kind=automatic", "support=bernoulli"])
def test_a_gradient_casts_the_votes_of_forward_mode(density):
    problem = digits(f"algorithm.{density}", "algorithm.density.most=32" if "auto" in density else "seed=4")
    weights = initial_parameters(problem.config)
    for generation, nonzeros in ((0, 16), (1, 1)):
        assert noise_methods.differing_votes(problem, weights, generation, nonzeros) == 0


def test_the_loss_of_the_experiments_is_that_of_the_service():
    problem = digits()
    weights = initial_parameters(problem.config)
    judged = judge(problem.net, weights, *problem.batch(5))
    flat = torch.from_numpy(weights.astype(np.float32))
    found = float(loss(torch, problem, flat, torch_batch(torch, problem, 5)))
    assert found == pytest.approx(judged.bits / judged.examples * np.log(2), rel=1e-5)


@pytest.mark.parametrize("name", noise_methods.METHODS)
def test_every_method_learns(name):
    more = {"automatic": ("algorithm.density.most=32",), "columns": COLUMNS, "columns-4": COLUMNS}
    overrides = (*DIGITS, *more.get(name, ()))
    steps = 12 if name.startswith("eggroll") else 40
    result = noise_step.run_one("digits", name, 0, steps, steps // 4, (0,), overrides)
    assert len(result["held_out"]) == 5
    assert len(result["loss"]) == len(result["nonzeros"]) == 4
    assert all(count == 0 for count in result["differing_votes"].values())
    assert bool(result["differing_votes"]) == bool(result["nonzeros"][0])
    if name == "ste-adam-weak":  # no latent has reached a threshold
        assert result["held_out"][0][1:] == result["held_out"][-1][1:]
    else:
        assert result["held_out"][-1][1] < 0.9 * result["held_out"][0][1]


def test_finished_runs_are_kept_and_reported(tmp_path, monkeypatch, capsys):
    calls = []

    def fake(task, name, seed, steps, every, checked):
        calls.append((name, seed))
        rows = [[step, 4.0 / (1 + step) + seed, 1 - 0.9 / (1 + step)] for step in range(0, steps + 1, every)]
        return {
            "task": task, "method": name, "seed": seed, "steps": steps, "every": every, "weights": 1000, "batch": 50,
            "forward_flops": 10**6, "loss": [1.0] * (steps // every), "held_out": rows, "differing_votes": {"0": 0},
            "nonzeros": [2 if "ste" not in name else 0] * (steps // every),
        }  # fmt: skip

    monkeypatch.setattr(noise_step, "run_one", fake)
    results = tmp_path / "results.jsonl"
    arguments = ["noise_step", "run", "--results", str(results), "--tasks", "digits", "--steps", "20", "--methods"]
    monkeypatch.setattr("sys.argv", [*arguments, "automatic", "--seeds", "1"])
    noise_step.main()
    monkeypatch.setattr("sys.argv", [*arguments, "automatic", "published", "ste-adam", "--seeds", "2"])
    noise_step.main()
    assert len(calls) == len(set(calls)) == len(results.read_text().splitlines()) == 6
    assert {json.loads(line)["method"] for line in results.read_text().splitlines()} == {n for n, _ in calls}
    capsys.readouterr()
    monkeypatch.setattr("sys.argv", ["noise_step", "report", "--results", str(results)])
    noise_step.main()
    table = capsys.readouterr().out
    assert "scikit-learn digits 8x8, not MNIST" in table
    assert f"| {noise_methods.METHODS['automatic'].label} | 2 | 0.690 ± 0.500 | 0.957 ± 0.000 |" in table
    assert "| 10 | 1.3e+09 | 129 |" in table
    assert "Votes that forward mode casts otherwise: 0 of 768." in table
    assert (tmp_path / "noise-step-digits.png").stat().st_size > 20_000


def test_the_search_goes_on_from_its_grid_to_the_best_and_where_it_was(tmp_path, monkeypatch):
    path, tried = tmp_path / "trials.jsonl", []
    best = (0.3, 0.2)  # beyond the grid

    def loss(trial):
        tried.append(trial)
        if len(tried) == 7 or (trial.scored and trial not in tried[:-1]):
            raise KeyboardInterrupt
        far = abs(np.log(trial.sigma / best[0])) + abs(np.log(trial.rate / best[1]))
        return far - 0.01 * trial.scored

    monkeypatch.setattr(noise_tuning, "_loss", loss)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            noise_tuning.tune(path, ["digits"], 400)
        assert noise_tuning.best(noise_tuning.load(path), "digits", 400) is None
    noise_tuning.tune(path, ["digits"], 400)
    count = len(tried)
    noise_tuning.tune(path, ["digits"], 400)
    found = noise_tuning.load(path)
    assert count == len(tried) == len(found) + 2
    assert len(set(tried)) == len(found)
    assert {trial.steps for trial in found} == {80}
    assert [trial for trial in found if trial.scored] == [noise_tuning.Trial("digits", 80, *best, True)]
    assert noise_tuning.best(found, "digits", 400) == noise_tuning.Trial("digits", 80, *best, True)
    around = {(0.3, 0.4), (0.3, 0.1), (1.0, 0.2), (0.1, 0.2)}
    assert around < {(trial.sigma, trial.rate) for trial in found}


@pytest.mark.parametrize("task", noise_step.TUNED)
def test_eggroll_has_the_settings_that_the_search_found(task):
    found = noise_tuning.best(noise_tuning.load(noise_step.TRIALS), task, 400)
    assert noise_methods.EGGROLL[task] == {"sigma": found.sigma, "rate": found.rate, "scored": found.scored}


def test_the_third_task_is_other_text_for_another_network():
    problem = open_problem("headers", 0)
    assert problem.net.sizes == (256, 96, 96, 96, 256)
    assert b"namespace torch" in problem.corpus.train.tobytes()
    inputs, targets = problem.batch(0)
    assert (inputs.shape, targets.shape) == ((1024, 16), (1024,))


def test_error_bars_are_standard_errors():
    assert noise_report._mean([1.0, 2.0, 4.0], 3) == "2.333 ± 0.882"
