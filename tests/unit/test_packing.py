"""Ternary models in packed files: there and back, and what is no such file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from es_service import keyframes
from es_service.errors import KeyframeError, MessageError
from es_service.packing import PACKINGS, pack, unpack
from es_service.types import Layout, TensorSpec

LAYOUT = Layout((TensorSpec("w", (3, 7), "matrix", 0, 0), TensorSpec("b", (4,), "vector", 1, 21)))
PATH = Path("m.safetensors")
MODELS = st.lists(st.integers(-1, 1), min_size=LAYOUT.size, max_size=LAYOUT.size).map(lambda v: np.array(v, np.int8))


@pytest.mark.parametrize("packing", PACKINGS)
@given(parameters_P=MODELS)
def test_packed_models_come_back(packing, parameters_P):
    layout, packed = pack(LAYOUT, parameters_P, packing)
    assert layout.size == packed.size == {"trits": 5 + 1, "2bit": 6 + 1}[packing]
    found = unpack(PATH, LAYOUT, layout.views(packed), packing)
    assert np.array_equal(keyframes.flatten(PATH, LAYOUT, found), parameters_P)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packed_file_comes_back(packing, tmp_path):
    parameters_P = np.random.default_rng(1).integers(-1, 2, LAYOUT.size).astype(np.int8)
    path = tmp_path / "m.safetensors"
    keyframes.save_model(path, *pack(LAYOUT, parameters_P, packing), {"packing": packing})
    tensors, metadata = keyframes.read_model(path)
    assert np.array_equal(keyframes.flatten(path, LAYOUT, unpack(path, LAYOUT, tensors, **metadata)), parameters_P)
    with pytest.raises(KeyframeError, match="w is uint8"):
        keyframes.flatten(path, LAYOUT, tensors)


def test_what_is_not_ternary_cannot_be_packed():
    with pytest.raises(MessageError, match="-1, 0 or"):
        pack(LAYOUT, np.full(LAYOUT.size, 2, np.int8), "trits")


@pytest.mark.parametrize(
    ("name", "data", "packing", "message"),
    [
        ("w", b"\0" * 6, "4bit", "packing is '4bit', not one of trits, 2bit"),
        ("w", b"\0" * 5, "2bit", "m.safetensors: w: 5 bytes cannot hold exactly 21"),
        ("w", b"\3" * 6, "2bit", "m.safetensors: w: two bits"),
        ("b", b"\xff", "trits", "m.safetensors: b: byte 0"),
    ],
)
def test_bytes_that_no_packing_makes_are_refused(name, data, packing, message):
    with pytest.raises(KeyframeError, match=message):
        unpack(PATH, LAYOUT, {name: np.frombuffer(data, np.uint8)}, packing)


def test_tensors_that_are_missing_or_too_many_are_left_to_the_reader():
    found = unpack(PATH, LAYOUT, {"x": np.zeros(3, np.uint8)}, "trits")
    with pytest.raises(KeyframeError, match="missing or is not part"):
        keyframes.flatten(PATH, LAYOUT, found)
