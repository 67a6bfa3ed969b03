"""The command line. Parsing imports nothing heavy, so that help is instant; each command is a module of `commands`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from es_service import __version__

__all__ = ["EXIT_CODES", "build_parser", "main"]

EXIT_CODES = """exit codes:
  0    done
  1    a comparison found a difference (verify, replay --verify)
  2    bad usage, config, data or backend; nothing was started
  3    a run, journal, keyframe or steps file cannot be used, or the run failed
  130  interrupted; a run that was training has stopped at its last commit and can be resumed"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="es-service",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Distributed population training on Ray: seeds down, votes up, the journal is the run.",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"es-service {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_training, _ending, _watching, _models, _steps, _sampling, _machine):
        add(commands)
    return parser


Commands = argparse._SubParsersAction  # argparse has no public name for it


def _command(
    commands: Commands[argparse.ArgumentParser], name: str, what: str, examples: str
) -> argparse.ArgumentParser:
    lines = "\n".join(f"  es-service {line}" for line in examples.split("\n"))
    parser = commands.add_parser(
        name,
        help=what,
        description=f"{what[0].upper()}{what[1:]}.",
        epilog=f"examples:\n{lines}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(module=f"es_service.commands.{name.replace('-', '_')}")
    return parser


def _with_run(parser: argparse.ArgumentParser, what: str = "name of the run") -> None:
    parser.add_argument("name", metavar="NAME", help=what)
    _with_runs_dir(parser)


def _with_runs_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs-dir", type=Path, metavar="DIR", help="directory of all runs (default: runs)")


def _with_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", default="auto", help="kernels: auto, cuda, native, reference or cuda-emulated (default: auto)"
    )


def _with_deployment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="overrides",
        help="change a config field, for example --set deployment.generations=50; may be repeated",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="number of workers")
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        default=_ray_address(),
        help="existing Ray cluster, or auto (default: $RAY_ADDRESS, as in a Ray job; else start a local one)",
    )
    parser.add_argument("--detach", action="store_true", help="let the run outlive this command; needs --address")
    parser.add_argument(
        "--dashboard",
        action=argparse.BooleanOptionalAction,
        help="serve a live page of the run on 127.0.0.1 (default: on a terminal)",
    )
    _with_port(parser, "--dashboard-port")
    parser.add_argument("--tensorboard", action="store_true", help="write TensorBoard events into the run's directory")
    parser.add_argument("--wandb", action="store_true", help="send figures to Weights & Biases, if it is installed")


def _with_port(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name, type=int, metavar="PORT", help="port of the page (default: 8270, or any that is free)")


def _ray_address() -> str | None:
    """RAY_ADDRESS, unless it is the URL that the `ray job` commands may find there."""
    address = os.environ.get("RAY_ADDRESS")
    return None if not address or address.startswith("http") else address


def _with_from(parser: argparse.ArgumentParser, required: bool) -> None:
    parser.add_argument(
        "--from",
        required=required,
        dest="storage_url",
        metavar="URL",
        help="deployment.storage_url of the run: rebuild its directory from there",
    )


def _training(commands: Commands[argparse.ArgumentParser]) -> None:
    train = _command(
        commands,
        "train",
        "train a preset or config file",
        "train egg-laptop\ntrain egg-smoke --name try1 --set seed=7 --set deployment.pool=local\n"
        "train my.toml --address 127.0.0.1:6379 --workers 8",
    )
    train.add_argument("source", metavar="PRESET|FILE.toml", help="see `es-service presets`")
    train.add_argument("--name", help="name of the run (default: PRESET-n)")
    train.add_argument(
        "--or-resume",
        action="store_true",
        help="go on with the run if it has begun, here or in deployment.storage_url; needs --name",
    )
    _with_deployment(train)
    _with_runs_dir(train)

    resume = _command(
        commands,
        "resume",
        "go on with a run from its journal",
        "resume egg-laptop-1\nresume egg-laptop-1 --set deployment.generations=400\n"
        "resume egg-laptop-1 --from s3://bucket/runs",
    )
    _with_run(resume)
    _with_from(resume, required=False)
    _with_deployment(resume)


