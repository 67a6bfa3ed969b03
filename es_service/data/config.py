"""Which text a run reads: `DataConfig`, one variant for each kind of source."""

from __future__ import annotations

from pathlib import Path, PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class FrozenConfig(BaseModel):
    """Base of the configs of this package: immutable, no unknown fields, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class _DataConfig(FrozenConfig):
    held_out_percent: float = Field(default=5.0, ge=0.01, le=99.99)
    """Share of the documents, in percent, that is held out: those whose SHA-256 (first 8 bytes, little-endian)
    modulo 10000 is below 100 times this. Unused where the held-out documents are named."""

    content_hash: Hash | None = None
    """SHA-256 of the corpus, in hex, resolved at the start of a run. If set, any other corpus is refused."""

    max_bytes: int | None = Field(default=None, ge=1)
    """Keep only this many bytes of the training split (the first ones). None keeps all."""


class StdlibDataConfig(_DataConfig):
    """The source of the standard library of the running Python: real text without a download."""

    kind: Literal["stdlib"] = "stdlib"
    """Selects this variant."""


class FilesDataConfig(_DataConfig):
    """Local text files; each file is a document."""

    kind: Literal["files"] = "files"
    """Selects this variant."""

    paths: tuple[Path, ...] = Field(min_length=1)
    """Files and folders, in order; a relative path starts at the working directory. A folder stands for the UTF-8
    files in it that match `patterns`, by relative path; hidden and binary files are left out."""

    patterns: tuple[str, ...] = Field(default=("**/*",), min_length=1)
    """Glob patterns relative to each folder; a file that matches any of them is read."""

    held_out_paths: tuple[Path, ...] | None = Field(default=None, min_length=1)
    """Files and folders of the held-out split. They are taken out of the training split where `paths` covers them.
    None splits the documents by content hash."""

    @field_validator("patterns")
    @classmethod
    def _patterns_stay_inside(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            if not pattern or PurePath(pattern).is_absolute() or ".." in PurePath(pattern).parts:
                raise ValueError(
                    f"pattern {pattern!r} must be relative to a folder of `paths`, without '..'; for example '**/*.txt'"
                )
        return patterns


class HuggingFaceDataConfig(_DataConfig):
    """A text dataset of the Hugging Face hub, read with the `datasets` package."""

    kind: Literal["huggingface"] = "huggingface"
    """Selects this variant."""

    dataset: str = Field(min_length=1)
    """Name on the hub, such as JeanKaddour/minipile, or a local dataset folder."""

    subset: str | None = None
    """Configuration of the dataset, where it has several."""

    revision: str | None = None
    """Commit, tag or branch of the dataset. None is the newest at the first load on a machine."""

    train_split: str = Field(default="train", min_length=1)
    """Split that the training documents come from."""

    held_out_split: str | None = Field(default=None, min_length=1)
    """Split that the held-out documents come from. None splits `train_split` by content hash."""

    text_field: str = Field(default="text", min_length=1)
    """Column that holds the text."""


class DigitsDataConfig(_DataConfig):
    """The 1,797 images of handwritten digits that scikit-learn brings along, 8 x 8 in 17 shades. Not MNIST."""

    kind: Literal["digits"] = "digits"
    """Selects this variant."""

    held_out_percent: float = Field(default=20.0, ge=0.01, le=99.99)
    """Share of the images, in percent, that is held out: those whose SHA-256 (pixels and label; first 8 bytes,
    little-endian) modulo 10000 is below 100 times this."""


class MnistDataConfig(_DataConfig):
    """MNIST, 28 x 28 in 256 shades, read with the `datasets` package; its test images are held out."""

    kind: Literal["mnist"] = "mnist"
    """Selects this variant."""

    dataset: str = Field(default="ylecun/mnist", min_length=1)
    """Name on the hub, or a local dataset folder, with columns `image` and `label`."""

    revision: str | None = None
    """Commit, tag or branch of the dataset. None is the newest at the first load on a machine."""


TextDataConfig = StdlibDataConfig | FilesDataConfig | HuggingFaceDataConfig
ImageDataConfig = DigitsDataConfig | MnistDataConfig
DataConfig = Annotated[TextDataConfig | ImageDataConfig, Field(discriminator="kind")]
