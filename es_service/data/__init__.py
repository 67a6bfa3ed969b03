"""Text as bytes: corpora to uint8 arrays, the cache, segments of a generation, evaluation rows, baselines.

Nothing here knows a model, a worker or Ray. `docs/data.md` describes the formats.
"""

from es_service.data.baselines import Baselines, baselines
from es_service.data.cache import Cache, default_cache_dir
from es_service.data.config import (
    DataConfig,
    DigitsDataConfig,
    FilesDataConfig,
    HuggingFaceDataConfig,
    MnistDataConfig,
    StdlibDataConfig,
)
from es_service.data.corpus import Corpus
from es_service.data.evaluation import evaluation_rows
from es_service.data.feeding import BatchConfig, FeedingConfig, MembersPerSequenceConfig, SequencesPerGenerationConfig
from es_service.data.fetch import load_or_fetch, piece
from es_service.data.load import load_corpus
from es_service.data.segments import SegmentRows, Segments, check_feeding

__all__ = [
    "Baselines",
    "BatchConfig",
    "Cache",
    "Corpus",
    "DataConfig",
    "DigitsDataConfig",
    "FeedingConfig",
    "FilesDataConfig",
    "HuggingFaceDataConfig",
    "MembersPerSequenceConfig",
    "MnistDataConfig",
    "SegmentRows",
    "Segments",
    "SequencesPerGenerationConfig",
    "StdlibDataConfig",
    "baselines",
    "check_feeding",
    "default_cache_dir",
    "evaluation_rows",
    "load_corpus",
    "load_or_fetch",
    "piece",
]
