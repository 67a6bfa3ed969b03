"""Images with labels as documents: one byte for each pixel, then one for the label."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from es_service.data.config import DataConfig, DigitsDataConfig, MnistDataConfig
from es_service.data.documents import Document
from es_service.errors import DataError

__all__ = ["DigitsSource", "ImageFormat", "MnistSource", "format_of"]


class ImageFormat(NamedTuple):
    """Pixels of an image, classes of its label, and the pixel value that stands for 1.0."""

    features: int
    classes: int
    white: int


def format_of(config: DataConfig) -> ImageFormat:
    """The format of a corpus of images."""
    if isinstance(config, DigitsDataConfig):
        return ImageFormat(64, 10, 16)
    assert isinstance(config, MnistDataConfig)
    return ImageFormat(784, 10, 255)


@dataclass(frozen=True, slots=True)
class DigitsSource:
    """Source of `kind = "digits"`."""

    config: DigitsDataConfig

    name = "scikit-learn digits"
    field = "data.kind"
    held_out_field = "data.held_out_percent"

    def state(self) -> list[object] | None:
        """Part of an installed package that has not changed since 2011; the content hash tells if it ever does."""
        return []

    def documents(self) -> Iterator[Document]:
        """The images in the order of the file."""
        try:
            datasets = importlib.import_module("sklearn.datasets")
        except ImportError as error:
            raise DataError(
                "data.kind: 'digits' comes with scikit-learn, which this Python does not have. "
                "Run: pip install 'es-service[torch]'"
            ) from error
        digits = datasets.load_digits()
        for pixels, label in zip(digits.data, digits.target, strict=True):
            yield Document(pixels.astype(np.uint8).tobytes() + bytes([int(label)]))


@dataclass(frozen=True, slots=True)
class MnistSource:
    """Source of `kind = "mnist"`."""

    config: MnistDataConfig

    field = "data.dataset"
    held_out_field = "data.dataset"

    @property
    def name(self) -> str:
        """Name on the hub."""
        return " ".join(filter(None, (self.config.dataset, self.config.revision)))

    def state(self) -> list[object] | None:
        """A local folder may change at any time."""
        return None if Path(self.config.dataset).exists() else []

    def documents(self) -> Iterator[Document]:
        """The test images, which are held out, then the training images."""
        for split, held_out in (("test", True), ("train", False)):
            for row in self._rows(split):
                yield Document(self._bytes(row), held_out)

    def _bytes(self, row: Any) -> bytes:
        if "image" not in row or "label" not in row:
            raise DataError(f"data.dataset: {self.name} has columns {', '.join(row)}; it needs `image` and `label`")
        pixels, (features, classes, _) = np.asarray(row["image"], np.uint8), format_of(self.config)
        if pixels.size != features:
            raise DataError(f"data.dataset: {self.name} has an image of {pixels.shape}, not of 28 x 28 pixels")
        if not 0 <= int(row["label"]) < classes:
            raise DataError(f"data.dataset: {self.name} has the label {row['label']}; labels are 0 .. {classes - 1}")
        return pixels.tobytes() + bytes([int(row["label"])])

    def _rows(self, split: str) -> Iterator[Any]:
        """Images are decoded one by one, so loading and every row can fail."""
        try:
            datasets = importlib.import_module("datasets")
        except ImportError as error:
            raise DataError(
                f"data.dataset: {self.config.dataset} needs the package `datasets`, which this Python does not have. "
                "Run: pip install 'es-service[data]'; without a network use data.kind = \"digits\""
            ) from error
        try:
            yield from datasets.load_dataset(self.config.dataset, revision=self.config.revision, split=split)
        # Any type: `datasets` lets errors of its HTTP client, hub client, parsers and builders through.
        except Exception as error:
            raise DataError(
                f"data.dataset: cannot load split {split!r} of {self.name}: {type(error).__name__}: {error}\n"
                "Images need Pillow: pip install 'es-service[data]'. On a machine without network, one of:\n"
                f"- copy the files of {self.config.dataset} here (its parquet files, in a folder) and set data.dataset "
                "to that folder;\n"
                "- copy the HF_HOME folder (usually ~/.cache/huggingface) of a machine that has loaded it, and set "
                "HF_HOME to it and HF_HUB_OFFLINE=1;\n"
                '- use data.kind = "digits": scikit-learn\'s 8 x 8 digits, which are not MNIST.'
            ) from error
