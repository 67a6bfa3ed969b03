"""The kernels' sources as one text, the options they are compiled with, and their signatures.

Headers are joined in front, with `#line`, instead of included: CuPy's disk cache keys on the text that it is given,
so an edited header can never leave a stale binary, and the kernels need no include path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["OPTIONS", "SOURCES", "Parameter", "Signature", "joined_source", "parse", "signatures"]

SOURCES = ("common.cuh", "egg.cuh", "noise.cu", "pack.cu", "forward.cu", "update.cu", "ternary.cu")
"""Files under src, in the order in which they are joined."""

OPTIONS = ("--std=c++17",)
"""Integers only, so nothing depends on how floating point is compiled."""

_TYPES = {
    "i8": np.int8,
    "u8": np.uint8,
    "i16": np.int16,
    "i32": np.int32,
    "u32": np.uint32,
    "i64": np.int64,
    "u64": np.uint64,
}
_DIRECTORY = Path(__file__).parent / "src"
_KERNEL = re.compile(r"^ES_KERNEL\s+__launch_bounds__\((\d+)(?:, \d+)?\)\s+(\w+)\(([^)]*)\)", re.MULTILINE)
_MACRO = re.compile(r"^#define (\w+)[ ]+((?:.*\\\n)*.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of a kernel."""

    name: str
    dtype: np.dtype[np.generic]
    pointer: bool
    constant: bool
    """The kernel only reads through the pointer."""


@dataclass(frozen=True, slots=True)
class Signature:
    """What an `extern "C"` kernel takes, read from its source."""

    name: str
    threads: int
    """Threads of a block: the bound that the kernel was compiled for."""
    parameters: tuple[Parameter, ...]


@cache
def joined_source() -> str:
    """All kernels as one translation unit."""
    parts = [f'#line 1 "{name}"\n{(_DIRECTORY / name).read_text(encoding="utf-8")}' for name in SOURCES]
    return "".join(parts)


@cache
def signatures() -> dict[str, Signature]:
    """Every kernel by name."""
    return parse(joined_source())


def parse(source: str) -> dict[str, Signature]:
    """The kernels of a source by name: `ES_KERNEL __launch_bounds__(threads) name(parameters)`."""
    source = re.sub(r"//[^\n]*", "", source)
    macros = {name: body.replace("\\\n", " ") for name, body in _MACRO.findall(source)}
    found = {}
    for threads, name, text in _KERNEL.findall(source):
        text = macros.get(text.strip(), text)
        parameters = tuple(_parameter(part) for part in text.split(","))
        found[name] = Signature(name, int(threads), parameters)
    return found


def _parameter(text: str) -> Parameter:
    words = text.replace("*", " * ").replace("__restrict__", " ").split()
    constant = words[0] == "const"
    kind = words[1] if constant else words[0]
    return Parameter(words[-1], np.dtype(_TYPES[kind]), "*" in words, constant)
