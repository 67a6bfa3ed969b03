"""CUDA kernels for GPUs from sm_80 on, launched through CuPy.

The same kernels' text also runs on the host: `workers.ops.cuda.emulated`, for tests and debugging.
"""

from __future__ import annotations

from workers.ops.cuda._ops import AbstractDeviceOps

__all__ = ["CudaOps"]


class CudaOps(AbstractDeviceOps):
    """The kernels on this process's GPU. `threads` is accepted for the other backends' sake.

    Raises `BackendError` without CuPy, a driver or a GPU, and for a GPU that is too old.
    """

    name = "cuda"

    def __init__(self, threads: int = 1) -> None:
        from workers.ops.cuda._cupy import CupyDevice

        super().__init__(CupyDevice(), threads)
