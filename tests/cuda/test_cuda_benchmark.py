"""`python -m benchmarks.gpu` on a fake of CuPy: its checks find differences, its numbers add up, it fails clearly."""

import json

import fake_cupy
import numpy as np
import pytest

from benchmarks import gpu
from workers.ops.cuda import CudaOps, _cupy
from workers.ops.reference import ReferenceOps

PEAK = gpu.Peaks(1e9, 1e9)


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(_cupy, "_load", lambda: fake_cupy.module(multiprocessors=2))
    return CudaOps()


def test_without_a_gpu_it_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(_cupy, "_load", lambda: fake_cupy.module(failure="no CUDA-capable device is detected"))
    with pytest.raises(SystemExit) as stop:
        gpu.main([])
    assert str(stop.value) == "benchmarks.gpu: no usable GPU: no CUDA-capable device is detected"


def test_equality_checks_pass_and_catch_a_wrong_backend(cuda):
    assert gpu.check_shapes(cuda, ReferenceOps(), gpu.SANITIZED[:2]) == 2

    class Wrong(ReferenceOps):
        def _digest(self, layout, parameters_P):
            return super()._digest(layout, parameters_P) ^ 1

    with pytest.raises(SystemExit, match="digest differ"):
        gpu.check_shapes(cuda, Wrong(), gpu.SANITIZED[:1])


def test_the_shapes_reach_every_tile():
    tiles = {pairs for *_, pairs in gpu.SHAPES}
    assert min(tiles) < 8
    assert max(tiles) > 128


def test_a_row_adds_up(cuda, monkeypatch):
    monkeypatch.setattr(gpu, "LAYERS", 1)
    row = gpu.measure(cuda, 64, 16, 1, PEAK, gpu.Budget(60), work=1)
    assert (row.members, row.steps, row.layers) == (64, 4, 1)
    assert row.bytes_per_second == pytest.approx(64 * 4 / row.seconds)
    assert row.share_of_int8_peak == pytest.approx(row.bytes_per_second * 2 * (12 * 256 + 256 * 16) / 1e9)
    assert row.bytes_per_second_with_update == pytest.approx(6400 / (25 * row.seconds + row.update_seconds))
    assert "64     16" in gpu.table([row])


def test_the_whole_run_writes_its_numbers(cuda, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu, "LAYERS", 1)
    monkeypatch.setattr(gpu, "WIDTHS", (16,))
    monkeypatch.setattr(gpu, "MEMBERS", (64,))
    monkeypatch.setattr(gpu, "SHAPES", gpu.SANITIZED[:1])
    monkeypatch.setattr(gpu, "peaks", lambda: PEAK)
    monkeypatch.setattr(gpu, "sanitize", lambda tools, budget: [f"{' '.join(tools)} ran"])
    gpu.main(["--quick", "--json", str(tmp_path / "gpu.json")])
    numbers = json.loads((tmp_path / "gpu.json").read_text())
    assert numbers["peaks"] == {"int8_operations": 1e9, "memory_bytes": 1e9}
    assert [row["members"] for row in numbers["rows"]] == [64]
    assert "memcheck ran" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "outcome"), [(0, "no errors"), (9, "Invalid read")])
def test_compute_sanitizer_ends_the_run_where_it_finds_an_error(status, outcome, monkeypatch, tmp_path):
    program = tmp_path / "compute-sanitizer"
    program.write_text(f"#!/bin/sh\necho Invalid read\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    if status:
        with pytest.raises(SystemExit, match=outcome):
            gpu.sanitize(("memcheck",), gpu.Budget(60))
    else:
        assert gpu.sanitize(("memcheck",), gpu.Budget(60)) == ["compute-sanitizer memcheck: no errors"]


def test_what_there_is_no_time_for_is_named(cuda, monkeypatch, tmp_path, capsys):
    program = tmp_path / "compute-sanitizer"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for name, value in (
        ("LAYERS", 1),
        ("WIDTHS", (16,)),
        ("MEMBERS", (64, 128)),
        ("SHAPES", []),
        ("QUICK_SECONDS", 0.0),
    ):
        monkeypatch.setattr(gpu, name, value)
    monkeypatch.setattr(gpu, "peaks", lambda: None)
    gpu.main(["--quick", "--json", str(tmp_path / "gpu.json")])
    assert json.loads((tmp_path / "gpu.json").read_text())["rows"] == []
    out = capsys.readouterr().out
    assert "memcheck: no verdict" in out
    assert "no time left for 128 members of width 16" in out


def test_a_measurement_ends_early_when_time_is_up(cuda, monkeypatch):
    monkeypatch.setattr(gpu, "LAYERS", 1)
    generations = []
    monkeypatch.setattr(cuda, "update", lambda *arguments: generations.append(arguments))
    gpu.measure(cuda, 64, 16, 5, PEAK, gpu.Budget(0), work=1)
    assert len(generations) == 2


def test_operations_and_bytes_of_the_paper_model():
    assert gpu.operations(256) == pytest.approx(9.57e6, rel=0.01)
    assert gpu.memory_bytes(256) == 28_672 // 2 + 6_400 + 3_072
    assert np.isfinite(gpu.operations(1024))
