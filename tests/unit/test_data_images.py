"""Images as documents: the digits of scikit-learn, MNIST through a stand-in for `datasets`, what is refused."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from harness import train

from es_service.config import load
from es_service.data.config import DigitsDataConfig, MnistDataConfig
from es_service.data.documents import is_held_out
from es_service.data.examples import ImageExamples
from es_service.data.load import load_corpus
from es_service.errors import DataError


def test_the_digits_are_split_by_content(tmp_path):
    datasets = pytest.importorskip("sklearn.datasets")
    corpus = load_corpus(DigitsDataConfig(), tmp_path)
    train, held_out = (ImageExamples.of(split, 64, 10) for split in (corpus.train, corpus.held_out))
    assert len(train) + len(held_out) == 1797
    assert 0.17 < len(held_out) / 1797 < 0.23
    digits = datasets.load_digits()
    everything = {bytes(x.astype(np.uint8)) + bytes([y]) for x, y in zip(digits.data, digits.target, strict=True)}
    assert {row.tobytes() for row in held_out.records} == {text for text in everything if is_held_out(text, 20)}
    inputs, labels = train.take(np.arange(3))
    first = [
        i
        for i in range(20)
        if not is_held_out(digits.data[i].astype(np.uint8).tobytes() + bytes([digits.target[i]]), 20)
    ]
    assert np.array_equal(inputs, digits.data[first[:3]])
    assert labels.tolist() == digits.target[first[:3]].tolist()
    assert corpus.content_hash == load_corpus(DigitsDataConfig(content_hash=corpus.content_hash), tmp_path).content_hash


def images(count: int, size: int = 28) -> list[dict]:
    rng = np.random.default_rng(count)
    return [{"image": rng.integers(0, 256, (size, size), np.uint8), "label": n % 10} for n in range(count)]


def test_mnist_holds_its_test_images_out(tmp_path, monkeypatch):
    splits, asked = {"train": images(30), "test": images(7)}, []

    def load_dataset(name, revision, split):
        asked.append((name, revision, split))
        return splits[split]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    corpus = load_corpus(MnistDataConfig(revision="v1"), tmp_path)
    assert sorted(asked) == [("ylecun/mnist", "v1", "test"), ("ylecun/mnist", "v1", "train")]
    for split, rows in ((corpus.train, splits["train"]), (corpus.held_out, splits["test"])):
        found = ImageExamples.of(split, 784, 10)
        assert found.records[:, -1].tolist() == [row["label"] for row in rows]
        assert np.array_equal(found.records[:, :-1].reshape(-1, 28, 28), [row["image"] for row in rows])


@pytest.fixture
def mnist_folder(tmp_path):
    """A folder as the hub has MNIST: parquet files of PNG images with their labels, here 300 and 60 of noise."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=10)})
    folder, splits = tmp_path / "mnist", {"train": images(300), "test": images(60)}
    for name, rows in splits.items():
        split = datasets.Dataset.from_list(rows, features=features)
        split.to_parquet(folder / "mnist" / f"{name}-00000-of-00001.parquet")
    return folder, splits


def test_a_local_folder_of_mnist_trains(mnist_folder, tmp_path, monkeypatch):
    """With the real `datasets`: what someone without a network has, who copied the files."""
    pytest.importorskip("torch")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "hub" / "datasets"))
    folder, splits = mnist_folder
    changes = [
        f"data.dataset='{folder}'", "population=15", "feeding.size=40", "model.width=32", "deployment.generations=3",
        f"deployment.runs_dir='{tmp_path / 'runs'}'", "deployment.detach=true",
    ]  # fmt: skip
    run = train(load("noise-step-mnist", changes))
    assert len(run.contents.commits) == 3
    rows = [row for row in run.directory.metrics() if row["kind"] == "evaluation"]
    assert [row["generation"] for row in rows] == [0, 3]
    corpus = load_corpus(run.config.data, tmp_path / "again")
    assert corpus.content_hash == run.config.data.content_hash
    for split, given in ((corpus.train, splits["train"]), (corpus.held_out, splits["test"])):
        found = ImageExamples.of(split, 784, 10)
        assert np.array_equal(found.records[:, :-1].reshape(-1, 28, 28), [row["image"] for row in given])
        assert found.records[:, -1].tolist() == [row["label"] for row in given]


def test_other_images_than_mnist_are_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: images(3, 27)))
    with pytest.raises(DataError, match="not of 28 x 28"):
        load_corpus(MnistDataConfig(), tmp_path)


@pytest.mark.parametrize(
    ("row", "problem"),
    [({"img": 1, "label": 2}, "has columns img, label; it needs"), (images(1)[0] | {"label": 300}, "the label 300"),
     (images(1)[0] | {"label": -1}, "the label -1")],
)  # fmt: skip
def test_rows_that_are_no_labelled_digits_are_refused(row, problem, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: [row]))
    with pytest.raises(DataError, match=problem):
        load_corpus(MnistDataConfig(), tmp_path)


def test_images_that_cannot_be_decoded_name_the_remedy(tmp_path, monkeypatch):
    """`datasets` decodes an image when its row is read, with a package of its own extra `vision`."""

    def rows(*_, **__):
        raise ImportError("To support decoding images, please install 'Pillow'.")
        yield

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=rows))
    with pytest.raises(DataError, match=r"please install 'Pillow'(.|\n)*es-service\[data\]"):
        load_corpus(MnistDataConfig(), tmp_path)
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert [text for text in extras["data"] if text.startswith("datasets[vision]")]


def test_without_a_network_the_digits_are_offered(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=offline))
    with pytest.raises(DataError, match=r"ConnectionError: no route(.|\n)*data.dataset(.|\n)*\"digits\""):
        load_corpus(MnistDataConfig(), tmp_path)


@pytest.mark.parametrize(
    ("module", "config"), [("datasets", MnistDataConfig()), ("sklearn.datasets", DigitsDataConfig())]
)
def test_a_missing_package_is_named_with_its_extra(module, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=r"pip install 'es-service\[(data|torch)\]'"):
        load_corpus(config, tmp_path)


@pytest.mark.parametrize("split", [b"", b"\0" + b"\1" * 4, b"\0\1\1\7", b"\1\1\1\1"])
def test_a_corpus_that_holds_no_images(split):
    with pytest.raises(DataError):
        ImageExamples.of(np.frombuffer(split, np.uint8), 2, 3)
    assert len(ImageExamples.of(np.frombuffer(b"\0\5\6\2", np.uint8), 2, 3)) == 1
