"""Array kernels, one module or package a backend; `reference` is the definition."""

from __future__ import annotations

import importlib

from es_service.errors import BackendError
from es_service.types import Ops

__all__ = ["BACKENDS", "resolve", "why_not"]

BACKENDS = {
    "cuda": "workers.ops.cuda:CudaOps",
    "native": "workers.ops.native:NativeOps",
    "reference": "workers.ops.reference:ReferenceOps",
}
"""Backends in the order in which `auto` takes them."""

_BY_NAME_ONLY = {"cuda-emulated": "workers.ops.cuda.emulated:EmulatedOps"}
"""The CUDA kernels compiled for the host: exact and very slow, for tests and debugging."""


def resolve(backend: str, threads: int = 1) -> tuple[Ops, str]:
    """The kernels of a backend, and one line that says which they are and why; raises `BackendError`."""
    if backend != "auto":
        ops = _load(backend, threads)
        return ops, f"{_label(ops)}: as the config says"
    reasons: list[str] = []
    for name in BACKENDS:
        reason = why_not(name)
        if not reason:
            ops = _load(name, threads)
            return ops, f"{_label(ops)}: {'; '.join(reasons) or 'the fastest this machine can run'}"
        reasons.append(f"no {name} ({reason})")
    raise BackendError(f"no backend can run here: {'; '.join(reasons)}")


def why_not(backend: str) -> str:
    """Why this machine cannot run a backend; empty if it can."""
    try:
        _load(backend, 1)
    except BackendError as error:
        return str(error)
    return ""


def _label(ops: Ops) -> str:
    """The backend, with its instruction set where it has one."""
    isa = getattr(ops, "isa", None)
    return f"{ops.name} ({isa})" if isa else ops.name


def _load(backend: str, threads: int) -> Ops:
    known = BACKENDS | _BY_NAME_ONLY
    if backend not in known:
        raise BackendError(f"backend {backend!r} is not part of this version; there are auto, {', '.join(known)}")
    module, _, name = known[backend].partition(":")
    try:
        ops: Ops = getattr(importlib.import_module(module), name)(threads)
    except ImportError as error:
        raise BackendError(f"backend {backend!r} is not installed here: {error}") from error
    return ops
