"""Ternary models in packed files: five weights to a byte (1.6 bits each) or four (2 bits, read with shifts alone).

Every tensor of such a file is the bytes (n,) uint8 of its weights in order, packed by `es_service.votes`; the shapes
are those of the model. The file's metadata says `packing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service import votes
from es_service.errors import KeyframeError, MessageError
from es_service.types import Int8Array, Layout, TensorSpec, UInt8Array

__all__ = ["PACKINGS", "pack", "unpack"]

PACKINGS: Mapping[str, tuple[Callable[[Int8Array], bytes], Callable[[bytes, int], Int8Array]]] = {
    "trits": (votes.pack, votes.unpack),
    "2bit": (votes.pack_2bit, votes.unpack_2bit),
}
"""Names that metadata may have, with the conversion there and back."""


def pack(layout: Layout, parameters_P: Int8Array, packing: str) -> tuple[Layout, UInt8Array]:
    """The bytes of all tensors, and where each tensor's lie; parameters (P,) int8 must be -1, 0 or 1."""
    tensors, pieces, offset = [], [], 0
    for tensor in layout.tensors:
        piece = PACKINGS[packing][0](parameters_P[tensor.offset : tensor.offset + tensor.size])
        tensors.append(TensorSpec(tensor.name, (len(piece),), "vector", tensor.index, offset))
        pieces.append(piece)
        offset += len(piece)
    return Layout(tuple(tensors)), np.frombuffer(b"".join(pieces), np.uint8)


def unpack(
    path: Path, layout: Layout, tensors: Mapping[str, npt.NDArray[Any]], packing: str
) -> dict[str, npt.NDArray[Any]]:
    """The tensors of `path` in their own shapes, int8; those that the layout does not know stay as they are."""
    if packing not in PACKINGS:
        raise KeyframeError(f"{path}: packing is {packing!r}, not one of {', '.join(PACKINGS)}")
    found = dict(tensors)
    for tensor in layout.tensors:
        given = found.get(tensor.name)
        if given is None:
            continue
        try:
            found[tensor.name] = PACKINGS[packing][1](given.tobytes(), tensor.size).reshape(tensor.shape)
        except MessageError as error:
            raise KeyframeError(f"{path}: {tensor.name}: {error}") from error
    return found
