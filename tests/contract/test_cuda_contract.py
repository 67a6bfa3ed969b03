"""The contract of all backends on the emulated CUDA kernels, with threads and blocks in two orders."""

from ops_contract import OpsContract

from workers.ops.cuda.emulated import EmulatedDevice, EmulatedOps


class TestCudaEmulated(OpsContract):
    backend = "cuda-emulated"

    @classmethod
    def setup_class(cls):
        cls.variants = {
            f"order {order}": EmulatedOps(threads, EmulatedDevice(threads, order=order))
            for threads, order in ((1, 0), (2, 12345))
        }
