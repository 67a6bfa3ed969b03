"""What a source of text gives: documents, each for one of the splits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Document:
    """UTF-8 text, and its split where the config names it (None: the content hash decides)."""

    text: bytes
    held_out: bool | None = None


class Source(Protocol):
    """Documents of one `DataConfig`, in an order that depends on their names only."""

    @property
    def name(self) -> str:
        """What a person calls this text."""
        ...

    @property
    def field(self) -> str:
        """Config field that says where the documents are."""
        ...

    @property
    def held_out_field(self) -> str:
        """Config field that says which documents are held out."""
        ...

    def state(self) -> list[object] | None:
        """JSON values that change when the documents may have changed; None if that cannot be told."""
        ...

    def documents(self) -> Iterator[Document]:
        """All documents; those that the config names as held out come first.

        Raises DataError naming the field and the remedy.
        """
        ...


def is_held_out(text: bytes, percent: float) -> bool:
    """Whether the content hash puts a document into the held-out split.

    Equal documents go to the same split, so a copy never leaks from training into the held-out bytes.
    """
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") % 10_000 < round(percent * 100)
