"""What the service costs beside a plain loop of noise, forward pass and one update, at a preset's size.

Runs of the two alternate, over the same generations with the same kernels and threads; the median of the paired
ratios is the figure. Both must end at the same digest, so the service did the same work.

    python -m benchmarks.overhead --preset egg-laptop --generations 8 --pairs 5 --pool ray
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import median

from es_service.config import RunConfig, load
from es_service.directory import RunDirectory
from es_service.journal import scan
from es_service.launch import launch, node_cores
from es_service.problem import algorithm_of, initial_parameters, layout_of, plan_of
from es_service.session import with_corpus
from es_service.types import UInt8Array
from es_service.wiring import kernels
from workers.tasks.egg_lm import EggLanguageModel


def plain_loop(config: RunConfig, train: UInt8Array) -> tuple[float, int]:
    """Seconds and final digest of the bare arithmetic; the leases of the plan, so that tiles are as full."""
    ops, _ = kernels("auto", node_cores())
    task, algorithm, plan = EggLanguageModel(config, train, ops), algorithm_of(config), plan_of(config)
    parameters_P = initial_parameters(config)
    began = time.perf_counter()
    for generation in range(config.deployment.generations):
        task.prepare(parameters_P)
        parts = [task.scores(generation, *plan.range(index))[0] for index in range(len(plan))]
        record = algorithm.close([algorithm.encode(part) for part in parts])
        algorithm.update(ops, parameters_P, generation, algorithm.threshold(generation, ()), record)
    return time.perf_counter() - began, ops.digest(layout_of(config), parameters_P)


def service(config: RunConfig, directory: RunDirectory) -> tuple[float, int]:
    """Seconds between the first lease and the last commit, from the run's own records, and the final digest.

    Start-up of Ray and the held-out evaluations before the first and after the last generation are left out.
    """
    with launch(config, directory, resume=False) as (handle, _):
        while handle.wait(0.2) is None:
            handle.heartbeat()
    commits = [row for row in directory.metrics() if row["kind"] == "commit"]
    close = scan(directory.journal_path).close
    assert close is not None
    return sum(row["seconds"] for row in commits), close.digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="egg-laptop")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--pool", choices=("ray", "local"), default="ray")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - as the plain loop's: Ray's default of 15 loses to any other program
    config = load(arguments.preset, [f"deployment.pool={arguments.pool}"])
    config = config.with_deployment(generations=arguments.generations, evaluate_every=1 << 20, keyframe_every=1 << 20)
    config, corpus = with_corpus(config)
    scratch = Path(tempfile.mkdtemp(prefix="overhead"))
    config = config.with_deployment(runs_dir=scratch)
    ratios = []
    try:
        for pair in range(arguments.pairs):
            plain, expected = plain_loop(config, corpus.train)
            served, digest = service(config, RunDirectory(scratch, f"pair-{pair}"))
            assert digest == expected, "the service and the plain loop ended at different parameters"
            ratios.append(served / plain)
            print(f"pair {pair}: plain loop {plain:.2f} s, service {served:.2f} s, ratio {ratios[-1]:.4f}", flush=True)
    finally:
        shutil.rmtree(scratch)
    print(
        f"median ratio {median(ratios):.4f}: {arguments.preset}, {arguments.pool}, {arguments.generations} generations"
    )
    if arguments.json:
        figures = vars(arguments) | {"json": str(arguments.json), "ratios": ratios, "median": median(ratios)}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
