"""The device through CuPy: the only module of the project that imports it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service.errors import BackendError
from workers.ops.cuda._compile import OPTIONS, joined_source, signatures
from workers.ops.cuda._device import AbstractDevice

__all__ = ["CupyDevice"]

_MIN_CAPABILITY = 80
"""mma.sync on int8 with a depth of 32, and warp-wide sums, begin with sm_80."""


def _load() -> Any:
    """CuPy, with its cache of binaries on this node's own disk unless the user chose a place."""
    directory = Path(gettempdir()) / f"es-service-cupy-{os.getuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    owner = directory.lstat()
    if owner.st_uid == os.getuid() and owner.st_mode & 0o777 == 0o700:  # binaries run from it: ours alone
        os.environ.setdefault("CUPY_CACHE_DIR", str(directory))
    try:
        import cupy
    except ImportError as error:
        raise BackendError(f"CuPy cannot be imported ({error}): pip install 'es-service[cuda]'") from error
    return cupy


class CupyDevice(AbstractDevice):
    """Device 0 of this process (Ray hides the others) with a stream of its own; compiles every kernel at once.

    Raises `BackendError` without CuPy, a driver or a GPU, and for a GPU older than sm_80.
    """

    def __init__(self) -> None:
        self._cupy = _load()
        try:
            self._device = self._cupy.cuda.Device(0)
            capability = int(self._device.compute_capability)
            attributes = self._device.attributes
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendError(f"no usable GPU: {error}") from error
        if capability < _MIN_CAPABILITY:
            raise BackendError(f"this GPU is sm_{capability}: the kernels need sm_{_MIN_CAPABILITY} or later")
        self.multiprocessors = int(attributes["MultiProcessorCount"])
        self.shared_limit = int(attributes["MaxSharedMemoryPerBlockOptin"])
        self.stream = self._cupy.cuda.Stream(non_blocking=True)
        self.signatures = signatures()
        self._kernels = self._compile()

    def _compile(self) -> dict[str, Any]:
        began = time.perf_counter()
        module = self._cupy.RawModule(code=joined_source(), options=OPTIONS)
        kernels = {name: module.get_function(name) for name in self.signatures}
        for name, kernel in kernels.items():
            if name.startswith("egg_forward"):
                kernel.max_dynamic_shared_size_bytes = self.shared_limit
        self.compile_seconds = time.perf_counter() - began
        return kernels

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """See `AbstractDevice`."""
        with self.stream:
            return self._cupy.empty(tuple(shape), dtype)

    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """See `AbstractDevice`."""
        with self.stream:
            return self._cupy.zeros(tuple(shape), dtype)

    def upload(self, array: npt.NDArray[Any]) -> Any:
        """See `AbstractDevice`."""
        with self.stream:
            return self._cupy.asarray(array)

    def download(self, array: Any) -> npt.NDArray[Any]:
        """See `AbstractDevice`."""
        host: npt.NDArray[Any] = self._cupy.asnumpy(array, stream=self.stream)
        self.stream.synchronize()
        return host

    def start(self, kernel: str, grid: tuple[int, int], threads: int, shared: int, arguments: list[Any]) -> None:
        """See `AbstractDevice`."""
        null = np.uint64(0)
        with self.stream:
            self._kernels[kernel](
                (*grid, 1),
                (threads, 1, 1),
                tuple(null if argument is None else argument for argument in arguments),
                shared_mem=shared,
            )
