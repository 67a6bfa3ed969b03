"""Documents from a dataset of the Hugging Face hub. Imports `datasets` only when it reads."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from es_service.data.config import HuggingFaceDataConfig
from es_service.data.documents import Document
from es_service.errors import DataError

_BATCH = 1000


@dataclass(frozen=True, slots=True)
class HuggingFaceSource:
    """Source of `kind = "huggingface"`. `cache` is named in errors: the folder that a corpus may be copied to."""

    config: HuggingFaceDataConfig
    cache: Path

    @property
    def name(self) -> str:
        """Name on the hub."""
        return " ".join(filter(None, (self.config.dataset, self.config.subset, self.config.revision)))

    @property
    def field(self) -> str:
        """Where the documents come from."""
        return "data.dataset"

    @property
    def held_out_field(self) -> str:
        """What chooses the held-out documents."""
        return "data.held_out_split" if self.config.held_out_split else "data.held_out_percent"

    def state(self) -> list[object] | None:
        """Nothing beyond the config for a dataset of the hub; a local folder may change at any time."""
        return None if Path(self.config.dataset).exists() else []

    def documents(self) -> Iterator[Document]:
        """Rows of the training split, then those of the held-out split if the config names one."""
        held_out_split = self.config.held_out_split
        if held_out_split is not None:
            # Held-out first: it is small, and a misspelt split then fails before the long part.
            yield from self._rows(held_out_split, True)
        yield from self._rows(self.config.train_split, None if held_out_split is None else False)

    def _rows(self, split: str, held_out: bool | None) -> Iterator[Document]:
        rows, field = self._load(split), self.config.text_field
        if field not in rows.column_names:
            raise DataError(
                f"data.text_field: {self.config.dataset} has no column {field!r}; "
                f"set it to one of {', '.join(rows.column_names)}"
            )
        for batch in rows.iter(batch_size=_BATCH):
            for text in batch[field]:
                if not isinstance(text, str | None):
                    raise DataError(f"data.text_field: column {field!r} holds {type(text).__name__}, not text")
                yield Document((text or "").encode(), held_out)

    def _load(self, split: str) -> Any:
        config = self.config
        try:
            datasets = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(
                f"data.dataset: {config.dataset} needs the package `datasets`, which this Python does not have. "
                f"Run: pip install 'es-service[data]'\n{self._without_network()}"
            ) from error
        try:
            return datasets.load_dataset(config.dataset, config.subset, revision=config.revision, split=split)
        # Any type: `datasets` lets errors of its HTTP client, hub client, parsers and builders through.
        except Exception as error:
            raise DataError(
                f"data.dataset: cannot load split {split!r} of {self.name}: {type(error).__name__}: {error}\n"
                f"{self._without_network()}"
            ) from error

    def _without_network(self) -> str:
        return (
            "On a machine without network, one of:\n"
            f"- load {self.config.dataset} where there is a network, copy its HF_HOME folder (usually "
            "~/.cache/huggingface) here, and set HF_HOME to it and HF_HUB_OFFLINE=1;\n"
            f"- copy the corpus that another machine has built, the folder <cache>/corpora/<content hash> with its "
            f".npy files, into {self.cache / 'corpora'}, and set data.content_hash to that hash;\n"
            '- put the text into files and use data.kind = "files" with data.paths.'
        )
