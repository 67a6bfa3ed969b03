"""Noise that stays counters: nothing is made until a kernel, or a host reader, asks for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from es_service.types import Int8Array, Int16Array, Noise
from workers.ops.cuda._launch import CounterRange

__all__ = ["LazyArray", "counters_of", "lazy_noise"]


class LazyArray:
    """Looks like a NumPy array to the checks of `AbstractOps`; becomes a read-only one when its values are read."""

    flags = SimpleNamespace(c_contiguous=True)

    def __init__(
        self, counters: CounterRange, shape: tuple[int, int], dtype: npt.DTypeLike, make: Callable[[], npt.NDArray[Any]]
    ) -> None:
        self.counters = counters
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._make = make

    @cached_property
    def host(self) -> npt.NDArray[Any]:
        """The values."""
        values = self._make()
        values.flags.writeable = False
        return values

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.array(self.host, dtype, copy=copy)

    def __getitem__(self, key: Any) -> Any:
        return self.host[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # protocols that NumPy and copy look for: not those of the host array
            raise AttributeError(name)
        return getattr(self.host, name)


def lazy_noise(counters: CounterRange, make: Callable[[CounterRange], Noise]) -> Noise:
    """A `Noise` whose arrays are `make(counters)`'s, on demand."""
    factors, products = counters.layout.noise_sizes(counters.rank)
    factors_QF = LazyArray(counters, (counters.units, factors), np.int8, lambda: make(counters).factors_QF)
    products_QV = LazyArray(counters, (counters.units, products), np.int16, lambda: make(counters).products_QV)
    return Noise(counters.rank, cast("Int8Array", factors_QF), cast("Int16Array", products_QV))


def counters_of(noise: Noise) -> CounterRange | None:
    """The counters behind a lazy noise; None for recorded arrays."""
    lazy: Any = noise.factors_QF
    same = isinstance(lazy, LazyArray) and isinstance(cast("Any", noise.products_QV), LazyArray)
    return lazy.counters if same else None
