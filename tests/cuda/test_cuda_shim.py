"""The emulation itself: fragment layouts, and that it finds the faults that it is there to find."""

import os
import subprocess
import sys

import numpy as np
import pytest

from es_service.errors import BackendError
from workers.ops.cuda import _compile
from workers.ops.cuda.emulated import EmulatedDevice

COMMON = (_compile._DIRECTORY / "common.cuh").read_text()

KERNELS = (
    COMMON
    + """
ES_KERNEL __launch_bounds__(32) one_mma(const u32* a, const u32* b, const i32* c, i32* out) {
    const int lane = threadIdx.x, g = lane / 4, t = lane % 4;  // PTX ISA, fragments of mma.m16n8k32
    u32 fragment[4];
    load_matrix(fragment, (const u8*)a + (lane % 16) * 32 + lane / 16 * 16);
    i32 sums[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
    mma_s8(sums, fragment, b[g * 8 + t], b[g * 8 + 4 + t]);
    for (int k = 0; k < 4; ++k) out[(g + k / 2 * 8) * 8 + 2 * t + k % 2] = sums[k];
}
ES_KERNEL __launch_bounds__(64) warp_ops(i32* out) {
    const i32 all = warp_sum((i32)threadIdx.x);
    const u32 mask = __ballot_sync(FULL_WARP, (threadIdx.x & 3) == 0);
    out[threadIdx.x] = all + (i32)mask + __shfl_xor_sync(FULL_WARP, (i32)threadIdx.x, 16);
}
ES_KERNEL __launch_bounds__(64) half_a_barrier(i32* out) {
    if (threadIdx.x < 32) __syncthreads();
    out[threadIdx.x] = 1;
}
ES_KERNEL __launch_bounds__(64) two_barriers(i32* out) {
    if (threadIdx.x < 32) __syncthreads();
    else
        __syncthreads();
    out[threadIdx.x] = 1;
}
ES_KERNEL __launch_bounds__(32) lost_lane(i32* out) {
    if (threadIdx.x != 5) out[threadIdx.x] = warp_sum(1);
}
ES_KERNEL __launch_bounds__(32) two_sums(i32* out) {
    if (threadIdx.x & 1) out[threadIdx.x] = warp_sum(1);
    else
        out[threadIdx.x] = warp_sum(2);
}
ES_KERNEL __launch_bounds__(64) race(i32* out) {
    ES_SHARED(shared);
    ((i32*)shared)[threadIdx.x] = (i32)threadIdx.x;
    out[threadIdx.x] = ((i32*)shared)[63 - threadIdx.x];  // no barrier in between
}
ES_KERNEL __launch_bounds__(32) beyond(i32* out, i32 size) {
    out[threadIdx.x] = ((const i32*)shim::shared())[size + 4];
}
ES_KERNEL __launch_bounds__(32) odd_row(u32* out) {
    ES_SHARED(shared);
    u32 a[4];
    load_matrix(a, shared + threadIdx.x * 20);
    out[threadIdx.x] = a[0];
}
"""
)


def device(order=0):
    return EmulatedDevice(1, order=order, source=KERNELS)


def test_mma_with_its_fragments_is_a_matrix_product_modulo_2_32():
    rng = np.random.default_rng(3)
    a, b = rng.integers(-128, 128, (16, 32), dtype=np.int8), rng.integers(-128, 128, (8, 32), dtype=np.int8)
    c = rng.integers(-(1 << 31), 1 << 31, (16, 8)).astype(np.int32)
    out = np.zeros_like(c)
    device().launch("one_mma", (1, 1), 0, a.view(np.uint32), b.view(np.uint32), c, out)
    assert np.array_equal((c + a.astype(np.int64) @ b.T.astype(np.int64)).astype(np.int32), out)


def test_warp_operations():
    out = np.zeros(64, np.int32)
    device().launch("warp_ops", (1, 1), 0, out)
    lanes = np.arange(64)
    expected = np.repeat([496, 496 + 1024], 32) + 0x11111111 + (lanes ^ 16)
    assert np.array_equal(expected, out)


@pytest.mark.parametrize("kernel", ["half_a_barrier", "two_barriers", "lost_lane", "two_sums"])
@pytest.mark.parametrize("order", [0, 1, 7])
def test_divergence_is_an_error_that_names_both_places(kernel, order):
    with pytest.raises(BackendError, match=r"divergence: thread \d+ at .*, thread \d+ at"):
        device(order).launch(kernel, (1, 1), 0, np.zeros(64, np.int32))


def test_a_missing_barrier_shows():
    results = set()
    for order in (0, 1, 7):
        out = np.zeros(64, np.int32)
        device(order).launch("race", (1, 1), 256, out)
        results.add(out.tobytes())
    assert len(results) > 1
    assert np.arange(63, -1, -1).astype(np.int32).tobytes() not in results


def test_a_misaligned_row_of_a_matrix_is_an_error():
    with pytest.raises(BackendError, match="not aligned"):
        device().launch("odd_row", (1, 1), 1024, np.zeros(32, np.uint32))


def sanitized(code: str) -> subprocess.CompletedProcess:
    """Run Python with AddressSanitizer in front of it and in the shim."""
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    environment = os.environ | {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "ES_SHIM_SANITIZE": "address",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OPENBLAS_NUM_THREADS": "1",
    }
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


def test_address_sanitizer_sees_reads_beyond_shared_memory():
    done = sanitized(
        "import numpy as np; from test_cuda_shim import device\n"
        "device().launch('beyond', (1, 1), 64, np.zeros(32, np.int32), 16)"
    )
    assert done.returncode
    assert "heap-buffer-overflow" in done.stderr


def test_the_kernels_stay_within_their_arrays_and_shared_memory():
    done = sanitized("import cuda_bounds; cuda_bounds.run()")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "all within bounds" in done.stdout
