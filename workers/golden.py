"""Golden vectors: recorded inputs and outputs of EGG, and their comparison with one backend.

The `.npz` format is that of tests/golden: per-layer tensors stacked over L, rank-1 noise, vector noise as products.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any, cast
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from es_service import votes
from es_service.errors import DataError
from es_service.models import egg
from es_service.types import EggShape, Int8Array, Layout, Noise, Ops

__all__ = ["Difference", "Golden", "compare", "read"]

_VECTOR_FILES = {"ln1", "ln2", "ln_out"}


@dataclass(frozen=True)
class Golden:
    """One file. Arrays are as recorded; `parameters_P` and `updated_P` are flat in canonical order."""

    shape: EggShape
    layout: Layout
    threshold: int
    sign_noise: bool
    arrays: dict[str, npt.NDArray[Any]]
    parameters_P: Int8Array
    updated_P: Int8Array
    noise: Noise


@dataclass(frozen=True)
class Difference:
    """The first place where a backend and the record differ."""

    what: str
    index: tuple[int, ...]
    expected: int
    got: int

    def __str__(self) -> str:
        return f"{self.what}{list(self.index)}: recorded {self.expected}, got {self.got}"


def _recorded_name(name: str) -> tuple[str, int | None]:
    """`blocks.3.att.Wf` -> (`blocks.att.Wf`, 3); norms and MLP matrices carry `.weight` in the files."""
    layer: int | None = None
    parts = name.split(".")
    if parts[0] == "blocks":
        layer = int(parts.pop(1))
    if parts[-1] in _VECTOR_FILES or parts[-1].isdigit():
        parts.append("weight")
    return ".".join(parts), layer


def _tensor(arrays: dict[str, npt.NDArray[Any]], prefix: str, name: str, suffix: str = "") -> npt.NDArray[Any]:
    recorded, layer = _recorded_name(name)
    array = arrays[f"{prefix}/{recorded}{suffix}"]
    if layer is None:
        return array
    return cast("npt.NDArray[Any]", array[layer] if prefix != "noise" else array[:, layer])


def _flat(arrays: dict[str, npt.NDArray[Any]], prefix: str, layout: Layout) -> Int8Array:
    return np.concatenate([_tensor(arrays, prefix, t.name).reshape(-1) for t in layout.tensors]).astype(np.int8)


def _noise(arrays: dict[str, npt.NDArray[Any]], layout: Layout) -> Noise:
    factors: list[npt.NDArray[Any]] = []
    products: list[npt.NDArray[Any]] = []
    for tensor in layout.tensors:
        if tensor.kind == "matrix":
            factors += [_tensor(arrays, "noise", tensor.name, end) for end in ("/A", "/B")]
        else:
            products.append(_tensor(arrays, "noise", tensor.name, "/product"))
    factors_QF = np.ascontiguousarray(np.concatenate(factors, axis=1), np.int8)
    return Noise(1, factors_QF, np.ascontiguousarray(np.concatenate(products, axis=1), np.int16))


def read(path: Path) -> Golden:
    """Read one `.npz` file; raises `DataError` if it is not in the golden format."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays: dict[str, npt.NDArray[Any]] = dict(file)
        config = [int(value) for value in arrays["config"]]
        width, layers, _, _, sigma_shift, _, _, use_clt, _, threshold = config
        layout = egg.layout(width, layers)
        if (arrays["tokens"][0::2] != arrays["tokens"][1::2]).any():
            raise ValueError("the members of a pair read different rows")
        noise = _noise(arrays, layout)
        if noise.factors_QF.min() < -127:
            raise ValueError("a noise factor is -128, and the opposite of that is no int8")
        return Golden(
            shape=EggShape(width, layers, sigma_shift),
            layout=layout,
            threshold=threshold,
            sign_noise=not use_clt,
            arrays=arrays,
            parameters_P=_flat(arrays, "param", layout),
            updated_P=_flat(arrays, "updated", layout),
            noise=noise,
        )
    except (OSError, EOFError, LookupError, ValueError, TypeError, BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a golden .npz file ({error}); see tests/golden for the format") from error


def _results(golden: Golden, ops: Ops) -> Iterator[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]:
    """(name, recorded, computed) of every output in the file."""
    arrays, noise = golden.arrays, golden.noise
    pairs = len(noise.factors_QF)
    tokens_MW = np.ascontiguousarray(arrays["tokens"], np.uint8)
    model = ops.prepare(golden.shape, golden.parameters_P)
    starts = np.array(arrays["state_in"], np.int8, order="C")

    state = starts.copy()
    logits = ops.logits(model, np.ascontiguousarray(tokens_MW[:, 0]), state, noise)
    used = tokens_MW[:, 0] != 0
    yield "first_logits", arrays["first_logits"][used], logits[used]

    state = starts.copy()
    row_of_pair_Q = np.arange(pairs, dtype=np.int32)
    scores = ops.member_scores(model, noise, np.ascontiguousarray(tokens_MW[0::2]), row_of_pair_Q, 0, state)
    yield "scores", arrays["scores"], scores
    yield "state_out", arrays["state_out"], state

    state = starts.copy()
    yield "eval_scores", arrays["eval_scores"], ops.scores(model, tokens_MW, 0, state)
    yield "eval_state_out", arrays["eval_state_out"], state

    votes_Q = votes.from_scores(scores)
    yield "fitness", arrays["fitness"], votes_Q
    sums_P = np.zeros(golden.layout.size, np.int32)
    ops.accumulate(golden.layout, noise, votes_Q, golden.sign_noise, sums_P)
    updated_P = golden.parameters_P.copy()
    ops.apply(updated_P, sums_P, golden.threshold * isqrt(pairs) * (1 if golden.sign_noise else 256))
    expected, got = golden.layout.views(golden.updated_P), golden.layout.views(updated_P)
    for name in expected:
        yield f"updated/{name}", expected[name], got[name]


def compare(golden: Golden, ops: Ops) -> Difference | None:
    """The first difference between the record and what `ops` computes, or None where all is exact."""
    for what, expected, got in _results(golden, ops):
        places = np.argwhere(expected != got)
        if len(places):
            index = tuple(int(i) for i in places[0])
            return Difference(what, index, int(expected[index]), int(got[index]))
    return None
