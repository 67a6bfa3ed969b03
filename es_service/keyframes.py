"""Keyframes and exports: all parameters of one generation in a safetensors file.

A keyframe is `<generation>.safetensors` in the run's `keyframes` directory and is checked against everything that the
reader knows. An export is the same file with metadata of the caller's choice. Files are written here and not by the
safetensors library, which sorts tensors by name and writes metadata in random order: equal keyframes must be equal
files. Tensors lie in canonical order, so that the data part is the flat parameter array. Suffix: P parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from es_service.durable import sync_directory, write_atomically
from es_service.errors import KeyframeError
from es_service.types import Int8Array, Layout, UInt8Array

__all__ = [
    "FORMAT_VERSION",
    "Digest",
    "Keyframe",
    "flatten",
    "list_generations",
    "load",
    "newest_valid",
    "prune",
    "read_model",
    "save",
    "save_model",
    "set_aside",
]

FORMAT_VERSION = "1"
Digest = Callable[[Layout, Int8Array], int]
"""`Ops.digest` of any backend."""

_NAME = re.compile(r"(0|[1-9][0-9]{0,19})\.safetensors")


@dataclass(frozen=True, slots=True)
class Keyframe:
    """Parameters (P,) int8 of one generation, and their digest."""

    parameters_P: Int8Array
    generation: int
    digest: int


def save(
    directory: Path, layout: Layout, parameters_P: Int8Array, generation: int, digest: int, spec_hash: str
) -> Path:
    """Write a keyframe durably, whole or not at all, and return its path. The directory is made if it is missing."""
    path = directory / f"{generation}.safetensors"
    try:
        if not directory.is_dir():
            directory.mkdir()
            sync_directory(directory.parent)
    except OSError as error:
        raise KeyframeError(f"{directory}: cannot be made: {error.strerror}") from error
    save_model(path, layout, parameters_P, _metadata(generation, digest, spec_hash))
    return path


def load(path: Path, layout: Layout, spec_hashes: Collection[str], digest: Digest) -> Keyframe:
    """Read a keyframe and check all that it says; `digest` recomputes the digest of its parameters.

    `spec_hashes` are those of all specs that the run had: a population that grew is another spec of the same run.
    """
    tensors, metadata = read_model(path)
    generation = _generation_of(path)
    if generation is None:
        raise KeyframeError(f"{path}: a keyframe is named <generation>.safetensors")
    parameters_P = flatten(path, layout, tensors)
    actual = digest(layout, parameters_P)
    given = metadata.get("spec_hash", "")
    expected = given if given in spec_hashes else sorted(spec_hashes)[0]
    for key, value in _metadata(generation, actual, expected).items():
        if metadata.get(key) != value:
            raise KeyframeError(f"{path}: {key} is {metadata.get(key)!r}, not {value!r}: damaged, or of another run")
    return Keyframe(parameters_P, generation, actual)


def list_generations(directory: Path) -> list[int]:
    """List the generations that have a keyframe file, ascending; none if the directory is missing."""
    if not directory.is_dir():
        return []
    found = (_generation_of(path) for path in directory.iterdir())
    return sorted(generation for generation in found if generation is not None)


def newest_valid(
    directory: Path, layout: Layout, spec_hashes: Collection[str], digest: Digest, up_to: int | None = None
) -> tuple[Keyframe | None, list[str]]:
    """Return the newest keyframe that passes every check, and what was wrong with newer ones.

    `up_to` leaves out later generations: those that the journal does not reach (any more).
    """
    problems: list[str] = []
    for generation in reversed(list_generations(directory)):
        if up_to is not None and generation > up_to:
            continue
        try:
            return load(directory / f"{generation}.safetensors", layout, spec_hashes, digest), problems
        except KeyframeError as error:
            problems.append(str(error))
    return None, problems


def prune(directory: Path, keep: int) -> list[int]:
    """Remove all keyframes but the newest `keep` and return the generations removed."""
    if keep < 1:
        raise ValueError(f"keep is {keep}: keep 1 keyframe or more")
    old = list_generations(directory)[:-keep]
    for generation in old:
        try:
            (directory / f"{generation}.safetensors").unlink(missing_ok=True)
        except OSError as error:
            raise KeyframeError(f"{directory}: cannot remove old keyframes: {error.strerror}") from error
    return old


def set_aside(directory: Path) -> list[Path]:
    """Rename all keyframes to `<generation>.safetensors.wrong`, so that nothing starts from them.

    Those that cannot be renamed are in the answer.
    """
    left = []
    for generation in reversed(list_generations(directory)):
        path = directory / f"{generation}.safetensors"
        try:
            path.rename(f"{path}.wrong")
        except OSError:
            left.append(path)
    return left


def save_model(path: Path, layout: Layout, parameters_P: Int8Array | UInt8Array, metadata: dict[str, str]) -> None:
    """Write the parameters as safetensors, durably, whole or not at all; uint8 where they are packed."""
    if parameters_P.dtype not in (np.int8, np.uint8) or parameters_P.shape != (layout.size,):
        raise KeyframeError(
            f"{path}: parameters are {parameters_P.dtype} {parameters_P.shape}, not int8 or uint8 ({layout.size},)"
        )
    dtype = "I8" if parameters_P.dtype == np.int8 else "U8"
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    for tensor in layout.tensors:
        span = [tensor.offset, tensor.offset + tensor.size]
        header[tensor.name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": span}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    try:
        write_atomically(path, len(text).to_bytes(8, "little"), text, np.ascontiguousarray(parameters_P).data)
    except OSError as error:
        raise KeyframeError(f"{path}: cannot be written: {error.strerror}; free or repair that disk") from error


def read_model(path: Path) -> tuple[dict[str, npt.NDArray[np.generic]], dict[str, str]]:
    """Tensors by name, and the metadata, of any safetensors file; raises `KeyframeError` if it is none."""
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except OSError as error:
        raise KeyframeError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise KeyframeError(f"{path}: not a whole safetensors file: {error}") from error


def flatten(path: Path, layout: Layout, tensors: dict[str, npt.NDArray[np.generic]]) -> Int8Array:
    """Return the flat parameters (P,) int8 of the tensors of `path`, which must be exactly those of the layout."""
    names = {tensor.name for tensor in layout.tensors}
    if odd := sorted(names ^ tensors.keys()):
        raise KeyframeError(f"{path}: tensor {odd[0]!r} is missing or is not part of this model")
    parameters_P = np.empty(layout.size, np.int8)
    views = layout.views(parameters_P)
    for name, view in views.items():
        given = tensors[name]
        if given.dtype != np.int8 or given.shape != view.shape:
            raise KeyframeError(f"{path}: {name} is {given.dtype} {given.shape}, not int8 {view.shape}")
        view[...] = given
    return parameters_P


def _metadata(generation: int, digest: int, spec_hash: str) -> dict[str, str]:
    return {
        "digest": f"{digest:016x}",
        "format_version": FORMAT_VERSION,
        "generation": str(generation),
        "spec_hash": spec_hash,
    }


def _generation_of(path: Path) -> int | None:
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None
