"""Imports point one way (design, "Modules and the direction of imports"), and no module or function is too long."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(path for package in ("es_service", "workers") for path in (ROOT / package).rglob("*.py"))
KERNELS = sorted(path for path in (ROOT / "workers").rglob("*") if path.suffix in (".cpp", ".hpp", ".cu", ".cuh", ".h"))

RAY = {"es_service/head.py", "es_service/launch.py", "workers/actor.py", "workers/pool.py", "workers/relay.py"}
IMPORTS_WORKERS = {"es_service/launch.py", "es_service/cli.py"}
OPEN_TO_WORKERS = {
    "build", "messages", "noise", "votes", "config", "errors", "types", "algorithms", "data", "models", "problem",
    "plan", "pools", "shared", "metrics", "ternary", "updates",
}  # fmt: skip
HEAVY = {
    "cupy": "workers/ops/cuda", "torch": "workers", "datasets": "es_service/data", "matplotlib": "es_service/commands",
}  # fmt: skip
MAX_MODULE, MAX_FUNCTION, MAX_KERNEL_FILE = 400, 40, 600


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at import time) of everything imported, `from x import y` as x.y where that is a module."""
    lazy = {
        id(inner)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for inner in ast.walk(node)
    }
    known = {name_of(other) for other in MODULES}
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{relative(path)}: imports are absolute"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            names = [*(inner & known), *([node.module] if inner - known else [])]
        else:
            continue
        yield from ((name, id(node) not in lazy) for name in names)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_direction(path):
    where = relative(path)
    for name, eager in imports(path):
        top, *rest = name.split(".")
        if top == "ray":
            assert where in RAY, f"{where} imports {name}"
        if top in HEAVY:
            assert where.startswith(HEAVY[top]), f"{where} imports {name}"
            assert not eager or top == "cupy", f"{where} imports {name} before it is needed"
        if top == "workers" and where.startswith("es_service/"):
            assert where in IMPORTS_WORKERS, f"{where} imports {name}"
            assert not eager, f"{where} imports {name} when it is imported itself"
        if top == "es_service" and rest and where.startswith("workers/"):
            assert rest[0] in OPEN_TO_WORKERS, f"{where} imports {name}"
        assert top not in ("pickle", "cloudpickle", "shelve", "marshal"), f"{where} imports {name}"


def test_the_test_sees_imports(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("import ray.util\nfrom es_service import noise\ndef f():\n    from workers.ops import base\n")
    assert set(imports(path)) == {("ray.util", True), ("es_service.noise", True), ("workers.ops.base", False)}


def test_no_cycles():
    known = {name_of(path) for path in MODULES}
    graph = {
        name_of(path): {name for name, eager in imports(path) if eager} & known - {name_of(path)} for path in MODULES
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done or name not in graph:
            return
        for other in sorted(graph[name]):
            visit(other, (*trail, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())
    assert done == set(graph)


@pytest.mark.parametrize("path", MODULES, ids=relative)
def test_length(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_MODULE, f"{relative(path)} is too long"
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body
            first = body[0].lineno if body is not node.body else node.lineno
            lines = node.end_lineno - first + 1
            assert lines <= MAX_FUNCTION, f"{relative(path)}: {node.name} has {lines} lines"


@pytest.mark.parametrize("path", KERNELS, ids=relative)
def test_length_of_kernel_sources(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_KERNEL_FILE


def test_light_modules_stay_light():
    """What a journal reader or a config check needs brings in neither Ray nor kernels nor a model library."""
    code = (
        "import sys, es_service.config, es_service.replay, es_service.session, workers.evaluator\n"
        "heavy = {'ray', 'torch', 'cupy', 'datasets', 'matplotlib', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_help_imports_nothing_heavy():
    code = (
        "import sys, es_service.cli\n"
        "try:\n    es_service.cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'ray', 'numpy', 'torch', 'pydantic', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    assert "es-service" in done.stdout
