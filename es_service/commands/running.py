"""What `train` and `resume` share: flags, the run itself, and the report at its end."""

from __future__ import annotations

import signal
import sys
from argparse import Namespace
from collections.abc import Callable
from types import FrameType

from es_service.commands.watching import watching
from es_service.config import RunConfig, resolve
from es_service.directory import RunDirectory
from es_service.driver import follow
from es_service.errors import ConfigError
from es_service.launch import launch
from es_service.problem import headline, is_classifier
from es_service.storage import fetch, open_storage

__all__ = ["begun", "carry_out", "with_flags"]

_SAMPLE_BYTES = 240
_SAMPLE_TEMPERATURE = 0.7


def with_flags(config: RunConfig, arguments: Namespace) -> RunConfig:
    """The config with the flags that are short for fields of the deployment."""
    overrides = []
    if arguments.workers is not None:
        overrides.append(f"deployment.workers={arguments.workers}")
    if arguments.detach:
        overrides.append("deployment.detach=true")
    config = resolve(config.model_dump(mode="json"), overrides)
    if config.deployment.detach and (not arguments.address or config.deployment.pool == "local"):
        raise ConfigError(
            "deployment.detach: a run on this machine's own Ray ends with this command; give the --address of a cluster"
        )
    runs_dir = (arguments.runs_dir or config.deployment.runs_dir).absolute()
    return config.with_deployment(runs_dir=runs_dir)


def begun(config: RunConfig, directory: RunDirectory) -> bool:
    """Whether the run has begun, here or in its storage, from where it is then fetched."""
    if directory.journal_path.exists():
        return True
    storage = open_storage(config, directory.name, resume=True)
    if storage is None or not storage.exists():
        return False
    print(fetch(config.deployment.storage_url, directory.name, directory))
    return True


def carry_out(config: RunConfig, directory: RunDirectory, resume: bool, arguments: Namespace) -> int:
    """Launch, follow, report; the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    print(_headline(config, directory), flush=True)
    with watching(config, directory, arguments, resume) as announce:
        return _carry_out(config, directory, resume, arguments.address, announce)


def _carry_out(
    config: RunConfig, directory: RunDirectory, resume: bool, address: str | None, announce: Callable[[], None]
) -> int:
    again = (
        f"go on with: es-service resume {directory.name}{_runs_dir_flag(config)}"  # Ray may remove a job's directory
    )
    with launch(config, directory, resume, address) as (handle, about):
        signal.signal(signal.SIGTERM, _interrupt)  # Ray installs its own
        print(f"kernels: {about}", flush=True)
        announce()
        if config.deployment.detach:
            print(f"detached; watch it with: es-service status {directory.name}")
            return 0
        finish = follow(handle)
    print(f"stopped at generation {finish.generation}: {finish.reason}", flush=True)
    if directory.journal_path.exists():
        _report(config, directory)
    else:
        print(f"the files of the run are on the head's node, in {directory.path}")
    if finish.reason != "goal":
        print(again)
    return 130 if finish.reason == "interrupted" else 0


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature of a handler
    raise KeyboardInterrupt


def _headline(config: RunConfig, directory: RunDirectory) -> str:
    return f"{directory.name}: {headline(config)}, in {directory.path}"


def _runs_dir_flag(config: RunConfig) -> str:
    runs_dir = config.deployment.runs_dir
    return "" if runs_dir.name == "runs" and runs_dir.parent == runs_dir.cwd() else f" --runs-dir {runs_dir}"


def _report(config: RunConfig, directory: RunDirectory) -> None:
    """Held-out figures beside the baselines, the plot, and of a language model a sample of text."""
    from es_service.commands import eval as evaluate
    from es_service.commands import plot, sample

    evaluate.report_run(directory, config)
    try:
        print(f"loss curve: {plot.draw_run(directory, config)}")
    except ImportError:
        print("loss curve: pip install 'es-service[plot]', then es-service plot", file=sys.stderr)
    if is_classifier(config):
        return
    print(f"sample after 'def ', temperature {_SAMPLE_TEMPERATURE}:")
    print(sample.sample_run(directory, config, b"def ", _SAMPLE_BYTES, _SAMPLE_TEMPERATURE))
