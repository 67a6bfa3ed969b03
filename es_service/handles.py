"""What a driver holds of a run that is under way, wherever its head is."""

from __future__ import annotations

import threading
from typing import Protocol

from es_service.coordinator import Coordinator
from es_service.events import Finish
from es_service.telemetry import Status

__all__ = ["Handle", "ThreadHandle"]


class Handle(Protocol):
    """A run under way."""

    def heartbeat(self) -> Status:
        """Tell the head that the driver is alive; what to show."""
        ...

    def stop(self, reason: str) -> None:
        """Ask for an end at the last commit; returns at once."""
        ...

    def wait(self, timeout: float) -> Finish | None:
        """The end of the run if it comes within `timeout` seconds; raises the error that ended it."""
        ...

    def close(self) -> None:
        """Release what belongs to this driver."""
        ...


class ThreadHandle:
    """A coordinator in a thread of this process, without Ray."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._finish: Finish | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)
        self._thread.start()

    def heartbeat(self) -> Status:
        """See `Handle`."""
        return self._coordinator.heartbeat()

    def stop(self, reason: str) -> None:
        """See `Handle`."""
        self._coordinator.stop(reason)

    def wait(self, timeout: float) -> Finish | None:
        """See `Handle`."""
        self._thread.join(timeout)
        if self._error is not None:
            raise self._error
        return self._finish

    def close(self) -> None:
        """See `Handle`."""
        self._coordinator.stop("the driver has left")  # nothing, where the run has ended
        self._thread.join()

    def _run(self) -> None:
        try:
            self._finish = self._coordinator.run()
        except BaseException as error:  # raised again by `wait`, in the driver's thread
            self._error = error
