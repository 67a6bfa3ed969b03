"""From a config to what it stands for: the one place that maps each `kind` to its class."""

from __future__ import annotations

from math import sqrt

from es_service.algorithms.base import AbstractAlgorithm
from es_service.algorithms.eggroll import Eggroll, EggrollConfig
from es_service.algorithms.noise_step import NoiseStep
from es_service.config import EggConfig, RunConfig
from es_service.data.examples import Examples, ImageExamples, TextExamples
from es_service.data.feeding import BatchConfig, RowsConfig
from es_service.data.images import format_of
from es_service.errors import ConfigError
from es_service.models import egg, ternary_net
from es_service.models.sampling import generate, generate_ternary
from es_service.models.ternary_net import Net, TernaryMlpConfig
from es_service.plan import Plan
from es_service.types import EggShape, Int8Array, Layout, Ops, Part, UInt8Array

__all__ = [
    "algorithm_of",
    "batch_of",
    "eggroll_of",
    "examples_of",
    "figure_of",
    "headline",
    "initial_parameters",
    "initial_part",
    "is_classifier",
    "is_egg",
    "layout_of",
    "net_of",
    "plan_of",
    "rows_of",
    "run_id",
    "scored",
    "shape_of",
    "training_score",
    "write_text",
]


_H100_WAVE = 132 * 64
"""Pairs with which D = 256 fills an H100, where no worker with a GPU has said what fills its own."""


def is_egg(config: RunConfig) -> bool:
    """Whether the model is EGG, and not a ternary network."""
    return isinstance(config.model, EggConfig)


def is_classifier(config: RunConfig) -> bool:
    """Whether the model predicts labels of images, and not text."""
    return isinstance(config.model, TernaryMlpConfig)


def net_of(config: RunConfig) -> Net:
    """The ternary network of the run."""
    assert not isinstance(config.model, EggConfig)
    if isinstance(config.model, TernaryMlpConfig):
        return Net.of_images(config.model, *format_of(config.data))
    return Net.of_text(config.model)


def layout_of(config: RunConfig) -> Layout:
    """Tensors of the run's model in canonical order."""
    if isinstance(config.model, EggConfig):
        return egg.layout(config.model.width, config.model.layers)
    return net_of(config).layout()


def shape_of(config: RunConfig) -> EggShape:
    """Sizes that the forward kernels of EGG need; raises `ConfigError` for other models."""
    if not isinstance(config.model, EggConfig) or not isinstance(config.algorithm, EggrollConfig):
        raise ConfigError(f"model.kind: this needs 'egg', and the run's model is {config.model.kind!r}")
    return EggShape(config.model.width, config.model.layers, config.algorithm.sigma_shift)


def eggroll_of(config: RunConfig) -> EggrollConfig:
    """The update rule's config of a run of EGGROLL."""
    assert isinstance(config.algorithm, EggrollConfig)
    return config.algorithm


def rows_of(config: RunConfig) -> RowsConfig:
    """How a run of EGGROLL feeds rows of text to its members."""
    assert not isinstance(config.feeding, BatchConfig)
    return config.feeding


def examples_of(config: RunConfig, split: UInt8Array) -> Examples:
    """One split of the data as examples for a ternary network; raises `DataError` if it cannot be that."""
    if is_classifier(config):
        features, classes, _ = format_of(config.data)
        return ImageExamples.of(split, features, classes)
    return TextExamples(split, net_of(config).context)


def batch_of(config: RunConfig) -> int:
    """Examples in a batch of noise_step."""
    assert isinstance(config.feeding, BatchConfig)
    return config.feeding.size


def initial_parameters(config: RunConfig) -> Int8Array:
    """Flat (P,) int8 parameters of generation 0, a function of the seed."""
    make = egg.initial_parameters if is_egg(config) else ternary_net.initial_parameters
    return make(layout_of(config), config.seed)


def initial_part(config: RunConfig, part: Part) -> Int8Array:
    """The part of them that is these rows of one tensor, flat, made alone."""
    make = egg.initial_part if is_egg(config) else ternary_net.initial_part
    return make(part, config.seed)


def algorithm_of(config: RunConfig) -> AbstractAlgorithm:
    """The update rule of the run."""
    layout = layout_of(config)
    if isinstance(config.algorithm, EggrollConfig):
        return Eggroll(config.algorithm, layout, config.population, config.seed)
    return NoiseStep(config.algorithm, layout, config.population, batch_of(config), config.seed)


def plan_of(config: RunConfig, wave_pairs: int = 0) -> Plan:
    """The cut of every generation into leases. `wave_pairs` is what the pool says of its workers' devices."""
    deployment, algorithm = config.deployment, algorithm_of(config)
    wave = wave_pairs or (_H100_WAVE if deployment.worker.num_gpus else 0)
    twice = deployment.workers * deployment.audit_share
    return Plan.of(
        algorithm.units,
        deployment.lease_pairs,
        deployment.workers,
        wave=wave if is_egg(config) else 0,
        tile=algorithm.tile,
        spare=int(twice + 3 * sqrt(twice)),  # workers for leases that are evaluated twice, up to three deviations
    )


def scored(config: RunConfig) -> int:
    """Bytes, or examples, that the score of one member sums over."""
    if isinstance(config.feeding, BatchConfig):
        return config.feeding.size
    return config.segment.bytes * config.feeding.passes(config.population)


def training_score(config: RunConfig, score_sum: int, score_min: int) -> float:
    """The score of a record that stands for the training loss: the mean of the perturbed members of EGG.

    For ternary networks it is that of the unperturbed model, which is the lowest score.
    """
    return score_sum / config.population if is_egg(config) else score_min


def figure_of(config: RunConfig) -> str:
    """What losses are in: a classifier predicts a label, one byte of data, where the others predict a byte of text."""
    return "bits/label" if is_classifier(config) else "bits/byte"


def headline(config: RunConfig) -> str:
    """The sizes of a run in one line."""
    model = config.model
    each = f"batches of {scored(config):,}" if not is_egg(config) else f"{config.segment.bytes} bytes a segment"
    return (
        f"{model.kind} {model.layers} layers, {model.width} wide, population {config.population:,}, {each}, "
        f"seed {config.seed}"
    )


def write_text(
    config: RunConfig, ops: Ops, parameters_P: Int8Array, prompt: bytes, count: int, temperature: float, seed: int
) -> bytes:
    """The `count` bytes that a language model writes after a prompt; raises `ConfigError` for a classifier."""
    if is_classifier(config):
        raise ConfigError("model.kind: 'ternary_mlp' reads images and writes no text; see `es-service eval`")
    values = (parameters_P, prompt, count, temperature, seed)
    return generate(ops, shape_of(config), *values) if is_egg(config) else generate_ternary(net_of(config), *values)


def run_id(config: RunConfig) -> int:
    """First 8 bytes of the spec hash: messages carry it, so that a worker of another run is never believed."""
    return int(config.spec_hash[:16], 16)
