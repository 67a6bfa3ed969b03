"""The head's /metrics port, and the file that tells Prometheus where it is (file_sd)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prometheus_client import CollectorRegistry, start_http_server

from es_service.config import DeploymentConfig
from es_service.directory import RunDirectory
from es_service.durable import write_atomically
from es_service.errors import ConfigError

__all__ = ["Exporter"]

JOB = "es-service"
_ANY_ADDRESS = ("0.0.0.0", "::", "")


class Exporter:
    """Serves a registry from its creation to `close`. Raises `ConfigError` if the port or the file cannot be had.

    `ray_exporters` (host:port) are named in the file as well, for a Ray that writes no such file itself.
    """

    def __init__(
        self,
        config: DeploymentConfig,
        directory: RunDirectory,
        registry: CollectorRegistry,
        ray_exporters: Sequence[str] = (),
    ) -> None:
        host, port = config.metrics_host, config.metrics_port
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ConfigError(
                f"deployment.metrics_port: cannot listen on {host} port {port} ({error.strerror or error}); "
                "choose another metrics_port or metrics_host, 0 for any free port, or -1 for no /metrics"
            ) from error
        self.address = f"{'127.0.0.1' if host in _ANY_ADDRESS else host}:{self._server.server_port}"
        tag = hashlib.sha256(str(directory.path.absolute()).encode()).hexdigest()[:8]
        self.path = config.metrics_targets_dir / f"{directory.name}-{tag}.json"
        try:
            _write(self.path, _targets(directory.name, self.address, ray_exporters))
        except OSError as error:
            self.close()
            raise ConfigError(
                f"deployment.metrics_targets_dir: {self.path} cannot be written ({error.strerror}); "
                "name a directory that can, or set metrics_port = -1 for no /metrics"
            ) from error

    def close(self) -> None:
        """Take the file back and give up the port. May be called twice."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _targets(run: str, address: str, ray_exporters: Sequence[str]) -> bytes:
    """The name of the run as `instance`: series go on where a head with another port takes over."""
    groups = [{"targets": [address], "labels": {"job": JOB, "run": run, "instance": run}}]
    if ray_exporters:
        groups.append({"targets": list(ray_exporters), "labels": {"job": "ray"}})
    return (json.dumps(groups, indent=2) + "\n").encode()


def _write(path: Path, data: bytes) -> None:
    if not path.parent.exists():
        path.parent.mkdir(parents=True)
        path.parent.chmod(0o1777)  # shared by all users of the machine, like /tmp
    write_atomically(path, data)
    path.chmod(0o644)
