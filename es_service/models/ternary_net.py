"""Ternary networks: a classifier of images and a byte-level language model. Weights in {-1, 0, +1}, float activations.

Both are multilayer perceptrons: linear maps with bias, between them LayerNorm without parameters and ReLU. The
language model reads the embeddings of the last C bytes. NumPy here is the definition; `workers.tasks` has the same in
PyTorch, where derivatives are needed.

Suffixes: B examples, I inputs of a linear map, O its outputs, C bytes of context, V classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from es_service import noise
from es_service.types import Int8Array, Layout, Part, TensorKind, TensorSpec

__all__ = [
    "EPSILON",
    "Judged",
    "Net",
    "TernaryLmConfig",
    "TernaryMlpConfig",
    "initial_parameters",
    "initial_part",
    "judge",
    "logits",
]

EPSILON = 1e-5
"""Added to the variance by LayerNorm."""
_BYTES = 256
_ROWS_AT_ONCE = 4096

FloatArray = npt.NDArray[np.float32]


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TernaryMlpConfig(_Config):
    """Classifier of the images of `data`: linear maps with ternary weights and biases, LayerNorm, ReLU."""

    kind: Literal["ternary_mlp"] = "ternary_mlp"
    width: int = Field(256, ge=1, le=8192)
    """Hidden width."""
    layers: int = Field(2, ge=1, le=64)
    """Hidden layers."""


class TernaryLmConfig(_Config):
    """Byte-level language model: ternary embeddings of the last bytes, then as the classifier."""

    kind: Literal["ternary_lm"] = "ternary_lm"
    context: int = Field(8, ge=1, le=4096)
    """Bytes that it sees; byte 0 stands for those before the start of a row."""
    embedding: int = Field(32, ge=1, le=4096)
    """Values that a byte becomes."""
    width: int = Field(256, ge=1, le=8192)
    """Hidden width."""
    layers: int = Field(2, ge=1, le=64)
    """Hidden layers."""


@dataclass(frozen=True, slots=True)
class Net:
    """Sizes of a network. `sizes` goes from inputs to classes.

    `embedding` is 0 for the classifier, whose inputs are uint8 and divided by `white`; else inputs are `context` bytes.
    `scale` multiplies the logits.
    """

    sizes: tuple[int, ...]
    scale: float = 1.0
    white: int = 1
    context: int = 0
    embedding: int = 0

    @classmethod
    def of_images(cls, config: TernaryMlpConfig, features: int, classes: int, white: int) -> Net:
        """The classifier."""
        return cls((features, *[config.width] * config.layers, classes), white=white)

    @classmethod
    def of_text(cls, config: TernaryLmConfig) -> Net:
        """The language model; logits are divided by the root of the width, as those of ternary sums are large."""
        inputs = config.context * config.embedding
        sizes = (inputs, *[config.width] * config.layers, _BYTES)
        return cls(sizes, config.width**-0.5, context=config.context, embedding=config.embedding)

    @property
    def maps(self) -> int:
        """Number of linear maps."""
        return len(self.sizes) - 1

    def layout(self) -> Layout:
        """Tensors in canonical order: `emb` if there is one, then `layers.N.weight` and `layers.N.bias`."""
        entries: list[tuple[str, tuple[int, ...], TensorKind]] = []
        if self.embedding:
            entries.append(("emb", (_BYTES, self.embedding), "matrix"))
        for n, (inputs, outputs) in enumerate(zip(self.sizes, self.sizes[1:], strict=False)):
            entries += [(f"layers.{n}.weight", (outputs, inputs), "matrix"), (f"layers.{n}.bias", (outputs,), "vector")]
        tensors, offset = [], 0
        for index, (name, shape, kind) in enumerate(entries):
            tensors.append(TensorSpec(name, shape, kind, index, offset))
            offset += tensors[-1].size
        return Layout(tuple(tensors))

    def flops(self) -> int:
        """Operations F of one example's forward pass: two for each weight of a linear map."""
        return 2 * sum(a * b for a, b in zip(self.sizes, self.sizes[1:], strict=False))


def initial_parameters(layout: Layout, seed: int) -> Int8Array:
    """(P,) int8: -1, 0 and +1 with 85, 86 and 85 of 256 bytes of stream 0, biases too."""
    return np.concatenate([initial_part(Part(t, 0, t.shape[0]), seed) for t in layout.tensors])


def initial_part(part: Part, seed: int) -> Int8Array:
    """The same for some rows of a tensor alone: (part.size,) int8."""
    place = (seed, 0, noise.Stream.INITIAL, part.tensor.index, 0)
    drawn_N = noise.uniform_bytes(*place, part.size, part.start)[0]
    values_N: Int8Array = ((drawn_N >= 171).astype(np.int8) - (drawn_N < 85)).astype(np.int8)
    return values_N


def logits(net: Net, parameters_P: Int8Array, inputs_BI: npt.NDArray[np.uint8]) -> FloatArray:
    """(B, V) float32 of uint8 inputs (B, features) or (B, C)."""
    tensors = {name: view.astype(np.float32) for name, view in net.layout().views(parameters_P).items()}
    if net.embedding:
        h_BI: FloatArray = tensors["emb"][inputs_BI].reshape(len(inputs_BI), -1)
    else:
        h_BI = inputs_BI.astype(np.float32) / np.float32(net.white)
    for n in range(net.maps):
        h_BI = h_BI @ tensors[f"layers.{n}.weight"].T + tensors[f"layers.{n}.bias"]
        if n < net.maps - 1:
            h_BI = np.maximum(_layer_norm(h_BI), 0)
    return h_BI * np.float32(net.scale)


def _layer_norm(x_BI: FloatArray) -> FloatArray:
    centred_BI = x_BI - x_BI.mean(axis=1, keepdims=True)
    variance_B1 = np.square(centred_BI).mean(axis=1, keepdims=True)
    normed_BI: FloatArray = centred_BI / np.sqrt(variance_B1 + np.float32(EPSILON))
    return normed_BI


@dataclass(frozen=True, slots=True)
class Judged:
    """Sums over examples: cross-entropy in bits, and right predictions."""

    bits: float
    right: int
    examples: int


def judge(net: Net, parameters_P: Int8Array, inputs_BI: npt.NDArray[np.uint8], targets_B: npt.NDArray[Any]) -> Judged:
    """How well the network predicts the targets."""
    bits, right = 0.0, 0
    for first in range(0, len(inputs_BI), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        z_BV = logits(net, parameters_P, inputs_BI[part]).astype(np.float64)
        z_BV -= z_BV.max(axis=1, keepdims=True)
        target_B = np.take_along_axis(z_BV, targets_B[part].astype(np.intp)[:, None], axis=1)[:, 0]
        bits += float((np.log(np.exp(z_BV).sum(axis=1)) - target_B).sum()) / log(2)
        right += int((z_BV.argmax(axis=1) == targets_B[part]).sum())
    return Judged(bits, right, len(inputs_BI))