def _with_head_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--address",
        metavar="HOST:PORT",
        default=_ray_address(),
        help="Ray cluster that the run is on, if not this machine (default: $RAY_ADDRESS)",
    )


def _ending(commands: Commands[argparse.ArgumentParser]) -> None:
    stop = _command(
        commands,
        "stop",
        "stop a run at its last commit",
        "stop egg-laptop-1\nstop egg-minipile-1 --address 10.0.0.4:6379",
    )
    _with_run(stop)
    _with_head_address(stop)

    scale = _command(
        commands,
        "scale",
        "change the number of workers of a run under way",
        "scale egg-laptop-1 --workers 2\nscale egg-minipile-1 --workers 64 --address 10.0.0.4:6379",
    )
    _with_run(scale)
    scale.add_argument("--workers", type=int, required=True, metavar="N", help="workers to keep from now on; 0: wait")
    _with_head_address(scale)

    fetch = _command(
        commands,
        "fetch",
        "rebuild a run's directory from its storage",
        "fetch egg-minipile-1 --from s3://bucket/runs",
    )
    _with_run(fetch)
    _with_from(fetch, required=True)


def _watching(commands: Commands[argparse.ArgumentParser]) -> None:
    status = _command(
        commands, "status", "show one run, or list all", "status\nstatus egg-laptop-1 --json\nstatus --address auto"
    )
    status.add_argument("name", nargs="?", metavar="NAME", help="name of the run (default: all runs)")
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument("--address", metavar="HOST:PORT", help="ask the heads of the runs under way on a Ray cluster")
    _with_runs_dir(status)

    dashboard = _command(
        commands,
        "dashboard",
        "serve a live page of a run on this machine",
        "dashboard egg-laptop-1\ndashboard egg-laptop-1 --port 9000",
    )
    _with_run(dashboard)
    _with_port(dashboard, "--port")

    journal = _command(commands, "journal", "show what a run's journal holds", "journal egg-laptop-1 --json")
    _with_run(journal)
    journal.add_argument("--json", action="store_true", help="print JSON")

    replay = _command(
        commands,
        "replay",
        "rebuild parameters from votes alone",
        "replay egg-laptop-1 --verify\nreplay egg-laptop-1 --to 100",
    )
    _with_run(replay)
    replay.add_argument("--to", type=int, metavar="G", help="generation to rebuild (default: the last)")
    replay.add_argument("--verify", action="store_true", help="start at generation 0 and check every keyframe")
    _with_backend(replay)

    plot = _command(commands, "plot", "draw the loss curve of a run as a PNG", "plot egg-laptop-1 --out loss.png")
    _with_run(plot)
    plot.add_argument("--out", type=Path, metavar="FILE.png", help="where to (default: loss.png in the run)")


_RUN_OR_FILE = "name of a run, or a .safetensors file made by export"


def _models(commands: Commands[argparse.ArgumentParser]) -> None:
    export = _command(
        commands,
        "export",
        "write the model of a run as safetensors",
        "export egg-laptop-1 --out model.safetensors --generation 100",
    )
    _with_run(export)
    export.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="file to write")
    export.add_argument("--generation", type=int, metavar="G", help="generation (default: the last)")
    export.add_argument("--pack", choices=["trits", "2bit"], help="ternary models: five weights to a byte, or four")
    _with_backend(export)

    evaluate = _command(
        commands, "eval", "held-out bits/byte of a model", "eval egg-laptop-1\neval model.safetensors --data notes.txt"
    )
    _with_run(evaluate, _RUN_OR_FILE)
    evaluate.add_argument(
        "--data",
        action="extend",
        nargs="+",
        type=Path,
        metavar="PATH",
        dest="paths",
        help="files or folders to evaluate whole (default: the held-out text of the run)",
    )
    evaluate.add_argument("--generation", type=int, metavar="G", help="generation of the run (default: the last)")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    _with_backend(evaluate)


