"""NVRTC compiles every kernel for each architecture: budgets of registers and code, no stack, tensor cores in use."""

from collections import Counter

import nvrtc_wheel
import pytest

from workers.ops.cuda import _compile, _launch

pytestmark = pytest.mark.skipif(nvrtc_wheel.library() is None, reason="needs the wheel nvidia-cuda-nvrtc-cu12")

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")

# Registers a thread at most; 65536 / (threads x blocks wanted on a multiprocessor) bounds them.
REGISTERS = {
    "egg_forward_128": 128,
    "egg_forward_64": 128,
    "egg_forward_32": 128,
    "egg_forward_16": 128,
    "vote_matrix": 128,
    "noise_fill": 64,
    "vote_vector": 96,
}
DEFAULT_REGISTERS = 40
# A step of a product is 4 x MT (4, 8 or 16); its loop is unrolled by two and has a remainder. vote_matrix: 2 x 16.
TENSOR = {"egg_forward_128": 48, "egg_forward_64": 48, "egg_forward_32": 24, "egg_forward_16": 12, "vote_matrix": 32}
# The instruction cache's second level is about 128 KB: a loop must not stream through it.
INSTRUCTIONS = 4000


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request):
    return nvrtc_wheel.kernels(nvrtc_wheel.compile_cubin(_compile.joined_source(), request.param))


def test_every_kernel_is_there(compiled):
    assert set(_compile.signatures()) == set(compiled)


def test_no_kernel_spills_or_has_a_stack(compiled):
    assert {name: kernel.stack_bytes for name, kernel in compiled.items() if kernel.stack_bytes} == {}
    assert not any(kernel.opcodes[op] for kernel in compiled.values() for op in ("STL", "LDL"))


def test_registers_within_budget(compiled):
    over = {n: k.registers for n, k in compiled.items() if k.registers > REGISTERS.get(n, DEFAULT_REGISTERS)}
    assert over == {}
    assert all(kernel.registers for kernel in compiled.values())


def test_products_run_on_the_tensor_cores_and_nothing_else_claims_to(compiled):
    assert {name: kernel.opcodes["IMMA"] for name, kernel in compiled.items() if kernel.opcodes["IMMA"]} == TENSOR
    assert all(compiled[name].opcodes["LDSM"] == count // 4 for name, count in TENSOR.items())


def test_half_of_the_loop_of_a_product_is_tensor_instructions(compiled):
    """The budget of docs/gpu-kernels.md rests on this."""
    product = min((loop for loop in compiled["egg_forward_128"].loops if loop["IMMA"]), key=Counter.total)
    assert (product["IMMA"], product["LDSM"]) == (32, 8)
    assert product.total() <= 64


def test_code_stays_in_the_instruction_cache(compiled):
    assert {name: kernel.instructions for name, kernel in compiled.items() if kernel.instructions > INSTRUCTIONS} == {}


def test_all_shared_memory_is_the_launchers(compiled):
    reserved = {0, 1024}  # 1 KB of every block is the system's from sm_90 on, outside what a block may ask for
    assert {kernel.static_shared_bytes for kernel in compiled.values()} <= reserved


def test_parameters_are_those_that_the_launchers_check(compiled):
    for name, signature in _compile.signatures().items():
        sizes = [8 if p.pointer else p.dtype.itemsize for p in signature.parameters]
        assert sizes == [compiled[name].parameter_bytes[i] for i in range(len(sizes))], name


@pytest.mark.parametrize(("width", "h100", "a100"), [(256, 128, 64), (512, 64, 32), (1024, 32, 16)])
def test_the_largest_tile_of_each_width(width, h100, a100):
    for limit, tile in ((232_448, h100), (166_912, a100)):
        assert tile == max(rows for rows in _launch.TILES if _launch.shared_bytes(rows, width, 1) <= limit)
