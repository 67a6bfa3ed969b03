"""The reference backend against the recorded vectors, and its integer formulas against their definitions."""

import numpy as np
import pytest
from math import log2
from pathlib import Path

from workers import golden
from workers.ops.reference import EXP2_TABLE, ReferenceOps, log_sum_exp

GOLDEN_FILES = sorted((Path(__file__).parents[1] / "golden").glob("*.npz"))


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_golden_vectors_are_reproduced_exactly(path):
    assert golden.compare(golden.read(path), ReferenceOps()) is None


def test_log_sum_exp_equals_the_float64_formula_at_every_step():
    steps = {256, (1 << 28) - 1}
    for k in range(64, 16 * 24 + 1):
        edge = int(np.ceil(16 * 2.0 ** (k / 16)))
        steps |= {s for s in (edge - 1, edge, edge + 1) if 256 <= s < 1 << 28}
    sums = np.array(sorted(steps), np.int64)
    expected = np.array([int(16 * log2(s / 16)) for s in sums.tolist()])
    assert np.array_equal(log_sum_exp(sums), expected)


def test_exp2_table_keeps_the_sum_below_2_28():
    assert EXP2_TABLE[0] == 16
    assert 256 * 16 <= int(EXP2_TABLE.astype(np.int64).max()) * 256 < 1 << 28
