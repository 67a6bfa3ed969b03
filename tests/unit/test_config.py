"""The config: what is refused says the field and the remedy; the spec has one hash."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from es_service.config import RunConfig, load, resolve
from es_service.directory import check_name
from es_service.errors import ConfigError
from es_service.noise import MAX_ENTRIES, MAX_GENERATIONS, MAX_TENSORS, MAX_UNITS
from es_service.problem import layout_of, run_id

BASE = {"data": {"kind": "stdlib"}, "feeding": {"kind": "members_per_sequence", "members": 8}}
NOISE_STEP = {"model": {"kind": "ternary_lm"}, "algorithm": {"kind": "noise_step"}, "feeding": {"kind": "batch"}}
FILES = {"kind": "files", "paths": ["text"]}


def refused(tree, overrides=()) -> str:
    with pytest.raises(ConfigError) as caught:
        resolve(tree, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"populaton": 4}, "populaton: no such field; did you mean 'population'?"),
        ({"model": {"widht": 32}}, "model.widht: no such field; did you mean 'width'?"),
        ({"deployment": {"worker": {"bakend": 1}}}, "deployment.worker.bakend: no such field; did you mean 'backend'?"),
        ({"feeding": {"kind": "members_per_sequence", "members": 8, "membres": 8}},
         "feeding.membres: no such field; did you mean 'members'?"),
        ({"data": FILES | {"patern": 1}}, "data.patern: no such field; did you mean 'patterns'?"),
        ({"xyzzy": 1}, "xyzzy: no such field; see docs/config.md for the fields"),
        ({"population": 41}, "population: 41 is odd, and members come in antithetic pairs: give 42"),
        ({"population": 42}, "feeding.members: 8 does not divide the population of 42; near it are 6 and 14"),
        ({"feeding": {"kind": "sequences_per_generation", "sequences": 3}},
         "feeding.sequences: 3 does not divide the 2048 pairs"),
        ({"feeding": {"kind": "members_per_sequence", "members": 7}},
         "feeding.members: Input should be a multiple of 2"),
        ({"feeding": {"members": 8}}, "feeding: Unable to extract tag using discriminator 'kind'"),
        ({"feeding": {"kind": "all"}}, "feeding: Input tag 'all' found using 'kind' does not match any of"),
        ({"model": {"width": 40}}, "model.width: Input should be a multiple of 16 (got 40)"),
        ({"model": {"width": 1040}}, "model.width: Input should be less than or equal to 1024 (got 1040)"),
        ({"model": {"layers": 0}}, "model.layers: Input should be greater than or equal to 1"),
        ({"population": "many"}, "population: Input should be a valid integer"),
        ({"population": 2.5}, "population: Input should be a valid integer"),
        ({"population": 0}, "population: Input should be greater than or equal to 2"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"seed": 1 << 64}, "seed: Input should be less than 18446744073709551616"),
        ({"algorithm": {"alpha": 0}}, "algorithm.alpha: Input should be greater than 0"),
        ({"algorithm": {"rank": 65}}, "algorithm.rank: Input should be less than or equal to 64"),
        ({"segment": {"burn_in": -1}}, "segment.burn_in: Input should be greater than or equal to 0"),
        ({"segment": {"bytes": 0}}, "segment.bytes: Input should be greater than or equal to 1"),
        ({"deployment": {"lease_pairs": 7}}, "deployment.lease_pairs: Input should be a multiple of 5 (got 7)"),
        ({"deployment": {"worker": {"backend": "tpu"}}}, "deployment.worker.backend: Input should be 'auto'"),
        ({"deployment": {"time_limit_seconds": 0}}, "deployment.time_limit_seconds: Input should be greater than 0"),
        ({"deployment": 3}, "deployment: Input should be a valid dictionary"),
        ({"data": {"kind": "files"}}, "data.paths: required and not given"),
        ({"data": FILES | {"content_hash": "abc"}}, "data.content_hash: String should match pattern"),
        ({"feeding": {"kind": "batch"}}, "feeding.kind: 'batch' goes with noise_step"),
        ({"data": {"kind": "digits"}}, "data.kind: 'digits' holds images; egg reads text"),
        ({"model": {"kind": "ternary_mlp"}}, "model.kind: 'ternary_mlp' is trained by algorithm.kind = \"noise_step\""),
        ({"model": {"kind": "rnn"}}, "model: Input tag 'rnn' found using 'kind' does not match any of"),
        ({"algorithm": {"kind": "noise_step"}}, "model.kind: 'egg' is trained by eggroll"),
        (NOISE_STEP | {"feeding": BASE["feeding"]}, "feeding.kind: 'members_per_sequence' goes with eggroll"),
        (NOISE_STEP | {"data": {"kind": "digits"}}, "model.kind: 'ternary_lm' cannot read data.kind = 'digits'"),
        (NOISE_STEP | {"model": {"kind": "ternary_mlp"}}, "model.kind: 'ternary_mlp' cannot read data.kind = 'stdlib'"),
        (NOISE_STEP | {"algorithm": {"kind": "noise_step", "objective": "errors"}},
         "algorithm: objective = 'errors' has no derivative"),
        (NOISE_STEP | {"algorithm": {"kind": "noise_step", "density": {"kind": "staged", "nonzeros": [4, 8]}}},
         "algorithm.density: 2 stages take 1 losses"),
        (NOISE_STEP | {"algorithm": {"kind": "noise_step", "density": {"kind": "constant", "nonzeros": 0}}},
         "algorithm.density.nonzeros: Input should be greater than or equal to 1"),
        (NOISE_STEP | {"population": 1 << 31}, "population: 2147483648 members are too many for a record"),
        ({"format_version": 2}, "format_version: Input should be 1 (got 2)"),
    ],
)  # fmt: skip
def test_what_is_refused_names_the_field(change, message):
    assert message in refused(BASE | change)


def test_a_field_that_is_missing_is_named():
    assert refused({"data": BASE["data"]}) == "feeding: required and not given"


def test_every_problem_is_told_at_once():
    assert len(refused(BASE | {"seed": -1, "population": 0, "colour": "red"}).splitlines()) == 3


# Limits of the noise addresses and of the journal.


@pytest.mark.parametrize(
    "change",
    [
        {"population": 2 * MAX_UNITS + 2},
        {"population": 2 * MAX_UNITS, "feeding": {"kind": "members_per_sequence", "members": 2 * MAX_UNITS}},
        {"deployment": {"generations": MAX_GENERATIONS + 1}},
        {"model": {"layers": 1 << 24}},
        {"seed": 1 << 64},
    ],
)
def test_limits_are_refused(change):
    refused(BASE | change)


def test_a_population_whose_record_the_journal_cannot_hold_is_refused():
    largest = 2_684_354_160
    feeding = {"kind": "members_per_sequence", "members": 2}
    assert resolve(BASE | {"population": largest, "feeding": feeding}).population == largest
    message = f"population: {largest + 2} members are too many for a record of the journal: at most {largest}"
    assert message in refused(BASE | {"population": largest + 2, "feeding": feeding})


def test_the_largest_model_stays_inside_the_addresses():
    layout = layout_of(resolve(BASE | {"model": {"width": 1024, "layers": 256}, "algorithm": {"rank": 64}}))
    assert len(layout.tensors) <= MAX_TENSORS
    assert max(64 * max(t.shape) for t in layout.tensors) <= MAX_ENTRIES


# --set


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("population=8192", "population", 8192),
        ("model.width = 32", "model.width", 32),
        ("algorithm.alpha=0.5", "algorithm.alpha", 0.5),
        ("algorithm.sign_noise=true", "algorithm.sign_noise", True),
        ("deployment.pool=local", "deployment.pool", "local"),
        ("deployment.pool='local'", "deployment.pool", "local"),
        ("deployment.worker.threads=3", "deployment.worker.threads", 3),
        ("feeding.members=16", "feeding.members", 16),
        ("data.max_bytes=200_000", "data.max_bytes", 200_000),
    ],
)
def test_overrides(override, field, value):
    found = resolve(BASE, [override])
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value


def test_overrides_apply_in_order_and_leave_the_rest_alone():
    tree = BASE | {"model": {"width": 32, "layers": 2}}
    config = resolve(tree, ["model.width=48", "model.width=64"])
    assert (config.model.width, config.model.layers) == (64, 2)
    assert tree["model"] == {"width": 32, "layers": 2}


@pytest.mark.parametrize("override", ["population", "=3", "a..b=1", ".a=1", ""])
def test_overrides_that_are_not_field_and_value(override):
    assert "write field=value, for example --set population=8192" in refused(BASE, [override])


def test_an_override_below_a_value_is_refused():
    message = refused(BASE | {"seed": 3}, ["seed.x=1"])
    assert message == "--set seed.x: seed is a single value and has no fields"
    assert "modle: no such field; did you mean 'model'?" in refused(BASE, ["modle.width=32"])


def test_an_override_of_the_wrong_type_names_the_field():
    assert "deployment.workers: Input should be a valid integer" in refused(BASE, ["deployment.workers=two"])


# Files.


def test_a_file_is_loaded_and_overridden(tmp_path):
    path = tmp_path / "my.toml"
    path.write_text('seed = 5\n[data]\nkind = "stdlib"\n[feeding]\nkind = "members_per_sequence"\nmembers = 8\n')
    assert load(str(path)).seed == 5
    assert load(str(path), ["seed=6"]).seed == 6


def test_a_preset_that_does_not_exist_gives_the_nearest():
    with pytest.raises(ConfigError, match=r"no preset or file 'egg-laptp': did you mean 'egg-laptop'"):
        load("egg-laptp")
    with pytest.raises(ConfigError, match=r"no preset or file '/nowhere/x.toml': presets are .*egg-smoke"):
        load("/nowhere/x.toml")


@pytest.mark.parametrize("text", [b"seed = ", b"\xff\xfe", b"[model\nwidth = 3"])
def test_a_file_that_is_not_toml(tmp_path, text):
    path = tmp_path / "bad.toml"
    path.write_bytes(text)
    with pytest.raises(ConfigError, match=r"bad.toml: not valid TOML"):
        load(str(path))


# The spec.


def test_configs_are_frozen():
    config = resolve(BASE)
    parts = (config, "seed"), (config.model, "width"), (config.deployment, "workers"), (config.data, "kind")
    for part, field in parts:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)


def test_the_spec_has_everything_but_the_deployment():
    assert set(resolve(BASE).spec) == set(RunConfig.model_fields) - {"deployment"}


def test_the_hash_of_the_spec_is_known():
    """Journals and keyframes hold it: if this changes, so must the format version."""
    config = resolve(BASE)
    assert config.spec_hash == "2fb3aa9fc62ab6f870e75b03e809f784aeebbb420093b604ec48466ba554c06a"
    assert run_id(config) == int(config.spec_hash[:16], 16)


def test_the_deployment_is_not_in_the_hash_and_everything_else_is():
    config = resolve(BASE)
    for override in (
        "deployment.workers=7", "deployment.lease_pairs=40", "deployment.generations=9", "deployment.runs_dir=a",
        "deployment.worker.backend=reference", "deployment.max_lag=0", "deployment.keyframe_every=3",
    ):  # fmt: skip
        assert resolve(BASE, [override]).spec_hash == config.spec_hash, override
    overrides = (
        "seed=2", "population=4112", "model.width=32", "model.layers=2", "algorithm.rank=2", "algorithm.sigma_shift=3",
        "algorithm.alpha=3.0", "algorithm.decay=10", "algorithm.sign_noise=true", "algorithm.noise_reuse=0",
        "data.max_bytes=7", "segment.bytes=50", "segment.burn_in=1", "feeding.members=16",
        f"data.content_hash='{64 * 'a'}'",
    )  # fmt: skip
    hashes = {config.spec_hash, *(resolve(BASE, [override]).spec_hash for override in overrides)}
    assert len(hashes) == len(overrides) + 1


def test_a_config_comes_back_from_its_json():
    config = resolve(BASE | {"data": FILES}, ["deployment.time_limit_seconds=2.5"])
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert again.spec_hash == config.spec_hash


# Names.


@pytest.mark.parametrize("name", ["a", "egg-laptop-1", "A.b_c-9", "9", "x" * 63])
def test_names(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "/etc", "a/b", "a\\b", ".hidden", "-x", "a b", "a\n", "ä", "x" * 64, "a\0b", "~"]
)
def test_names_that_could_escape_the_directory_are_refused(name):
    with pytest.raises(ConfigError, match=r"^name: "):
        check_name(name)


@pytest.mark.parametrize("field", ["lease_timeout_seconds", "heartbeat_timeout_seconds", "time_limit_seconds"])
@pytest.mark.parametrize("value", ["inf", "nan"])
def test_what_json_cannot_hold_is_refused(field, value):
    with pytest.raises(ConfigError, match=field):
        load("egg-smoke", [f"deployment.{field}={value}"])


def test_one_set_sets_one_field():
    with pytest.raises(ConfigError, match="one field at a time"):
        load("egg-smoke", ["seed=1\npopulation=3"])
