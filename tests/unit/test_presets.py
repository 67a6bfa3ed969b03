"""Every config shipped is loaded, and is what its name says."""

from __future__ import annotations

import pytest

from es_service.config import PRESETS, load, preset_names
from es_service.data.config import HuggingFaceDataConfig, StdlibDataConfig
from es_service.problem import algorithm_of, layout_of, plan_of


def test_the_presets_are_those_of_the_issue():
    assert set(preset_names()) >= {"egg-laptop", "egg-smoke", "egg-minipile", "egg-minipile-v2"}
    assert {path.suffix for path in PRESETS.iterdir() if path.is_file()} <= {".toml", ".py"}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_loads_and_can_be_set_up(name):
    config = load(name)
    assert load(str(PRESETS / f"{name}.toml")) == config
    plan = plan_of(config)
    members = 2 if config.algorithm.kind == "eggroll" else 1
    assert plan.units == algorithm_of(config).units == config.population // members
    assert layout_of(config).size > 0
    assert load(name, ["deployment.pool=local"]).spec_hash == config.spec_hash


def test_noise_step_has_the_published_settings():
    config = load("noise-step-mnist")
    assert layout_of(config).size == 269_322
    assert (config.population, config.feeding.size) == (128, 1024)
    density = config.algorithm.density
    assert (density.nonzeros, density.below) == ((16, 4, 1), (2.0, 1.0))


def test_smoke_packs_its_votes_without_padding():
    config = load("egg-smoke")
    assert config.population >= 640
    assert config.population // 2 % 5 == 0
    assert 8 * (config.population // 2 / 5) / config.population <= 0.81


def test_minipile_has_the_settings_of_the_paper():
    for name, population in (("egg-minipile", 262_144), ("egg-minipile-v2", 1_048_576)):
        config = load(name)
        assert (config.model.layers, config.model.width) == (6, 256)
        assert (config.population, config.segment.bytes) == (population, 100)
        assert isinstance(config.data, HuggingFaceDataConfig)
        assert config.data.dataset == "JeanKaddour/minipile"
    assert load("egg-minipile-v2").feeding.num_rows(1_048_576) == 16


def test_the_laptop_reads_the_standard_library():
    assert isinstance(load("egg-laptop").data, StdlibDataConfig)
    assert isinstance(load("egg-smoke").data, StdlibDataConfig)
