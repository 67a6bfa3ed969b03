"""How long leases are usually held, and which workers take much longer. Pure."""

from __future__ import annotations

from collections import deque
from math import inf
from statistics import median

from es_service.policy import Policy

__all__ = ["Pace"]


class Pace:
    """Measured from the leases that came back last, of all workers."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._seconds: deque[float] = deque(maxlen=64)
        self._usual = inf
        self.slow: dict[str, None] = {}
        """Workers whose last lease took `hedge_factor` times as long as usual, or has not come back in time."""

    def look(self) -> float:
        """Seconds after which a lease is overdue; to be asked now and then."""
        if not self._seconds:
            return self._policy.lease_timeout
        self._usual = self._policy.hedge_factor * median(self._seconds)
        return min(self._policy.lease_timeout, max(self._policy.hedge_floor, self._usual))

    def held(self, name: str, seconds: float) -> None:
        """A lease came back after so long."""
        self._seconds.append(seconds)
        if seconds > self._usual:
            self.slow[name] = None
        else:
            self.forget(name)

    def forget(self, name: str) -> None:
        """Nothing is known of this worker."""
        self.slow.pop(name, None)
