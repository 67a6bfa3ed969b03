"""`es-service verify`: recorded vectors against the kernels of this machine, bit for bit."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from es_service.errors import BackendError, DataError
from es_service.types import Ops
from es_service.wiring import golden, kernels, shipped_vectors

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Every file gets its line; 1 if one differs, 2 if one cannot be used."""
    ops, why = kernels(arguments.backend)
    print(f"kernels: {why}", flush=True)
    if arguments.files:
        return _compare_all(arguments.files, ops)
    with shipped_vectors() as files:
        if not files:
            raise DataError("the vectors shipped with es-service are missing: install it again, or give FILE.npz")
        return _compare_all(files, ops)


def _compare_all(files: Sequence[Path], ops: Ops) -> int:
    code = 0
    for path in files:
        try:
            difference = _compare(path, ops)
        except (BackendError, DataError) as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            code = 2
            continue
        print(f"{path}: {difference or 'exact'}", flush=True)
        if difference:
            code = max(code, 1)
    return code


def _compare(path: Path, ops: Ops) -> str:
    """The first difference, or nothing."""
    try:
        difference = golden().compare(golden().read(path), ops)
    except BackendError as error:
        raise BackendError(f"{path}: {error}") from error
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: its arrays do not go together ({error}); see tests/golden for the format") from error
    return "" if difference is None else str(difference)
