"""TensorBoard event files in `tensorboard/` of a run's directory."""

from __future__ import annotations

import shutil
from typing import Any

from es_service.directory import RunDirectory
from es_service.errors import BackendError
from es_service.tail import Facts
from es_service.trackers.scalars import scalars

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes what a run does as TensorBoard events, from its first generation; the times are those of the run.

    The folder is made anew each time, from the run's own files, so that a resumed run has no generation twice.
    Raises `BackendError` where the package is missing.
    """

    name = "tensorboard"

    def __init__(self, directory: RunDirectory) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.compat.proto.tensor_pb2 import TensorProto
            from tensorboard.plugins.text.metadata import create_summary_metadata
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise BackendError(
                f"--tensorboard needs the package tensorboard ({error}): pip install 'es-service[tensorboard]'"
            ) from error
        self._event, self._summary, self._tensor = Event, Summary, TensorProto
        self._text_metadata = create_summary_metadata
        self.path = directory.path / "tensorboard"
        self._new_writer = EventFileWriter
        self._writer: Any = None

    def take(self, facts: Facts) -> None:
        """See `Consumer`."""
        for row in facts.metrics:
            values = [self._summary.Value(tag=name, simple_value=value) for name, value in scalars(row)]
            if values:
                self._write(row, values)
        for row in facts.samples:
            text = str(row.get("text", "")).replace("\n", "\n    ")  # a block of code, in its Markdown
            tensor = self._tensor(dtype="DT_STRING", string_val=[f"    {text}".encode()])
            metadata = self._text_metadata(display_name="sample", description="")
            self._write(row, [self._summary.Value(tag="sample", metadata=metadata, tensor=tensor)])

    def close(self) -> None:
        """See `Consumer`."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, row: dict[str, Any], values: list[Any]) -> None:
        if self._writer is None:  # not before the run has a directory
            shutil.rmtree(self.path, ignore_errors=True)
            self._writer = self._new_writer(str(self.path), flush_secs=10)
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=row.get("time", 0.0), step=row["generation"], summary=summary))
