"""`es-service doctor`: what this machine has, what will be used and why."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from es_service.build import identity
from es_service.commands.display import print_json
from es_service.data import default_cache_dir
from es_service.errors import BackendError
from es_service.wiring import kernels

__all__ = ["Finding", "findings", "run"]

CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")
_PACKAGES = ("numpy", "pydantic", "safetensors", "rich", "ray", "matplotlib", "datasets")
_LOW_DISK_BYTES = 2 << 30
_LOW_MEMORY_BYTES = 2 << 30
_NVIDIA_SMI_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `remedy` says what to do where the state is `warn`."""

    name: str
    state: Literal["ok", "warn"]
    text: str
    remedy: str = ""


def run(arguments: Namespace) -> int:
    """Print every finding; warnings are no failure."""
    found = list(findings(arguments.runs_dir or Path("runs")))
    if arguments.json:
        print_json([asdict(finding) for finding in found])
        return 0
    for finding in found:
        print(f"{finding.state:<6}{finding.name:<12}{finding.text}")
        if finding.remedy:
            print(f"{'':<18}-> {finding.remedy}")
    return 0


def findings(runs_dir: Path) -> Iterator[Finding]:
    """All findings, in the order in which they matter."""
    yield _cpu()
    yield _memory()
    yield _gpu()
    yield _backend()
    yield _ray()
    yield _disk("runs", runs_dir, "--runs-dir")
    yield _disk("cache", default_cache_dir(), "ES_SERVICE_CACHE")
    yield _corpora(default_cache_dir())
    yield _versions()


def _cpu() -> Finding:
    fields = _proc("cpuinfo")
    flags = set(fields.get("flags", "").split())
    present = [feature for feature in CPU_FEATURES if feature in flags]
    cores = len(os.sched_getaffinity(0))
    text = f"{fields.get('model name', platform.machine())}, {cores} cores; {' '.join(present) or 'no vector features'}"
    if "avx2" in present:
        return Finding("cpu", "ok", text)
    return Finding("cpu", "warn", text, "without AVX2 the kernels are portable and slow: use another machine to train")


def _memory() -> Finding:
    kilobytes = {name: int(value.split()[0]) for name, value in _proc("meminfo").items() if value.endswith("kB")}
    total, free = (kilobytes.get(name, 0) << 10 for name in ("MemTotal", "MemAvailable"))
    text = f"{_gib(free)} of {_gib(total)} available"
    if free >= _LOW_MEMORY_BYTES:
        return Finding("memory", "ok", text)
    return Finding("memory", "warn", text, "close other programs, or use fewer workers and a smaller lease_pairs")


def _proc(name: str) -> dict[str, str]:
    """`name: value` lines of a file in /proc; of repeated names the first."""
    fields: dict[str, str] = {}
    try:
        lines = Path("/proc", name).read_text().splitlines()
    except OSError:
        return fields
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    return fields


def _gpu() -> Finding:
    names = _gpu_names()
    if not names:
        return Finding("gpu", "ok", "none found; the CPU is used")
    if util.find_spec("cupy") is None:
        return Finding("gpu", "warn", names, "CuPy is missing, so the GPU is not used: pip install 'es-service[cuda]'")
    return Finding("gpu", "ok", f"{names}; CuPy is installed")


def _gpu_names() -> str:
    """Names of NVIDIA GPUs; empty if there is none or its driver does not answer."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ""
    query = [command, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_NVIDIA_SMI_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return "; ".join(line.strip() for line in answer.stdout.splitlines() if line.strip())


def _backend() -> Finding:
    try:
        ops, why = kernels("auto")
    except BackendError as error:
        return Finding("backend", "warn", str(error), "install es-service again; `es-service verify` tests its kernels")
    text = f"auto takes {why}"
    if ops.name == "reference":
        remedy = "the reference is exact and slow: install es-service again with a C++ compiler to build native"
        return Finding("backend", "warn", text, remedy)
    return Finding("backend", "ok", text)


def _ray() -> Finding:
    version = _version("ray")
    if version is None:
        remedy = "pip install 'ray[default]', or train with --set deployment.pool=local"
        return Finding("ray", "warn", "not installed", remedy)
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "disabled":
        remedy = "anyone who reaches Ray's ports can run code: set RAY_AUTH_MODE=token, or keep it to one machine"
        return Finding("ray", "warn", f"{version}, RAY_AUTH_MODE=disabled", remedy)
    source = "as RAY_AUTH_MODE says" if mode else "es-service sets it where RAY_AUTH_MODE is unset"
    return Finding("ray", "ok", f"{version}, {mode or 'token'} authentication ({source})")


def _disk(name: str, directory: Path, option: str) -> Finding:
    directory = directory.absolute()
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    text = f"{_gib(shutil.disk_usage(existing).free)} free in {directory}"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(name, "warn", f"{directory} cannot be written", f"make it writable, or choose another: {option}")
    if shutil.disk_usage(existing).free < _LOW_DISK_BYTES:
        return Finding(name, "warn", text, f"free some space, or choose another disk: {option}")
    return Finding(name, "ok", text)


def _corpora(cache: Path) -> Finding:
    found = []
    for path in sorted(cache.glob("corpora/*/corpus.json")):
        try:
            about = json.loads(path.read_text())
            size = sum(split["bytes"] for split in about["splits"].values())
            found.append(f"{about['name']} ({size / 1e6:,.1f} MB, {about['content_hash'][:8]})")
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = "it will be built again when a run needs it; or remove the folder"
            return Finding("corpora", "warn", f"{path} is damaged: {error}", remedy)
    return Finding("corpora", "ok", "; ".join(found) or "none cached yet; a run builds or downloads its own")


def _versions() -> Finding:
    others = ", ".join(f"{name} {_version(name) or 'not installed'}" for name in _PACKAGES)
    return Finding("versions", "ok", f"es-service {identity()}, Python {platform.python_version()}, {others}")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
