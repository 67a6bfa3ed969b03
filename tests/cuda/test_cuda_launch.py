"""Launch code on a fake of CuPy: what reaches a kernel is what its source declares; and the choice of sizes."""

from pathlib import Path

import fake_cupy
import numpy as np
import pytest

from es_service.errors import BackendError
from es_service.plan import Plan
from es_service.types import EggShape, NoiseAddress
from workers import golden
from workers.ops.cuda import CudaOps, _compile, _cupy, _launch
from workers.ops.cuda.emulated import EmulatedDevice
from workers.ops.reference import ReferenceOps

GOLDEN_FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(_cupy, "_load", fake_cupy.module)
    return CudaOps()


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_every_launch_of_the_golden_vectors_passes_through_cupy(path, cuda):
    assert golden.compare(golden.read(path), cuda) is None


def test_launches_of_the_digest_of_the_update_and_of_a_null_state(cuda):
    case = golden.read(GOLDEN_FILES[-1])
    reference = ReferenceOps()
    assert reference.digest(case.layout, case.parameters_P) == cuda.digest(case.layout, case.parameters_P)
    votes_Q, expected, updated = np.array([1, 0, -1], np.int8), case.parameters_P.copy(), case.parameters_P.copy()
    for ops, parameters_P in ((reference, expected), (cuda, updated)):
        ops.update(case.layout, 1, NoiseAddress(3, 4), votes_Q, False, 7_000, parameters_P)
    assert np.array_equal(expected, updated)
    rows = np.ascontiguousarray(case.arrays["tokens"], np.uint8)
    expected = reference.scores(reference.prepare(case.shape, case.parameters_P), rows, 1)
    assert np.array_equal(expected, cuda.scores(cuda.prepare(case.shape, case.parameters_P), rows, 1))


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"capability": "75"}, "sm_75: the kernels need sm_80"), ({"failure": "no CUDA-capable device"}, "no usable GPU")],
)
def test_a_gpu_that_will_not_do_is_named(options, reason, monkeypatch):
    monkeypatch.setattr(_cupy, "_load", lambda: fake_cupy.module(**options))
    with pytest.raises(BackendError, match=reason):
        CudaOps()


def test_without_cupy_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(BackendError, match=r"pip install 'es-service\[cuda\]'"):
        CudaOps()


def test_signatures_are_read_from_the_sources():
    forward = _compile.signatures()["egg_forward_64"]
    assert forward.threads == 512
    assert [p.name for p in forward.parameters[:5]] == ["embedding", "packed", "vectors", "factors", "rows"]
    state = next(p for p in forward.parameters if p.name == "state")
    assert (state.dtype, state.pointer, state.constant) == (np.int8, True, False)
    assert not forward.parameters[-1].pointer
    assert _compile.joined_source().count("ES_KERNEL __launch_bounds__") == len(_compile.signatures())


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({0: np.zeros(4, np.uint8)}, "parameters must be a contiguous int8 array, got uint8"),
        ({0: np.zeros((4, 4), np.int8)[:, 0]}, "contiguous"),
        ({0: 3}, "contiguous"),
        ({3: 1 << 63}, "size must be an integer of int64"),
        ({4: -1}, "least must be an integer of uint32"),
        ({4: 1.5}, "least must be an integer"),
    ],
)
def test_arguments_that_a_kernel_cannot_take_are_refused(change, reason):
    arguments = [np.zeros(4, np.int8), np.zeros(4, np.int32), np.zeros(1, np.uint64), 4, 1]
    for place, value in change.items():
        arguments[place] = value
    with pytest.raises(BackendError, match=reason):
        EmulatedDevice().launch("apply_step", (1, 1), 0, *arguments)


def test_numbers_of_arguments_and_grids_are_checked():
    device = EmulatedDevice()
    with pytest.raises(BackendError, match="takes 5 arguments, got 1"):
        device.launch("apply_step", (1, 1), 0, None)
    for grid, shared in (((0, 1), 0), ((1, 1 << 16), 0), ((1, 1), 1 << 20)):
        with pytest.raises(BackendError, match="cannot be launched"):
            device.launch("apply_step", grid, shared, *[None] * 5)


@pytest.mark.parametrize(
    ("members", "width", "tile"),
    [(262_144, 256, 128), (32_768, 256, 128), (4_096, 256, 32), (262_144, 512, 64), (4_096, 1024, 32), (100, 256, 16)],
)
def test_the_tile_fills_an_h100(members, width, tile):
    device = EmulatedDevice(multiprocessors=132)
    assert tile == _launch.choose_tile(device, EggShape(width, 6, 4), 1, members)


H100, A100 = {"multiprocessors": 132, "shared": 232_448}, {"multiprocessors": 108, "shared": 166_912}


@pytest.mark.parametrize(
    ("device", "width", "tile"),
    [(H100, 256, 128), (H100, 512, 64), (H100, 1024, 32), (A100, 256, 64), (A100, 512, 32), (A100, 1024, 16)],
)
def test_a_lease_fills_the_device_once(device, width, tile, monkeypatch):
    """An H200 is as an H100 here. Down to a multiple of 5, a lease still has a tile for every multiprocessor."""
    monkeypatch.setattr(_cupy, "_load", lambda: fake_cupy.module(**device))
    cuda, shape = CudaOps(), EggShape(width, 6, 4)
    assert cuda.wave_pairs(shape, 1) == device["multiprocessors"] * tile // 2
    members = 2 * Plan.of(1 << 17, wave=cuda.wave_pairs(shape, 1)).lease_units
    assert _launch.choose_tile(cuda.device, shape, 1, members) == tile
    assert -(-members // tile) == device["multiprocessors"]
