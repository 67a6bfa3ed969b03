"""The config of a run: TOML into a frozen pydantic tree. Light: no Ray, no backend.

Two halves. The spec (everything but `deployment`) is what identifies the run: it stands in the journal's header and in
every hash. The deployment (workers, backend, lease size, storage, when to stop) may change at every resume.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from es_service.algorithms.eggroll import EggrollConfig
from es_service.algorithms.noise_step import NoiseStepConfig
from es_service.data.config import DataConfig, DigitsDataConfig, MnistDataConfig
from es_service.data.feeding import BatchConfig, FeedingConfig
from es_service.data.segments import check_feeding
from es_service.errors import ConfigError
from es_service.journal import COMMIT_FIELDS, MAX_PAYLOAD_BYTES, canonical_json
from es_service.models.ternary_net import TernaryLmConfig, TernaryMlpConfig
from es_service.noise import MAX_GENERATIONS
from es_service.votes import VOTES_PER_BYTE

__all__ = ["DeploymentConfig", "EggConfig", "RunConfig", "explain", "load", "preset_names", "resolve"]

PRESETS = Path(__file__).parent / "runs"
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_MAX_PAIRS = VOTES_PER_BYTE * (MAX_PAYLOAD_BYTES - COMMIT_FIELDS.itemsize)


Backend = Literal["auto", "reference", "native", "cuda", "cuda-emulated"]


class _Config(BaseModel):
    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,  # JSON has no infinity
    )


class EggConfig(_Config):
    """EGG, the int8 recurrent byte-level language model."""

    kind: Literal["egg"] = "egg"
    width: int = Field(256, ge=16, le=1024, multiple_of=16)
    """Hidden width D."""
    layers: int = Field(6, ge=1, le=256)
    """Layers L."""


ModelConfig = Annotated[EggConfig | TernaryMlpConfig | TernaryLmConfig, Field(discriminator="kind")]
AlgorithmConfig = Annotated[EggrollConfig | NoiseStepConfig, Field(discriminator="kind")]
_USUAL_KINDS = {"model": "egg", "algorithm": "eggroll"}


class SegmentConfig(_Config):
    """The text that a member of EGGROLL is scored on in one generation."""

    bytes: int = Field(100, ge=1, le=65536)
    """Scored bytes T."""
    burn_in: int = Field(0, ge=0, le=65536)
    """Bytes run before the scored ones to warm the recurrent state, not scored."""


class WorkerConfig(_Config):
    """What one worker is and asks of Ray."""

    backend: Backend = "auto"
    """Kernels; `auto` takes cuda, then native, then reference, and says which and why. `cuda-emulated` runs the CUDA
    kernels on the CPU, for tests."""
    threads: int = Field(0, ge=0, le=1024)
    """CPU threads of its kernels; 0: all cores of its node, shared by the workers placed there."""
    num_cpus: float | None = Field(None, ge=0)
    """CPUs that its actor reserves; unset: as many as threads."""
    num_gpus: float = Field(0, ge=0, le=1)
    """GPUs that its actor reserves."""

    @property
    def resources(self) -> dict[str, float]:
        """What its actor asks of Ray, once its threads are known."""
        return {"CPU": self.threads if self.num_cpus is None else self.num_cpus, "GPU": self.num_gpus}


class DeploymentConfig(_Config):
    """Where and how the run is carried out. Nothing here changes a bit of its result."""

    runs_dir: Path = Path("runs")
    """Directory that holds one directory for each run, on the head's node."""
    generations: int = Field(200, ge=1, le=MAX_GENERATIONS)
    """Generation at which the run is finished."""
    time_limit_seconds: float | None = Field(None, gt=0)
    """Stop at the first commit after this many seconds; resume goes on."""
    pool: Literal["ray", "local"] = "ray"
    """`ray`: worker actors. `local`: evaluators inside this process, without Ray."""
    workers: int = Field(0, ge=0, le=100_000)
    """Number of workers; 0: one on each node, or one for each share of a GPU that `worker.num_gpus` asks for."""
    worker: WorkerConfig = WorkerConfig()
    """Each worker."""
    head_num_cpus: float = Field(0, ge=0)
    """CPUs that the head reserves."""
    aggregator_backend: Backend = "auto"
    """Kernels with which the head applies updates to the canonical parameters."""
    lease_pairs: int = Field(0, ge=0, multiple_of=5)
    """Pairs in a lease; 0: two leases for one worker, four for each of several, at most 8,240 pairs each; for workers
    with a GPU what fills the first worker's once, such as 8,445 at D = 256 on an H100, or an equal share if less."""
    lease_timeout_seconds: float = Field(600.0, gt=0)
    """Longest wait for a lease before it is also given to another worker."""
    audit_share: float = Field(0.01, ge=0, le=1)
    """Share of leases, drawn in secret, that two workers evaluate; a worker found wrong gets no more leases."""
    max_lag: int = Field(2, ge=0, le=64)
    """Generations by which the canonical parameters may be behind the commits."""
    sliced_updates: Literal["auto", "always", "never"] = "auto"
    """`never`: every replica makes each update whole, from the votes, and trusts nobody. `always`: idle workers make
    slices of it, each slice two of them, the head one of them too, and all replicas apply the joined step. `auto`:
    that is tried where a whole one takes the head long, and kept where it is quicker."""
    keyframe_every: int = Field(100, ge=1)
    """Generations between keyframes."""
    keep_keyframes: int = Field(0, ge=0)
    """Newest keyframes to keep; 0: all."""
    storage_url: str = Field("", pattern=r"^([a-z0-9+]+://.+)?$")
    """Where the run's files are also kept, below its name: `s3://bucket/runs`, `gs://bucket/runs`,
    `file:///mnt/nfs/runs`, or what else fsspec knows. Empty: nowhere."""
    storage_every_seconds: float = Field(30.0, gt=0)
    """Seconds between uploads to `storage_url`: a lost disk costs as much, and the upload under way."""
    evaluate_every: int = Field(20, ge=1)
    """Generations between held-out evaluations; the first and the last are always evaluated."""
    evaluation_rows: int = Field(1024, ge=1, le=1 << 20)
    """Rows of held-out bytes in an evaluation."""
    evaluation_bytes: int = Field(100, ge=1, le=65536)
    """Scored bytes in each of those rows; the state is zero at the start of a row."""
    metrics_host: str = Field("127.0.0.1", min_length=1)
    """Address on which the head serves /metrics; `0.0.0.0` for a Prometheus elsewhere in a private network."""
    metrics_port: int = Field(0, ge=-1, le=65535)
    """Port of /metrics; 0: any free one; -1: none."""
    metrics_targets_dir: Path = Path("/tmp/es-service/targets")
    """Directory in which the head names that port to a Prometheus on its node, while it runs (file_sd)."""
    sample_bytes: int = Field(160, ge=0, le=4096)
    """Bytes of text that the model writes at each held-out evaluation, from the start of a document; 0: none."""
    heartbeat_timeout_seconds: float = Field(60.0, ge=2)
    """The head stops at a commit when its driver has been silent for this long, unless detached."""
    detach: bool = False
    """Let the run outlive its driver."""


