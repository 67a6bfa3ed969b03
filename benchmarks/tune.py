"""Held-out bits/byte of one setting for a budget of model-bytes, in a plain loop without the service.

A row of docs/tuning.md is one call; the budget decides how many generations there are.

    python -m benchmarks.tune egg-laptop --budget 82e6 --set model.width=64 --set algorithm.decay=800
"""

from __future__ import annotations

import argparse
import time

from es_service.config import load
from es_service.keeper import held_out
from es_service.launch import node_cores
from es_service.problem import algorithm_of, initial_parameters
from es_service.session import held_out_rows, with_corpus
from es_service.wiring import kernels
from workers.tasks.egg_lm import EggLanguageModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="preset or TOML file to start from")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="FIELD=VALUE")
    parser.add_argument("--budget", type=float, default=82e6, help="model-bytes (default: 82e6)")
    parser.add_argument("--evaluations", type=int, default=4)
    arguments = parser.parse_args()
    config, corpus = with_corpus(load(arguments.source, arguments.overrides))
    ops, about = kernels("auto", node_cores())
    print(f"{about}; {' '.join(arguments.overrides)}")
    task, algorithm, rows_SW = (
        EggLanguageModel(config, corpus.train, ops),
        algorithm_of(config),
        held_out_rows(config, corpus),
    )
    parameters_P = initial_parameters(config)
    bytes_each = (
        config.population * (config.segment.bytes + config.segment.burn_in) * config.feeding.passes(config.population)
    )
    generations = int(arguments.budget // bytes_each)
    began = time.perf_counter()
    for generation in range(generations):
        task.prepare(parameters_P)
        record = algorithm.encode(task.scores(generation, 0, algorithm.units)[0])
        algorithm.update(ops, parameters_P, generation, algorithm.threshold(generation, ()), record)
        done = generation + 1
        if done % max(1, generations // arguments.evaluations) == 0 or done == generations:
            seconds, model_bytes = time.perf_counter() - began, done * bytes_each
            bits = held_out(config, ops, parameters_P, rows_SW).bits_per_byte
            print(
                f"{done} generations, {model_bytes / 1e6:.1f} M bytes: {bits:.4f} bits/byte, {seconds:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
