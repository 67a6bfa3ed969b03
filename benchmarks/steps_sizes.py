"""Sizes of a model as steps beside its int8 parameters, packed trits and safetensors, for real runs.

    python -m benchmarks.steps_sizes egg-smoke egg-laptop:20 runs/egg-laptop-1

Trains each preset in this process, to the generation after the colon or to its own end; what contains a `/` is the
directory of a run. Prints Markdown. Sizes are bytes, entropy and coded votes are bits a vote.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from es_service.coding import entropy_bits
from es_service.commands.sources import load_model, open_run, save_export
from es_service.commands.steps import write_steps
from es_service.config import load
from es_service.directory import RunDirectory
from es_service.launch import launch
from es_service.votes import packed_size
from es_service.wiring import kernels

COLUMNS = (
    "run", "generations", "votes", "zero votes", "entropy", "coded", "steps file", "without scores",
    "journal", "int8", "5 trits a byte", "safetensors",
)  # fmt: skip


def train(source: str, runs_dir: Path) -> RunDirectory:
    """A finished run of PRESET or PRESET:GENERATIONS; the run itself, if it is the path of one."""
    if "/" in source:
        return RunDirectory(Path(source).parent, Path(source).name)
    preset, _, generations = source.partition(":")
    config = load(preset, ["deployment.pool=local"]).with_deployment(runs_dir=runs_dir)
    if generations:
        config = config.with_deployment(generations=int(generations))
    directory = RunDirectory(runs_dir, preset)
    with launch(config, directory, resume=False) as (handle, _):
        while handle.wait(0.2) is None:
            handle.heartbeat()
    return directory


def row(directory: RunDirectory, scratch: Path) -> list[str]:
    """One line of the table."""
    ops, _ = kernels("auto")
    opened = open_run(directory)
    full = write_steps(scratch / "full.steps", opened, ops)
    bare = write_steps(scratch / "bare.steps", opened, ops, scores=False)
    votes_N = np.concatenate([step.votes_Q for step in full.between(0, full.header.generations)])
    counts = np.bincount(votes_N % 3, minlength=3).tolist()
    arguments = argparse.Namespace(name=directory.name, runs_dir=directory.path.parent)
    model = load_model(arguments, ops)
    save_export(scratch / "model.safetensors", model)
    ternary = int(np.abs(model.parameters_P).max()) <= 1
    return [
        directory.name,
        f"{full.header.generations:,}",
        f"{votes_N.size:,}",
        f"{counts[0] / votes_N.size:.1%}",
        f"{entropy_bits((counts[0], counts[1], counts[2])):.4f}",
        f"{8 * sum(block.code_bytes for block in full.blocks) / votes_N.size:.4f}",
        f"{full.bytes:,}",
        f"{bare.bytes:,}",
        f"{opened.contents.valid_bytes:,}",
        f"{model.parameters_P.size:,}",
        f"{packed_size(model.parameters_P.size):,}" if ternary else "not ternary",
        f"{(scratch / 'model.safetensors').stat().st_size:,}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar="PRESET[:GENERATIONS]|DIRECTORY")
    arguments = parser.parse_args()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    with tempfile.TemporaryDirectory(prefix="steps-sizes") as scratch:
        for source in arguments.sources:
            print(f"| {' | '.join(row(train(source, Path(scratch)), Path(scratch)))} |", flush=True)


if __name__ == "__main__":
    main()
