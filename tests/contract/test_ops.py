"""The contract on every backend that this machine has, and that none of them goes round the shared checks."""

from __future__ import annotations

import inspect
import os

import pytest
from ops_contract import OpsContract

import workers.ops
from es_service.errors import BackendError
from workers.ops.base import AbstractOps
from workers.ops.reference import ReferenceOps


def _contract(backend: str) -> type:
    reason = workers.ops.why_not(backend)
    required = os.environ.get(f"ES_SERVICE_REQUIRE_{backend.upper()}") == "1"
    if reason and required:

        def test_it_is_here(self):
            pytest.fail(f"{backend} is required here: {reason}")

        return type(f"Test{backend.title()}", (), {"test_it_is_here": test_it_is_here})
    contract = type(f"Test{backend.title()}", (OpsContract,), {"backend": backend})
    return pytest.mark.skipif(bool(reason), reason=f"no {backend}: {reason}")(contract)


for _backend in workers.ops.BACKENDS:
    globals()[f"Test{_backend.title()}"] = _contract(_backend)


@pytest.mark.parametrize("backend", [name for name in workers.ops.BACKENDS if not workers.ops.why_not(name)])
def test_a_backend_overrides_kernels_only(backend):
    ops = type(workers.ops.resolve(backend)[0])
    public = {name for name, _ in inspect.getmembers(AbstractOps, inspect.isfunction) if not name.startswith("_")}
    assert public == {
        "noise",
        "wave_pairs",
        "prepare",
        "member_scores",
        "scores",
        "logits",
        "accumulate",
        "apply",
        "update",
        "ternary_nonzeros",
        "ternary_step",
        "digest",
    }
    assert not public & vars(ops).keys(), "the checks are in the public methods"
    for name in (f"_{name}" for name in public):
        ours = inspect.signature(getattr(ops, name)).parameters
        assert list(ours) == list(inspect.signature(getattr(AbstractOps, name)).parameters), name


def test_a_backend_that_does_not_exist_is_an_error_that_names_the_others():
    with pytest.raises(BackendError, match=r"backend 'abacus' is not part of this version; there are .*reference"):
        workers.ops.resolve("abacus")
    assert workers.ops.why_not("abacus")


def test_threads_below_one_are_refused():
    with pytest.raises(BackendError, match="threads is 0"):
        ReferenceOps(0)


def test_auto_says_which_and_why(monkeypatch):
    monkeypatch.setattr(
        workers.ops, "BACKENDS", {"native": "workers.ops.nowhere:X", "reference": workers.ops.BACKENDS["reference"]}
    )
    ops, why = workers.ops.resolve("auto")
    assert ops.name == "reference"
    assert why.startswith("reference: no native (")
    with pytest.raises(BackendError, match="'native' is not installed here"):
        workers.ops.resolve("native")
