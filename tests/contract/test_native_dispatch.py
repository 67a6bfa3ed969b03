"""Which instruction set is taken, and what the binding refuses."""

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from es_service.errors import BackendError
from es_service.models import egg
from es_service.types import EggShape, NoiseAddress
from workers.ops.native import ISA_VARIABLE, NativeOps, choose_isa, detect


def test_the_best_instruction_set_is_taken(monkeypatch):
    monkeypatch.delenv(ISA_VARIABLE, raising=False)
    present = [isa for isa, available in detect().items() if available]
    assert present[0] == "portable"
    assert choose_isa() == present[-1] == NativeOps().isa


@pytest.mark.parametrize("isa", [isa for isa, present in detect().items() if present])
def test_the_environment_forces_one(isa, monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, isa)
    assert NativeOps().isa == isa


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    assert NativeOps(isa="portable").isa == "portable"


@pytest.mark.parametrize("isa", ["sse9", *(isa for isa, present in detect().items() if not present)])
def test_one_that_is_missing_is_an_error(isa, monkeypatch):
    monkeypatch.setenv(ISA_VARIABLE, isa)
    with pytest.raises(BackendError, match=f"instruction set {isa}.*usable here: portable"):
        NativeOps()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_detection_agrees_with_the_kernel():
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    flags = set(next((line for line in text.splitlines() if line.startswith("flags")), "").split())
    if not flags:
        pytest.skip("not an x86 machine")
    vnni = {f"avx512{part}" for part in ("f", "bw", "vl", "dq", "cd")} | {"avx512_vnni"}
    assert detect()["avx2"] == {"avx2", "fma"}.issubset(flags)
    assert detect()["avx512vnni"] == vnni.issubset(flags)
    assert detect()["amx"] <= {"amx_tile", "amx_int8"}.issubset(flags)


def test_a_model_of_another_instruction_set_is_refused():
    shape, parameters = EggShape(16, 1, 4), egg.initial_parameters(egg.layout(16, 1), 0)
    present = [isa for isa, available in detect().items() if available]
    if len(present) < 2:
        pytest.skip("only one instruction set here")
    model = NativeOps(isa=present[0]).prepare(shape, parameters)
    with pytest.raises(BackendError, match=f"prepared for {present[0]}, these kernels are {present[1]}"):
        NativeOps(isa=present[1]).scores(model, np.ones((1, 3), np.uint8), 0)


def test_a_rank_beyond_the_kernels_is_refused():
    layout, ops = egg.layout(16, 1), NativeOps()
    noise = ops.noise(layout, 65, NoiseAddress(0, 0), 0, 1)
    model = ops.prepare(EggShape(16, 1, 4), egg.initial_parameters(layout, 0))
    with pytest.raises(BackendError, match="rank 65"):
        ops.member_scores(model, noise, np.ones((1, 3), np.uint8), np.zeros(1, np.int32), 0)


def test_the_gil_is_released_during_a_pass():
    ops, shape = NativeOps(), EggShape(256, 1, 4)
    model = ops.prepare(shape, egg.initial_parameters(egg.layout(256, 1), 0))
    rows = np.ones((256, 40), np.uint8)
    done, turns = threading.Event(), 0
    worker = threading.Thread(target=lambda: (ops.scores(model, rows, 0), done.set()))
    worker.start()
    while not done.is_set():
        turns += 1
    worker.join()
    assert turns > 1000
