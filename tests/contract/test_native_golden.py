"""Every instruction set that this CPU has against the recorded vectors of the EGG reference program."""

from pathlib import Path

import pytest

from workers import golden
from workers.ops.native import NativeOps, detect

FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))


@pytest.mark.parametrize("isa", [isa for isa, present in detect().items() if present])
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_vectors_are_reproduced_exactly(path, isa):
    assert golden.compare(golden.read(path), NativeOps(2, isa)) is None
