"""Text that a model is judged on: held-out rows of a run's corpus, or files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from es_service.config import RunConfig
from es_service.data import Baselines, Cache, Corpus, FilesDataConfig, baselines, default_cache_dir
from es_service.data.files import FilesSource
from es_service.errors import DataError
from es_service.session import held_out_rows
from es_service.types import UInt8Array

__all__ = ["cached_corpus", "held_out_baselines", "text_of_files"]


def held_out_baselines(config: RunConfig, corpus: Corpus) -> Baselines:
    """What simple models need for the same bytes."""
    return baselines(corpus, held_out_rows(config, corpus))


def cached_corpus(config: RunConfig) -> Corpus | None:
    """The run's corpus if this machine has it; builds and downloads nothing."""
    content_hash = config.data.content_hash
    return Cache(default_cache_dir().absolute()).open(content_hash) if content_hash else None


def text_of_files(paths: Iterable[Path]) -> UInt8Array:
    """(size,) uint8: for each file, in order, a byte 0 and its bytes; raises `DataError` if there is no text."""
    paths = tuple(paths)
    for path in paths:
        if not path.expanduser().exists():
            raise DataError(f"--data: there is no file or folder {path}; correct the path")
    documents = FilesSource(FilesDataConfig(paths=paths)).documents()
    text = b"".join(b"\0" + document.text for document in documents if document.text)
    if not text:
        raise DataError(f"--data: there is no UTF-8 text in {', '.join(map(str, paths))}; name files that have some")
    return np.frombuffer(text, np.uint8)
