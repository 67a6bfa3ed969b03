"""From a config to a corpus: from the cache if it is there, else built from its source and cached."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from es_service.data.cache import Cache, default_cache_dir
from es_service.data.config import (
    DataConfig,
    DigitsDataConfig,
    FilesDataConfig,
    HuggingFaceDataConfig,
    MnistDataConfig,
    StdlibDataConfig,
)
from es_service.data.corpus import FORMAT, Corpus
from es_service.data.documents import Source, is_held_out
from es_service.data.files import FilesSource
from es_service.data.huggingface import HuggingFaceSource
from es_service.data.images import DigitsSource, MnistSource
from es_service.data.stdlib import StdlibSource
from es_service.data.writer import CorpusWriter
from es_service.errors import DataError

_log = logging.getLogger(__name__)


def load_corpus(config: DataConfig, cache_dir: Path | None = None) -> Corpus:
    """The corpus of a config. `cache_dir` defaults to ES_SERVICE_CACHE, then ~/.cache/es-service.

    With `content_hash` set, a cached corpus of that hash is taken wherever it came from. Raises DataError, naming
    the field and the remedy: nothing to read, an empty split, a cache that cannot be written, another content hash.
    """
    cache = Cache((cache_dir or default_cache_dir()).absolute())
    if config.content_hash is not None:
        corpus = cache.open(config.content_hash)
        if corpus is not None:
            return corpus
    source = open_source(config, cache.root)
    corpus = _find_or_build(config, source, cache)
    if config.content_hash not in (None, corpus.content_hash):
        raise DataError(
            f"data.content_hash: the run began with {config.content_hash}, and this machine has "
            f"{corpus.content_hash} ({corpus.name}). Copy the folder {config.content_hash} from the cache of a machine "
            f"of the run into {cache.root / 'corpora'}, or provide the same text here (the same files, dataset "
            "revision or Python version), or start a new run without data.content_hash"
        )
    return corpus


def open_source(config: DataConfig, cache: Path) -> Source:
    """The documents that a config names. Reads nothing yet."""
    match config:
        case StdlibDataConfig():
            return StdlibSource.of_this_python()
        case FilesDataConfig():
            return FilesSource(config)
        case HuggingFaceDataConfig():
            return HuggingFaceSource(config, cache)
        case DigitsDataConfig():
            return DigitsSource(config)
        case MnistDataConfig():
            return MnistSource(config)


def _find_or_build(config: DataConfig, source: Source, cache: Cache) -> Corpus:
    state = source.state()
    fingerprint = _fingerprint(config, state)
    corpus = cache.find(fingerprint) if state is not None else None
    if corpus is not None:
        return corpus
    try:
        with cache.lock(fingerprint):
            corpus = cache.find(fingerprint) if state is not None else None
            if corpus is None:
                corpus = _build(config, source, cache, fingerprint)
                if state is not None:
                    cache.remember(fingerprint, corpus.content_hash)
            return corpus
    except OSError as error:
        raise DataError(
            f"data: cannot build the corpus in the cache {cache.root}: {error}; "
            "set ES_SERVICE_CACHE to a writable folder with enough room"
        ) from error


def _fingerprint(config: DataConfig, state: list[object] | None) -> str:
    """Identifies what a config gives on this machine; the expected hash is no part of it."""
    content = [FORMAT, config.model_dump(mode="json", exclude={"content_hash"}), state]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _build(config: DataConfig, source: Source, cache: Cache, fingerprint: str) -> Corpus:
    _log.info("building the corpus: %s", source.name)
    with cache.writer(fingerprint, config.max_bytes) as writer:
        for document in source.documents():
            held_out = document.held_out
            if held_out is False and writer.train_is_full:
                break
            if held_out is None:
                held_out = is_held_out(document.text, config.held_out_percent)
            writer.add(document.text, held_out)
        _check_sizes(source, writer)
        return cache.store(writer, source.name)


def _check_sizes(source: Source, writer: CorpusWriter) -> None:
    train, held_out = writer.sizes
    if train == held_out == 0:
        raise DataError(f"{source.field}: there is no text in {source.name}; name files or a dataset with UTF-8 text")
    if train and held_out:
        return
    empty, full = ("held-out", "training") if train else ("training", "held-out")
    raise DataError(
        f"{source.held_out_field}: no document of {source.name} is in the {empty} split, all are in the {full} split; "
        "change data.held_out_percent, give more documents (each file is one), or name the held-out "
        "documents (data.held_out_paths, data.held_out_split)"
    )
