"""What the text that a run writes at each held-out evaluation costs, beside the evaluation itself.

Both run in the thread that applies updates, with the same kernels; the least of several times is the figure.

    python -m benchmarks.samples --preset egg-laptop --repeat 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

from es_service.config import load
from es_service.keeper import held_out, sample_text
from es_service.launch import node_cores
from es_service.problem import initial_parameters
from es_service.session import held_out_rows, with_corpus
from es_service.wiring import kernels


def least_seconds(act: Callable[[], object], repeat: int) -> float:
    found = []
    for _ in range(repeat):
        began = time.perf_counter()
        act()
        found.append(time.perf_counter() - began)
    return min(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="egg-laptop")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    config, corpus = with_corpus(load(arguments.preset))
    ops, why = kernels(arguments.backend, node_cores())
    rows_SW, parameters_P = held_out_rows(config, corpus), initial_parameters(config)
    sample = least_seconds(lambda: sample_text(config, ops, parameters_P), arguments.repeat)
    evaluation = least_seconds(lambda: held_out(config, ops, parameters_P, rows_SW), arguments.repeat)
    print(f"{arguments.preset}, {node_cores()} cores, {why}")
    print(f"sample of {config.deployment.sample_bytes} bytes: {1000 * sample:.1f} ms")
    print(f"evaluation of {rows_SW.shape[0]} rows: {1000 * evaluation:.1f} ms")


if __name__ == "__main__":
    main()
