"""Configs of data and feeding: variants, bounds, and errors that name the field."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from es_service.data import (
    DataConfig,
    FeedingConfig,
    FilesDataConfig,
    HuggingFaceDataConfig,
    MembersPerSequenceConfig,
    SequencesPerGenerationConfig,
    StdlibDataConfig,
    check_feeding,
)
from es_service.data.feeding import divisors
from es_service.errors import ConfigError

DATA: TypeAdapter[Any] = TypeAdapter(DataConfig)
FEEDING: TypeAdapter[Any] = TypeAdapter(FeedingConfig)
MODELS = [
    StdlibDataConfig,
    FilesDataConfig,
    HuggingFaceDataConfig,
    MembersPerSequenceConfig,
    SequencesPerGenerationConfig,
]


@pytest.mark.parametrize(
    ("tree", "variant"),
    [
        ({"kind": "stdlib"}, StdlibDataConfig),
        ({"kind": "files", "paths": ["a", "b"], "held_out_paths": ["c"]}, FilesDataConfig),
        ({"kind": "huggingface", "dataset": "JeanKaddour/minipile"}, HuggingFaceDataConfig),
    ],
)
def test_data_variants_round_trip_through_json(tree: dict[str, Any], variant: type[BaseModel]) -> None:
    config = DATA.validate_python(tree)
    assert type(config) is variant
    assert config.held_out_percent == 5.0
    assert config.content_hash is None
    assert DATA.validate_json(DATA.dump_json(config)) == config


@pytest.mark.parametrize(
    "tree",
    [
        {"kind": "web"},
        {"kind": "stdlib", "paths": ["a"]},
        {"kind": "stdlib", "held_out_percent": 0},
        {"kind": "stdlib", "held_out_percent": 100},
        {"kind": "stdlib", "content_hash": "ABC"},
        {"kind": "stdlib", "content_hash": "../" + "a" * 61},
        {"kind": "stdlib", "max_bytes": 0},
        {"kind": "files"},
        {"kind": "files", "paths": []},
        {"kind": "files", "paths": ["a"], "patterns": []},
        {"kind": "files", "paths": ["a"], "patterns": ["/etc/*"]},
        {"kind": "files", "paths": ["a"], "patterns": ["../*"]},
        {"kind": "files", "paths": ["a"], "held_out_paths": []},
        {"kind": "huggingface", "dataset": ""},
    ],
)
def test_bad_data_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        DATA.validate_python(tree)


@pytest.mark.parametrize("tree", [{"kind": "x"}, {"kind": "members_per_sequence", "members": 3}])
def test_bad_feeding_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        FEEDING.validate_python(tree)


@pytest.mark.parametrize("model", MODELS)
def test_configs_are_frozen_closed_and_every_field_is_described(model: type[BaseModel]) -> None:
    assert model.model_config["frozen"] is True
    assert model.model_config["extra"] == "forbid"
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("feeding", "population", "rows", "passes"),
    [
        (MembersPerSequenceConfig(members=128), 4096, 32, 1),
        (MembersPerSequenceConfig(members=6), 6, 1, 1),
        (SequencesPerGenerationConfig(sequences=16), 1_048_576, 16, 1),
        (SequencesPerGenerationConfig(sequences=320), 640, 320, 1),
        (SequencesPerGenerationConfig(sequences=960), 640, 960, 3),
    ],
)
def test_feedings_that_fit(feeding: FeedingConfig, population: int, rows: int, passes: int) -> None:
    check_feeding(feeding, population)
    assert (feeding.num_rows(population), feeding.passes(population)) == (rows, passes)


@pytest.mark.parametrize(
    ("feeding", "population", "message"),
    [
        (MembersPerSequenceConfig(members=100), 640, r"feeding\.members: 100 .* are 80 and 128"),
        (MembersPerSequenceConfig(members=1000), 640, r"feeding\.members: 1000 .* are 640"),
        (SequencesPerGenerationConfig(sequences=3), 640, r"feeding\.sequences: 3 .* are 2 and 4"),
        (SequencesPerGenerationConfig(sequences=700), 640, r"feeding\.sequences: 700 .* are 640 and 960"),
        (SequencesPerGenerationConfig(sequences=1), 3, r"population: 3 must be even"),
        (MembersPerSequenceConfig(members=2), 0, r"population: 0 must be even"),
    ],
)
def test_feedings_that_do_not_fit_name_the_field_and_what_would(
    feeding: FeedingConfig, population: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_feeding(feeding, population)


@pytest.mark.parametrize("total", [1, 2, 36, 97, 640])
def test_divisors(total: int) -> None:
    assert divisors(total) == [d for d in range(1, total + 1) if total % d == 0]


def test_data_imports_no_ray_no_torch_no_workers() -> None:
    heavy = "{'ray', 'torch', 'cupy', 'workers', 'datasets'}"
    code = f"import sys, es_service.data; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
