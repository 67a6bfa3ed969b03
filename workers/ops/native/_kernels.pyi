import numpy as np
import numpy.typing as npt

_Int8 = npt.NDArray[np.int8]
_Int16 = npt.NDArray[np.int16]
_Int32 = npt.NDArray[np.int32]
_Int64 = npt.NDArray[np.int64]
_UInt8 = npt.NDArray[np.uint8]

def detect() -> list[tuple[str, bool]]: ...

class Model: ...

class Backend:
    def __init__(self, isa: str, threads: int) -> None: ...
    @property
    def isa(self) -> str: ...
    def prepare(self, width: int, layers: int, sigma_shift: int, parameters: _Int8, /) -> Model: ...
    def forward(
        self,
        model: Model,
        rank: int,
        factors: _Int8 | None,
        products: _Int16 | None,
        rows: _UInt8,
        row_of_pair: _Int32 | None,
        burn_in: int,
        state: _Int8 | None,
        scores: _Int32 | None,
        logits: _Int8 | None,
    ) -> None: ...
    def noise(
        self,
        table: _Int64,
        rank: int,
        seed: int,
        epoch: int,
        first_unit: int,
        factors: _Int8,
        products: _Int16,
        /,
    ) -> None: ...
    def accumulate(
        self,
        table: _Int64,
        rank: int,
        factors: _Int8,
        products: _Int16,
        votes: _Int8,
        sign_noise: bool,
        sums: _Int32,
        /,
    ) -> None: ...
    def apply(self, parameters: _Int8, sums: _Int32, threshold: int, /) -> int: ...
    def digest(self, table: _Int64, parameters: _Int8, /) -> int: ...
    def ternary_nonzeros(
        self, numbers: _Int64, table: _Int64, seed: int, epoch: int, first: int, positions: _Int64, signs: _Int8, /
    ) -> None: ...
    def ternary_chosen(
        self, numbers: _Int64, table: _Int64, seed: int, epoch: int, unit: int, /
    ) -> tuple[bytes, bytes]: ...
    def ternary_step(
        self, numbers: _Int64, table: _Int64, seed: int, epoch: int, votes: _Int8, weights: _Int8, /
    ) -> None: ...
    def peak(self, rounds: int, /) -> int: ...
