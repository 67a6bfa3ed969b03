"""Hugging Face datasets through a stand-in for the package `datasets`, and without the package."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from es_service.data import HuggingFaceDataConfig, load_corpus
from es_service.errors import DataError


@dataclass
class Rows:
    """The two members of `datasets.Dataset` that are used."""

    texts: list[Any]
    column_names: list[str] = field(default_factory=lambda: ["text", "meta"])

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self.texts), batch_size):
            yield dict.fromkeys(self.column_names, self.texts[start : start + batch_size])


@dataclass
class Hub:
    splits: dict[str, Rows]
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def load_dataset(self, name: str, subset: str | None, *, revision: str | None, split: str) -> Rows:
        self.calls.append((name, subset, revision, split))
        if split not in self.splits:
            raise ConnectionError(f"Couldn't reach {name!r} on the Hub")
        return self.splits[split]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    texts = [f"document {number} \u00e9" for number in range(2500)]
    hub = Hub({"train": Rows(texts), "validation": Rows(["held", "", None, "out"])})
    module = ModuleType("datasets")
    module.load_dataset = hub.load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return hub


def minipile(**more: object) -> HuggingFaceDataConfig:
    tree = {"dataset": "JeanKaddour/minipile", "held_out_split": "validation", **more}
    return HuggingFaceDataConfig.model_validate(tree)


def test_splits_in_order(hub: Hub, tmp_path: Path) -> None:
    corpus = load_corpus(minipile(subset="s", revision="abc"), tmp_path)
    assert corpus.train.tobytes() == "".join(f"\0document {number} \u00e9" for number in range(2500)).encode()
    assert corpus.held_out.tobytes() == b"\0held\0out"
    assert corpus.name == "JeanKaddour/minipile s abc"
    assert hub.calls == [("JeanKaddour/minipile", "s", "abc", split) for split in ("validation", "train")]


def test_split_by_content_hash_where_there_is_one_split(hub: Hub, tmp_path: Path) -> None:
    corpus = load_corpus(minipile(held_out_split=None), tmp_path)
    train, held_out = (set(split.tobytes().split(b"\0")[1:]) for split in (corpus.train, corpus.held_out))
    assert len(train) + len(held_out) == 2500
    assert 60 < len(held_out) < 200
    assert [call[3] for call in hub.calls] == ["train"]


def test_a_second_start_does_not_ask_the_hub(hub: Hub, tmp_path: Path) -> None:
    first = load_corpus(minipile(), tmp_path)
    hub.calls.clear()
    assert load_corpus(minipile(), tmp_path).content_hash == first.content_hash
    assert hub.calls == []


def test_a_local_dataset_folder_is_always_read_again(hub: Hub, tmp_path: Path) -> None:
    config = minipile(dataset=str(tmp_path))
    load_corpus(config, tmp_path / "cache")
    hub.splits["validation"] = Rows(["changed"])
    assert load_corpus(config, tmp_path / "cache").held_out.tobytes() == b"\0changed"


def test_max_bytes_stops_reading(hub: Hub, tmp_path: Path) -> None:
    endless = Rows(["text"])
    endless.iter = lambda batch_size: iter(lambda: {"text": ["abc"] * batch_size}, None)  # type: ignore[method-assign]
    hub.splits["train"] = endless
    corpus = load_corpus(minipile(max_bytes=10), tmp_path)
    assert corpus.train.tobytes() == b"\0abc\0abc\0a"


def test_a_wrong_column_is_named_with_those_there_are(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.text_field: .* no column 'content'; set it to one of text, meta"):
        load_corpus(minipile(text_field="content"), tmp_path)


def test_a_column_that_is_not_text(hub: Hub, tmp_path: Path) -> None:
    hub.splits["train"] = Rows([1])
    with pytest.raises(DataError, match=r"^data\.text_field: column 'text' holds int"):
        load_corpus(minipile(), tmp_path)


def test_an_empty_held_out_split_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.splits["validation"] = Rows([""])
    with pytest.raises(DataError, match=r"^data\.held_out_split: no document .* in the held-out split"):
        load_corpus(minipile(), tmp_path)


def assert_says_how_to_provide_the_files(message: str, cache: Path) -> None:
    for remedy in ("HF_HOME", "HF_HUB_OFFLINE=1", ".npy", str(cache / "corpora"), "data.content_hash", "data.paths"):
        assert remedy in message


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    hub.splits.clear()
    with pytest.raises(DataError) as caught:
        load_corpus(minipile(), tmp_path)
    message = str(caught.value)
    assert message.startswith("data.dataset: cannot load split 'validation' of JeanKaddour/minipile: ConnectionError")
    assert_says_how_to_provide_the_files(message, tmp_path)
    assert isinstance(caught.value.__cause__, ConnectionError)


def test_no_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # what an import of a missing package meets
    with pytest.raises(DataError, match=r"^data\.dataset: .*pip install 'es-service\[data\]'") as caught:
        load_corpus(minipile(), tmp_path)
    assert_says_how_to_provide_the_files(str(caught.value), tmp_path)


def test_a_cached_corpus_needs_neither_package_nor_network(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = load_corpus(minipile(), tmp_path).content_hash
    monkeypatch.setitem(sys.modules, "datasets", None)
    for config in (minipile(), minipile(dataset="any/other", content_hash=built)):
        assert load_corpus(config, tmp_path).content_hash == built
