"""The CUDA kernels run on the host through shim/: backend `cuda-emulated`, for tests and debugging only.

The text that NVRTC compiles is compiled by the host's C++ compiler, once for each version of it, into a cache
directory (`ES_SERVICE_CACHE`, or `~/.cache/es-service`). Set `ES_SHIM_SANITIZE=address` for bounds checks (the
process must preload libasan) and `ES_SHIM_ORDER` to permute the order of threads and blocks.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service.errors import BackendError
from workers.ops.cuda._compile import Signature, joined_source, parse
from workers.ops.cuda._device import AbstractDevice
from workers.ops.cuda._ops import AbstractDeviceOps

__all__ = ["EmulatedDevice", "EmulatedOps", "build"]

_SHIM = Path(__file__).parent / "shim"
_FLAGS = (
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-shared",
    "-pthread",
    "-fwrapv",
    "-fno-strict-aliasing",
    "-Wno-unknown-pragmas",
)


class EmulatedDevice(AbstractDevice):
    """Host memory and the shim's scheduler; `multiprocessors` blocks of a persistent kernel, `threads` at a time.

    `order` is 0 for ascending threads and blocks, 1 for descending, any other number a seed. `source` stands in for
    the project's kernels.
    """

    def __init__(
        self,
        threads: int = 1,
        multiprocessors: int = 3,
        shared_limit: int = 232_448,
        order: int | None = None,
        source: str | None = None,
    ) -> None:
        self.threads = threads
        self.multiprocessors = multiprocessors
        self.shared_limit = shared_limit
        self.order = int(os.environ.get("ES_SHIM_ORDER", "0")) if order is None else order
        source = joined_source() if source is None else source
        self.signatures = parse(source)
        self._library = ctypes.CDLL(str(build(source, os.environ.get("ES_SHIM_SANITIZE", ""))))

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """See `AbstractDevice`. Filled with a pattern, so that what is read unwritten shows."""
        array = np.empty(tuple(shape), dtype)
        array.view(np.uint8).fill(0xA5)
        return array

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """See `AbstractDevice`."""
        return np.zeros(tuple(shape), dtype)

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """See `AbstractDevice`."""
        return np.array(array, order="C")

    def download(self, array: Any) -> npt.NDArray[Any]:
        """See `AbstractDevice`."""
        return np.array(array, order="C")

    def start(self, kernel: str, grid: tuple[int, int], threads: int, shared: int, arguments: list[Any]) -> None:
        """See `AbstractDevice`."""
        values = [_as_c(argument) for argument in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        message = ctypes.create_string_buffer(1024)
        sizes = (ctypes.c_uint32 * 2)(*grid)
        failed = self._library.es_shim_launch(
            kernel.encode(), sizes, threads, ctypes.c_size_t(shared), pointers, self.threads, self.order, message,
            ctypes.c_size_t(len(message)),
        )  # fmt: skip
        if failed:
            raise BackendError(f"{kernel}: {message.value.decode()}")


class EmulatedOps(AbstractDeviceOps):
    """`CudaOps` without a GPU: the same launchers and kernels, thousands of times slower.

    Raises `BackendError` where there is no C++ compiler, or one that fails.
    """

    name = "cuda-emulated"

    def __init__(self, threads: int = 1, device: EmulatedDevice | None = None) -> None:
        super().__init__(device or EmulatedDevice(threads), threads)


def _as_c(argument: Any) -> Any:
    """A ctypes object that holds the argument as the kernel takes it."""
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, np.ndarray):
        return ctypes.c_void_p(argument.ctypes.data)
    return np.ctypeslib.as_ctypes_type(argument.dtype)(int(argument))


def build(source: str, sanitize: str = "") -> Path:
    """The shared library of these kernels, compiled if it is not in the cache yet."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
    if not compiler:
        raise BackendError("cuda-emulated compiles the kernels for the host: no C++ compiler here (install g++)")
    text = f'#include "shim.hpp"\n{source}\n{_wrappers(parse(source))}'
    flags = (*_FLAGS, *((f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-O1") if sanitize else ()))
    parts = [text, *flags, compiler, *(path.read_text("utf-8") for path in sorted(_SHIM.iterdir()))]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    library = _cache_directory() / f"cuda-emulated-{name}.so"
    if not library.exists():
        _compile(compiler, flags, text, library)
    return library


def _cache_directory() -> Path:
    directory = Path(os.environ.get("ES_SERVICE_CACHE") or Path.home() / ".cache" / "es-service")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _compile(compiler: str, flags: Sequence[str], text: str, library: Path) -> None:
    with TemporaryDirectory(dir=library.parent) as work:
        source, result = Path(work) / "kernels.cpp", Path(work) / "kernels.so"
        source.write_text(text, encoding="utf-8")
        command = [compiler, *flags, f"-I{_SHIM}", str(source), str(_SHIM / "shim.cpp"), "-o", str(result)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BackendError(f"cuda-emulated: {compiler} failed on the kernels:\n{done.stderr[-4000:]}")
        result.replace(library)  # whole or not at all, whoever else compiles it now


def _wrappers(kernels: Mapping[str, Signature]) -> str:
    """C++ that calls each kernel with arguments given as an array of pointers to them."""
    lines = [_wrapper(signature) for signature in kernels.values()]
    table = "".join(f'{{"{name}", run_{name}}}, ' for name in kernels)
    head = "struct ShimKernel { const char* name; void (*run)(void**); };\n"
    return (
        head
        + "\n".join(lines)
        + f'\nextern "C" const ShimKernel es_shim_kernels[] = {{{table}{{nullptr, nullptr}}}};\n'
    )


def _wrapper(signature: Signature) -> str:
    arguments = []
    for place, parameter in enumerate(signature.parameters):
        kind = f"{parameter.dtype.kind}{8 * parameter.dtype.itemsize}"
        pointer = ("const " if parameter.constant else "") + f"{kind}*" if parameter.pointer else kind
        arguments.append(f"*({pointer}*)arguments[{place}]")
    return f"static void run_{signature.name}(void** arguments) {{ {signature.name}({', '.join(arguments)}); }}"
