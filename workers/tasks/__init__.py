"""Fitness problems, one file each; which of them a run has."""

from __future__ import annotations

import importlib

from es_service.config import RunConfig
from es_service.errors import BackendError
from es_service.problem import is_egg
from es_service.types import Ops, UInt8Array
from workers.tasks.base import Task

__all__ = ["check", "task_of"]


def check(config: RunConfig) -> None:
    """Raise `BackendError` if the run's task needs a package that this Python does not have."""
    if is_egg(config):
        return
    try:
        importlib.import_module("torch")
    except ImportError as error:
        raise BackendError(
            f"algorithm.kind: noise_step judges perturbations with PyTorch, which cannot be imported ({error}); "
            "run: pip install 'es-service[torch]'"
        ) from error


def task_of(config: RunConfig, train: UInt8Array, ops: Ops) -> Task:
    """The task of a run on its training split; raises `BackendError` as `check` does."""
    from workers.tasks.egg_lm import EggLanguageModel
    from workers.tasks.ternary import TernaryTask

    check(config)
    return EggLanguageModel(config, train, ops) if is_egg(config) else TernaryTask(config, train, ops)
