"""The rules of a run that depend on its deployment only. Nothing here changes a bit of the result."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from es_service.config import DeploymentConfig

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the state machine is told about leases."""

    goal: int
    """Generation at which the run is finished."""
    max_lag: int = 2
    """Generations that the canonical parameters may be behind before no more leases are issued."""
    depth: int = 2
    """Leases that a worker holds at once, so that it never waits for the next."""
    lease_timeout: float = 600.0
    """Seconds after which a lease is also given to another worker."""
    hedge_factor: float = 3.0
    """The same, as a multiple of the median time that leases were held, once that is known."""
    hedge_floor: float = 1.0
    """Least seconds before a second attempt."""
    audit_share: float = 0.0
    """Share of leases that two workers evaluate."""
    audit_secret: bytes = b""
    """Key of the draw of those leases; no worker may know it."""
    most_faults: int = 3
    """Times `depth` results in a row on wrong parameters, or answers in a row that are no results, and a worker is
    given up. (A worker that holds `depth` leases answers all of them before it takes the right parameters.)"""
    most_attempts: int = 8
    """Times that a lease is given out for a second opinion before the head gives it."""

    @classmethod
    def of(cls, deployment: DeploymentConfig) -> Policy:
        """What the deployment says, and a secret of its own."""
        return cls(
            deployment.generations,
            deployment.max_lag,
            lease_timeout=deployment.lease_timeout_seconds,
            audit_share=deployment.audit_share,
            audit_secret=secrets.token_bytes(32),
        )
