"""What the launchers need of a device: arrays, copies and checked launches.

Two implementations: `_cupy.CupyDevice`, and `emulated.EmulatedDevice`, on which the same launchers and kernels run
on the host. Device arrays (`Any` here) are CuPy or NumPy arrays: both have dtype, shape, slices and flags.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from es_service.errors import BackendError
from workers.ops.cuda._compile import Parameter, Signature

__all__ = ["AbstractDevice", "Argument"]

Argument = Any
"""A device array, an integer, or None for a null pointer."""


class AbstractDevice(ABC):
    """One device and one stream on it: everything is queued in order, and `download` waits."""

    multiprocessors: int
    shared_limit: int
    """Bytes of shared memory that one block may have."""
    signatures: Mapping[str, Signature]
    """The kernels that were compiled."""

    @abstractmethod
    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """A device array with unspecified contents."""

    @abstractmethod
    def zeros(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Any:
        """A device array of zeros."""

    @abstractmethod
    def upload(self, array: npt.NDArray[Any]) -> Any:
        """A copy on the device."""

    @abstractmethod
    def download(self, array: Any) -> npt.NDArray[Any]:
        """A copy on the host, once everything queued before has run."""

    @abstractmethod
    def start(self, kernel: str, grid: tuple[int, int], threads: int, shared: int, arguments: list[Any]) -> None:
        """Queue a kernel; `arguments` are device arrays, NumPy scalars of the kernel's types, or None."""

    def launch(self, kernel: str, grid: tuple[int, int], shared: int, *arguments: Argument) -> None:
        """Check the arguments against the kernel's signature, then queue it."""
        signature = self.signatures[kernel]
        if len(arguments) != len(signature.parameters):
            raise BackendError(f"{kernel} takes {len(signature.parameters)} arguments, got {len(arguments)}")
        if not 0 < grid[0] < 1 << 31 or not 0 < grid[1] < 1 << 16 or not 0 <= shared <= self.shared_limit:
            raise BackendError(f"{kernel}: grid {grid} with {shared} bytes of shared memory cannot be launched")
        checked = [
            _pointer(kernel, parameter, argument) if parameter.pointer else _scalar(kernel, parameter, argument)
            for parameter, argument in zip(signature.parameters, arguments, strict=True)
        ]
        self.start(kernel, grid, signature.threads, shared, checked)


def _pointer(kernel: str, parameter: Parameter, argument: Argument) -> Any:
    if argument is None:
        return None
    dtype = getattr(argument, "dtype", None)
    if dtype != parameter.dtype or not argument.flags.c_contiguous:
        raise BackendError(f"{kernel}: {parameter.name} must be a contiguous {parameter.dtype} array, got {dtype}")
    return argument


def _scalar(kernel: str, parameter: Parameter, argument: Argument) -> Any:
    bounds = np.iinfo(parameter.dtype)  # type: ignore[type-var]
    if not isinstance(argument, int) or not bounds.min <= argument <= bounds.max:
        raise BackendError(f"{kernel}: {parameter.name} must be an integer of {parameter.dtype}, got {argument!r}")
    return parameter.dtype.type(argument)