class RunConfig(_Config):
    """One run. Everything but `deployment` is its spec."""

    format_version: Literal[1] = 1
    """Version of the arithmetic and of the formats on disk."""
    seed: int = Field(1, ge=0, lt=1 << 64)
    """Seed of initial values and noise."""
    population: int = Field(4096, ge=2)
    """Members N of a generation. With `eggroll` even: members 2q and 2q + 1 are a pair, which has one vote. With
    `noise_step` the number of perturbations S, each of which has a vote."""
    model: ModelConfig = EggConfig()
    """The model; without `kind` it is `egg`."""
    algorithm: AlgorithmConfig = EggrollConfig()
    """The update rule; without `kind` it is `eggroll`, which trains `egg`. Ternary models take `noise_step`."""
    data: DataConfig
    """The text, or the images of a classifier."""
    segment: SegmentConfig = SegmentConfig()
    """How much of the text a member is scored on; `eggroll` only."""
    feeding: FeedingConfig
    """Which members read what: rows of text with `eggroll`, a batch with `noise_step`."""
    deployment: DeploymentConfig = DeploymentConfig()
    """Where and how it runs; not part of the spec."""

    @model_validator(mode="before")
    @classmethod
    def _kinds_have_defaults(cls, tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        given = {name: tree[name] for name in _USUAL_KINDS if isinstance(tree.get(name), dict)}
        return tree | {name: {"kind": _USUAL_KINDS[name]} | value for name, value in given.items()}

    @model_validator(mode="after")
    def _parts_fit(self) -> RunConfig:
        if isinstance(self.algorithm, EggrollConfig):
            _check_eggroll(self)
        else:
            _check_noise_step(self)
        return self

    def with_deployment(self, **changes: Any) -> RunConfig:
        """The same run with other fields of its deployment; the values are not validated again."""
        return self.model_copy(update={"deployment": self.deployment.model_copy(update=changes)})

    @property
    def spec(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return self.model_dump(mode="json", exclude={"deployment"})

    @property
    def spec_hash(self) -> str:
        """SHA-256 of the canonical JSON of the spec, hex."""
        return hashlib.sha256(canonical_json(self.spec)).hexdigest()


def _check_eggroll(config: RunConfig) -> None:
    """Raise `ValueError` unless these parts can be a run of EGGROLL."""
    if not isinstance(config.model, EggConfig):
        raise ValueError(f'model.kind: {config.model.kind!r} is trained by algorithm.kind = "noise_step"')
    if isinstance(config.feeding, BatchConfig):
        raise ValueError("feeding.kind: 'batch' goes with noise_step; use 'members_per_sequence'")
    if isinstance(config.data, DigitsDataConfig | MnistDataConfig):
        raise ValueError(f"data.kind: {config.data.kind!r} holds images; egg reads text, such as 'stdlib'")
    value = config.population
    if value % 2:
        raise ValueError(f"population: {value} is odd, and members come in antithetic pairs: give {value + 1}")
    _check_votes(value, 2)
    check_feeding(config.feeding, value)


def _check_noise_step(config: RunConfig) -> None:
    """Raise `ValueError` unless these parts can be a run of noise_step."""
    if isinstance(config.model, EggConfig):
        raise ValueError("model.kind: 'egg' is trained by eggroll; noise_step trains 'ternary_mlp' and 'ternary_lm'")
    if not isinstance(config.feeding, BatchConfig):
        raise ValueError(f"feeding.kind: {config.feeding.kind!r} goes with eggroll; use 'batch'")
    if isinstance(config.data, DigitsDataConfig | MnistDataConfig) != isinstance(config.model, TernaryMlpConfig):
        raise ValueError(
            f"model.kind: {config.model.kind!r} cannot read data.kind = {config.data.kind!r}; "
            "'ternary_mlp' takes 'digits' or 'mnist', 'ternary_lm' takes text"
        )
    _check_votes(config.population, 1)


def _check_votes(population: int, members: int) -> None:
    """`members` share a vote."""
    if population // members > _MAX_PAIRS:
        most = members * _MAX_PAIRS
        raise ValueError(f"population: {population} members are too many for a record of the journal: at most {most}")


def preset_names() -> list[str]:
    """Names of the presets shipped in `es_service/runs`."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def load(source: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The config of a preset or TOML file with `a.b=value` overrides applied; raises `ConfigError`."""
    path = PRESETS / f"{source}.toml" if re.fullmatch(NAME_PATTERN, source) else Path(source)
    if not path.is_file():
        path = Path(source)
    if not path.is_file():
        near = difflib.get_close_matches(source, preset_names(), 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"no preset or file {source!r}: {hint}presets are {', '.join(preset_names())}")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return resolve(tree, overrides)


def resolve(tree: dict[str, Any], overrides: Iterable[str] = ()) -> RunConfig:
    """A validated config from nested values and `a.b=value` overrides; raises `ConfigError`."""
    for override in overrides:
        tree = _with_override(tree, override)
    try:
        return TypeAdapter(RunConfig).validate_python(tree)
    except ValidationError as error:
        raise ConfigError(explain(error)) from error


def explain(error: ValidationError) -> str:
    """A line for each field that is wrong."""
    return "\n".join(_explain(detail) for detail in error.errors())


def _with_override(tree: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {override!r}: write field=value, for example --set population=8192")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {"value": text}
    if len(parsed) != 1:
        raise ConfigError(f"--set {override!r}: one field at a time; repeat --set for more")
    value = parsed["value"]
    return _replaced(tree, path, value, key)


def _replaced(tree: dict[str, Any], path: list[str], value: Any, key: str) -> dict[str, Any]:
    if len(path) == 1:
        return tree | {path[0]: value}
    child = tree.get(path[0], {})
    if not isinstance(child, dict):
        raise ConfigError(f"--set {key}: {path[0]} is a single value and has no fields")
    return tree | {path[0]: _replaced(child, path[1:], value, key)}


def _explain(detail: Any) -> str:
    """One line for one pydantic error: the field, what is wrong, what to write instead."""
    location = _without_kinds(part for part in detail["loc"] if not str(part).startswith("function-"))
    field = ".".join(str(part) for part in location) or "config"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), sorted(_all_fields(RunConfig)), 1)
        hint = f"did you mean {near[0]!r}?" if near else "see docs/config.md for the fields"
        return f"{field}: no such field; {hint}"
    if detail["type"] == "missing":
        return f"{field}: required and not given"
    message = detail["msg"].removeprefix("Value error, ")
    given = "" if detail["type"] == "value_error" else f" (got {detail['input']!r})"
    return f"{field}: {message}{given}" if location else message


def _without_kinds(location: Iterable[Any]) -> list[Any]:
    """Pydantic names the variant after a field that has several; it is not part of the field's name."""
    names, parts, models = [], iter(location), [RunConfig]
    for part in parts:
        names.append(part)
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        models = [model for field in fields for model in (field.annotation, *get_args(field.annotation))]
        models = [model for model in models if isinstance(model, type) and issubclass(model, BaseModel)]
        if any(field.discriminator for field in fields):
            next(parts, None)
    return names


def _all_fields(model: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for name, field in model.model_fields.items():
        names.add(name)
        for part in (field.annotation, *get_args(field.annotation)):
            if isinstance(part, type) and issubclass(part, BaseModel):
                names |= _all_fields(part)
    return names
