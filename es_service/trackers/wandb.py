"""Weights & Biases, where the user has installed and set it up; this project neither needs nor installs it."""

from __future__ import annotations

from es_service.config import RunConfig
from es_service.directory import RunDirectory
from es_service.errors import BackendError
from es_service.tail import Facts
from es_service.trackers.scalars import scalars

__all__ = ["WeightsAndBiases"]


class WeightsAndBiases:
    """Sends the spec, the figures and the samples of a run. Raises `BackendError` where wandb cannot be used.

    A resumed run goes on under the id of the first time, which is made of the run's name and spec.
    """

    name = "wandb"

    def __init__(self, config: RunConfig, directory: RunDirectory) -> None:
        try:
            import wandb
        except ImportError as error:
            raise BackendError(f"--wandb needs the package wandb ({error}): pip install wandb") from error
        try:
            self._run = wandb.init(
                project="es-service",
                name=directory.name,
                id=f"{directory.name}-{config.spec_hash[:12]}",
                resume="allow",
                config=config.spec,
                dir=str(directory.path),
            )
        except wandb.Error as error:
            raise BackendError(f"--wandb: {error}; try `wandb login`, or set WANDB_MODE=offline") from error
        self._run.define_metric("generation", hidden=True)
        self._run.define_metric("*", step_metric="generation")

    def take(self, facts: Facts) -> None:
        """See `Consumer`."""
        for row in facts.metrics:
            if values := dict(scalars(row)):
                self._run.log({"generation": row["generation"], **values})
        for row in facts.samples:
            self._run.log({"generation": row["generation"], "sample": str(row.get("text", ""))})

    def close(self) -> None:
        """See `Consumer`."""
        self._run.finish()