def _steps(commands: Commands[argparse.ArgumentParser]) -> None:
    steps = _command(
        commands,
        "steps",
        "write a run as its list of steps: spec, thresholds and coded votes",
        "steps egg-laptop-1 --out model.steps\nsteps egg-laptop-1 --out model.steps --without-scores",
    )
    _with_run(steps)
    steps.add_argument("--out", type=Path, required=True, metavar="FILE.steps", help="file to write")
    steps.add_argument("--generation", type=int, metavar="G", help="write the steps up to this one (default: the last)")
    steps.add_argument(
        "--without-scores", action="store_true", help="leave out the score sums, without which no run can be made of it"
    )
    _with_backend(steps)

    rebuild = _command(
        commands,
        "from-steps",
        "rebuild a model, a part of one, or a run from a steps file",
        "from-steps model.steps --out model.safetensors --generation 100\n"
        "from-steps model.steps --out rows.safetensors --tensor head --rows 0:16\n"
        "from-steps model.steps --resume-as again --generation 100",
    )
    rebuild.add_argument("file", type=Path, metavar="FILE.steps", help="a file made by `es-service steps`")
    goal = rebuild.add_mutually_exclusive_group(required=True)
    goal.add_argument("--out", type=Path, metavar="FILE.safetensors", help="file to write")
    goal.add_argument("--resume-as", metavar="NAME", help="make a run of this name, for `es-service resume`")
    rebuild.add_argument("--generation", type=int, metavar="G", help="generation (default: the last)")
    rebuild.add_argument("--tensor", metavar="T", help="rebuild this tensor alone, with --out")
    rebuild.add_argument("--rows", metavar="A:B", help="of that tensor, rebuild rows A to B - 1 alone")
    _with_runs_dir(rebuild)
    _with_backend(rebuild)


def _sampling(commands: Commands[argparse.ArgumentParser]) -> None:
    sample = _command(
        commands,
        "sample",
        "generate text",
        "sample egg-laptop-1 --prompt 'def ' --bytes 200\n"
        "sample model.safetensors --prompt 'import ' --bytes 80 --temperature 0.7 --seed 3",
    )
    _with_run(sample, _RUN_OR_FILE)
    sample.add_argument("--prompt", default="", help="text to continue (default: the start of a document)")
    sample.add_argument("--bytes", type=int, default=200, metavar="N", help="bytes to generate (default: 200)")
    sample.add_argument("--temperature", type=float, default=1.0, help="0 takes the likeliest byte (default: 1.0)")
    sample.add_argument("--seed", type=int, default=1, help="seed of the sampling (default: 1)")
    _with_backend(sample)


def _machine(commands: Commands[argparse.ArgumentParser]) -> None:
    verify = _command(
        commands,
        "verify",
        "compare this machine's kernels with recorded vectors",
        "verify\nverify --backend reference recorded/*.npz",
    )
    verify.add_argument("files", nargs="*", type=Path, metavar="FILE.npz", help="default: the vectors shipped")
    _with_backend(verify)
    _command(commands, "presets", "list the presets", "presets")
    doctor = _command(commands, "doctor", "show what this machine has and what will be used", "doctor")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    _with_runs_dir(doctor)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    from es_service.errors import BackendError, ConfigError, DataError, ServiceError

    try:
        code: int = importlib.import_module(arguments.module).run(arguments)
        return code
    except (ConfigError, DataError, BackendError) as error:
        return _fail(error, 2)
    except ServiceError as error:
        return _fail(error, 3)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _fail(error: Exception, code: int) -> int:
    print(f"error: {error}", file=sys.stderr)
    return code
