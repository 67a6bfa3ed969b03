"""The few CuPy calls that `_cupy.CupyDevice` makes, on the host: arrays are NumPy's, kernels run through the shim.

As strict as CuPy: arguments are device arrays or NumPy scalars whose bytes are what the kernel takes, in its order;
blocks and shared memory keep the limits of an H100.
"""

from types import SimpleNamespace

import numpy as np

from workers.ops.cuda._compile import parse
from workers.ops.cuda.emulated import EmulatedDevice


class DeviceArray(np.ndarray):
    """Marks what was allocated on the device, so that a host array passed to a kernel is an error."""


class CUDARuntimeError(RuntimeError):
    pass


class Stream:
    active = 0

    def __init__(self, non_blocking=False):
        assert non_blocking

    def __enter__(self):
        Stream.active += 1

    def __exit__(self, *_):
        Stream.active -= 1

    def synchronize(self):
        pass


class RawKernel:
    """`max_dynamic_shared_size_bytes` starts at the 48 KB that every kernel may have."""

    def __init__(self, signature, device):
        self.signature, self.device = signature, device
        self.max_dynamic_shared_size_bytes = 48 << 10

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert Stream.active, "a launch outside the device's stream"
        assert len(grid) == len(block) == 3
        assert block == (self.signature.threads, 1, 1)
        assert 0 < grid[0] < 1 << 31
        assert 0 < grid[1] < 1 << 16
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        values = [self._value(p, a) for p, a in zip(self.signature.parameters, args, strict=True)]
        self.device.start(self.signature.name, grid[:2], block[0], shared_mem, values)

    @staticmethod
    def _value(parameter, argument):
        if isinstance(argument, DeviceArray):
            assert parameter.pointer
            assert argument.dtype == parameter.dtype
            return np.asarray(argument)
        assert isinstance(argument, np.generic), f"{parameter.name}: {type(argument)}"
        if parameter.pointer:
            assert argument == np.uint64(0), "the only scalar that is a pointer is null"
            return None
        assert argument.dtype == parameter.dtype
        return argument


class RawModule:
    def __init__(self, *, code, options):
        assert options == ("--std=c++17",)
        self.kernels = parse(code)
        self.device = EmulatedDevice(2, source=code)

    def get_function(self, name):
        return RawKernel(self.kernels[name], self.device)


def _device_array(array):
    assert Stream.active, "an allocation outside the device's stream"
    return array.view(DeviceArray)


def module(capability="90", multiprocessors=132, shared=232_448, failure=None):
    """A stand-in for `import cupy`."""

    class Device:
        def __init__(self, index):
            assert index == 0

        @property
        def compute_capability(self):
            if failure:
                raise CUDARuntimeError(failure)
            return capability

        attributes = {"MultiProcessorCount": multiprocessors, "MaxSharedMemoryPerBlockOptin": shared}  # noqa: RUF012

    def asnumpy(array, stream=None):
        assert isinstance(array, DeviceArray)
        assert stream is not None
        return np.array(array)

    runtime = SimpleNamespace(CUDARuntimeError=CUDARuntimeError)
    return SimpleNamespace(
        cuda=SimpleNamespace(Device=Device, Stream=Stream, runtime=runtime),
        RawModule=RawModule,
        empty=lambda shape, dtype: _device_array(np.full(shape, 85, dtype)),
        zeros=lambda shape, dtype: _device_array(np.zeros(shape, dtype)),
        asarray=lambda array: _device_array(np.array(array, order="C")),
        asnumpy=asnumpy,
    )
