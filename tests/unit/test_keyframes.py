import errno
import hashlib
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from es_service import keyframes
from es_service.errors import KeyframeError
from es_service.types import Layout, TensorSpec

LAYOUT = Layout(
    (
        TensorSpec("emb", (4, 3), "matrix", 0, 0),
        TensorSpec("blocks.0.ln1", (3,), "vector", 1, 12),
        TensorSpec("blocks.0.att.Wf", (3, 3), "matrix", 2, 15),
    )
)
OTHER = Layout((TensorSpec("emb", (3, 4), "matrix", 0, 0), *LAYOUT.tensors[1:]))
SPEC_HASH = "ab" * 32


def digest(layout, parameters_P):
    return int.from_bytes(hashlib.sha256(parameters_P.tobytes()).digest()[:8], "little")


def parameters(seed):
    return np.random.default_rng(seed).integers(-128, 128, LAYOUT.size).astype(np.int8)


def save(directory, generation, seed=None):
    parameters_P = parameters(generation if seed is None else seed)
    return keyframes.save(directory, LAYOUT, parameters_P, generation, digest(LAYOUT, parameters_P), SPEC_HASH)


def load(path, layout=LAYOUT, spec_hash=SPEC_HASH):
    return keyframes.load(path, layout, spec_hash, digest)


def test_a_keyframe_comes_back(tmp_path):
    path = save(tmp_path / "keyframes", 12)
    assert path == tmp_path / "keyframes" / "12.safetensors"
    keyframe = load(path)
    assert np.array_equal(keyframe.parameters_P, parameters(12))
    assert (keyframe.generation, keyframe.digest) == (12, digest(LAYOUT, parameters(12)))
    assert keyframe.parameters_P.flags.writeable


def test_equal_keyframes_are_equal_files_in_canonical_order(tmp_path):
    first, second = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[-LAYOUT.size :] == parameters(3).tobytes()
    names = [tensor.name.encode() for tensor in LAYOUT.tensors]
    assert sorted(names, key=first.read_bytes().index) == names


def test_the_safetensors_library_reads_it(tmp_path):
    tensors = load_file(save(tmp_path, 3))
    assert tensors.keys() == {"emb", "blocks.0.ln1", "blocks.0.att.Wf"}
    assert all(np.array_equal(tensors[name], view) for name, view in LAYOUT.views(parameters(3)).items())


@given(st.binary(min_size=LAYOUT.size, max_size=LAYOUT.size), st.dictionaries(st.text(), st.text(), max_size=4))
@settings(deadline=None)
def test_models_round_trip(tmp_path_factory, data, metadata):
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    parameters_P = np.frombuffer(data, np.int8)
    keyframes.save_model(path, LAYOUT, parameters_P, metadata)
    tensors, read = keyframes.read_model(path)
    assert read == metadata
    assert np.array_equal(keyframes.flatten(path, LAYOUT, tensors), parameters_P)


def test_every_flipped_bit_is_found(tmp_path):
    path = save(tmp_path, 7)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with path.open("r+b") as file:
            file.write(damaged)
        with pytest.raises(KeyframeError, match=r"7\.safetensors"):
            load(path)


def test_truncation_at_every_byte_is_found(tmp_path):
    path = save(tmp_path, 7)
    for size in reversed(range(path.stat().st_size)):
        os.truncate(path, size)
        with pytest.raises(KeyframeError):
            load(path)


def test_a_keyframe_that_belongs_elsewhere_is_refused(tmp_path):
    path = save(tmp_path, 7)
    with pytest.raises(KeyframeError, match="spec_hash is 'abab"):
        load(path, spec_hash="cd" * 32)
    with pytest.raises(KeyframeError, match=r"emb is int8 \(4, 3\), not int8 \(3, 4\)"):
        load(path, OTHER)
    with pytest.raises(KeyframeError, match=r"tensor 'blocks\.0\.att\.Wf' is missing or is not part"):
        load(path, Layout(LAYOUT.tensors[:1]))
    with pytest.raises(KeyframeError, match="generation is '7', not '8'"):
        load(path.rename(tmp_path / "8.safetensors"))
    with pytest.raises(KeyframeError, match="named"):
        load((tmp_path / "8.safetensors").rename(tmp_path / "model.safetensors"))


