"""From a config to what it stands for: the one place that maps each `kind` to its class."""

from __future__ import annotations

from es_service.algorithms.base import AbstractAlgorithm
from es_service.algorithms.eggroll import Eggroll
from es_service.config import RunConfig
from es_service.models import egg
from es_service.plan import Plan
from es_service.types import EggShape, Int8Array, Layout, Part

__all__ = ["algorithm_of", "initial_parameters", "initial_part", "layout_of", "plan_of", "run_id", "shape_of"]

_H100_WAVE = 132 * 64
"""Pairs with which D = 256 fills an H100, where no worker with a GPU has said what fills its own."""


def layout_of(config: RunConfig) -> Layout:
    """Tensors of the run's model in canonical order."""
    return egg.layout(config.model.width, config.model.layers)


def shape_of(config: RunConfig) -> EggShape:
    """Sizes that the forward kernels need."""
    return EggShape(config.model.width, config.model.layers, config.algorithm.sigma_shift)


def initial_parameters(config: RunConfig) -> Int8Array:
    """Flat (P,) int8 parameters of generation 0, a function of the seed."""
    return egg.initial_parameters(layout_of(config), config.seed)


def initial_part(config: RunConfig, part: Part) -> Int8Array:
    """The part of them that is these rows of one tensor, flat, made alone."""
    return egg.initial_part(part, config.seed)


def algorithm_of(config: RunConfig) -> AbstractAlgorithm:
    """The update rule of the run."""
    return Eggroll(config.algorithm, layout_of(config), config.population, config.seed)


def plan_of(config: RunConfig, wave_pairs: int = 0) -> Plan:
    """The cut of every generation into leases. `wave_pairs` is what the pool says of its workers' devices."""
    deployment = config.deployment
    return Plan.of(
        algorithm_of(config).units,
        deployment.lease_pairs,
        deployment.workers,
        wave=wave_pairs or (_H100_WAVE if deployment.worker.num_gpus else 0),
    )


def run_id(config: RunConfig) -> int:
    """First 8 bytes of the spec hash: messages carry it, so that a worker of another run is never believed."""
    return int(config.spec_hash[:16], 16)
