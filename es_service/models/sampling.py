"""Text from a model, one byte at a time, with its recurrent state carried along.

A logit is an int8 in 1/16 bit: byte b has probability proportional to 2^(logit[b] / (16 temperature)). The uniform
number of the byte at position i is bytes 0 .. 7, little-endian, of noise stream 7 (sampling), tensor 0, unit i,
epoch 0, as a fraction of 2^64. Weights are integers and the choice is exact integer arithmetic, so that every backend
gives the same text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from math import isfinite, log

import numpy as np

from es_service import noise
from es_service.errors import ConfigError
from es_service.models.ternary_net import Net, logits
from es_service.types import EggShape, Int8Array, Ops

__all__ = ["MAX_BYTES", "generate", "generate_ternary", "visible"]

MAX_BYTES = noise.MAX_UNITS
_WEIGHT_BITS = 40
_DRAWS_AT_ONCE = 1024

_SHOWN_AS_THEY_ARE = "\n\t"
_CONTROL_PICTURES = 0x2400
_HIDDEN = ("C", "Zl", "Zp")
"""Unicode categories that could disturb a terminal: controls, formats such as text direction, line separators."""


def generate(
    ops: Ops, shape: EggShape, parameters_P: Int8Array, prompt: bytes, count: int, temperature: float, seed: int
) -> bytes:
    """The `count` bytes that follow a document's start and `prompt`.

    Temperature 0 takes the likeliest byte, the lowest of equals. Raises `ConfigError` on values that make no sense.
    """
    _check(count, temperature, seed)
    model = ops.prepare(shape, parameters_P)
    state_SLD = np.zeros((1, shape.layers, shape.width), np.int8)
    weights = _weights(temperature) if temperature > 0 else None
    text = bytearray()
    for token in b"\0" + prompt:
        logits_SV = ops.logits(model, np.array([token], np.uint8), state_SLD)
    for _, draw in zip(range(count), _draws(seed), strict=False):
        if text:
            logits_SV = ops.logits(model, np.array([text[-1]], np.uint8), state_SLD)
        text.append(_choose(logits_SV[0], weights, draw))
    return bytes(text)


def generate_ternary(
    net: Net, parameters_P: Int8Array, prompt: bytes, count: int, temperature: float, seed: int
) -> bytes:
    """The same from a ternary language model, whose float logits are rounded to 1/16 bit first."""
    _check(count, temperature, seed)
    weights = _weights(temperature) if temperature > 0 else None
    text = bytearray(bytes(net.context) + prompt)
    for _, draw in zip(range(count), _draws(seed), strict=False):
        inputs_BC = np.frombuffer(text, np.uint8)[None, -net.context :].copy()
        logits_V = logits(net, parameters_P, inputs_BC)[0] * (16 / log(2))
        below_V = np.rint(logits_V - logits_V.max()) + 127
        text.append(_choose(np.maximum(below_V, -128).astype(np.int8), weights, draw))
    return bytes(text[len(text) - count :]) if count else b""


def _check(count: int, temperature: float, seed: int) -> None:
    if not 0 <= count <= MAX_BYTES:
        raise ConfigError(f"--bytes: {count} is outside 0 .. 2^32")
    if not isfinite(temperature) or temperature < 0:
        raise ConfigError(f"--temperature: {temperature} must be 0 (the likeliest byte) or a positive number")
    if not 0 <= seed < 1 << 64:
        raise ConfigError(f"--seed: {seed} is outside 0 .. 2^64 - 1")


def _weights(temperature: float) -> list[int]:
    """Weight of a logit that is 0 .. 255 below the highest, in units of 2^-40 of the highest's."""
    return [int(2.0 ** (_WEIGHT_BITS - below / (16 * temperature))) for below in range(256)]


def _draws(seed: int) -> Iterator[int]:
    """Unsigned 64-bit integers, one for each position."""
    for first in range(0, MAX_BYTES, _DRAWS_AT_ONCE):
        units = np.arange(first, first + _DRAWS_AT_ONCE)
        drawn = noise.uniform_bytes(seed, 0, noise.Stream.SAMPLING, 0, units, 8)
        yield from (int.from_bytes(row.tobytes(), "little") for row in drawn)


def _choose(logits_V: Int8Array, weights: list[int] | None, draw: int) -> int:
    if weights is None:
        return int(logits_V.argmax())
    values = logits_V.tolist()
    highest = max(values)
    byte_weights = [weights[highest - value] for value in values]
    left = draw * sum(byte_weights) >> 64
    for byte, weight in enumerate(byte_weights):
        left -= weight
        if left < 0:
            return byte
    raise AssertionError("a draw is below the sum of the weights")


def visible(text: bytes) -> str:
    """UTF-8 with what cannot be shown replaced: control characters by their pictures, the rest by U+FFFD."""
    return "".join(_visible(character) for character in text.decode("utf-8", "replace"))


def _visible(character: str) -> str:
    if character in _SHOWN_AS_THEY_ARE or not unicodedata.category(character).startswith(_HIDDEN):
        return character
    code = ord(character)
    if code < 0x20:
        return chr(_CONTROL_PICTURES + code)
    return "\N{SYMBOL FOR DELETE}" if code == 0x7F else "\N{REPLACEMENT CHARACTER}"