def test_a_wrong_digest_or_dtype_is_refused(tmp_path):
    path = keyframes.save(tmp_path, LAYOUT, parameters(1), 1, 5, SPEC_HASH)
    with pytest.raises(KeyframeError, match="digest is '0000000000000005'"):
        load(path)
    save_file({name: view.astype(np.int16) for name, view in LAYOUT.views(parameters(1)).items()}, path)
    with pytest.raises(KeyframeError, match="int16"):
        load(path)


@pytest.mark.parametrize("bad", [np.zeros(LAYOUT.size), np.zeros(3, np.int8), np.zeros((1, LAYOUT.size), np.int8)])
def test_only_flat_int8_parameters_are_saved(tmp_path, bad):
    with pytest.raises(KeyframeError, match="not int8 or uint8"):
        keyframes.save_model(tmp_path / "model.safetensors", LAYOUT, bad, {})


def test_generations_are_listed_in_order_and_other_files_left_out(tmp_path):
    for generation in (100, 0, 20):
        save(tmp_path, generation)
    for name in ("007.safetensors", "5.safetensors.tmp", "x.safetensors", "-1.safetensors"):
        (tmp_path / name).touch()
    assert keyframes.list_generations(tmp_path) == [0, 20, 100]
    assert keyframes.list_generations(tmp_path / "missing") == []


def test_the_newest_valid_skips_and_reports_damage(tmp_path):
    for generation in (10, 20, 30, 40):
        path = save(tmp_path, generation)
    (tmp_path / "30.safetensors").write_bytes(path.read_bytes()[:50])
    keyframe, problems = keyframes.newest_valid(tmp_path, LAYOUT, SPEC_HASH, digest)
    assert (keyframe.generation, problems) == (40, [])
    keyframe, problems = keyframes.newest_valid(tmp_path, LAYOUT, SPEC_HASH, digest, up_to=39)
    assert keyframe.generation == 20
    assert len(problems) == 1
    assert "30.safetensors" in problems[0]
    assert keyframes.newest_valid(tmp_path, LAYOUT, SPEC_HASH, digest, up_to=5) == (None, [])
    assert keyframes.newest_valid(tmp_path / "missing", LAYOUT, SPEC_HASH, digest) == (None, [])


def test_prune_keeps_the_newest(tmp_path):
    for generation in (10, 20, 30):
        save(tmp_path, generation)
    assert keyframes.prune(tmp_path, 2) == [10]
    assert keyframes.prune(tmp_path, 2) == []
    assert keyframes.list_generations(tmp_path) == [20, 30]
    with pytest.raises(ValueError, match="keep 1"):
        keyframes.prune(tmp_path, 0)


def test_a_full_disk_leaves_the_old_keyframe(tmp_path, monkeypatch):
    path = save(tmp_path, 1)
    before = path.read_bytes()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyframeError, match=r"1\.safetensors: cannot be written: No space left"):
        save(tmp_path, 1, seed=2)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["1.safetensors"]


def test_a_removed_run_directory_is_not_made_again(tmp_path):
    with pytest.raises(KeyframeError, match="cannot be made: No such file"):
        save(tmp_path / "gone" / "keyframes", 1)


@pytest.mark.parametrize("content", [None, b"", b"not safetensors at all", bytes(64)])
def test_what_is_no_model_is_an_error(tmp_path, content):
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KeyframeError, match=r"model\.safetensors"):
        keyframes.read_model(path)
    with pytest.raises(KeyframeError):
        keyframes.read_model(tmp_path)
