"""Corpora from the standard library and from files: bytes, splits, hash, errors."""

from __future__ import annotations

import ast
import errno
import hashlib
from pathlib import Path

import numpy as np
import pytest

from es_service.data import Corpus, FilesDataConfig, StdlibDataConfig, baselines, evaluation_rows, load_corpus
from es_service.data.documents import is_held_out
from es_service.data.stdlib import StdlibSource
from es_service.errors import DataError


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(StdlibDataConfig(), tmp_path_factory.mktemp("cache"))


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def naive_hash(train: bytes, held_out: bytes) -> str:
    framed = b"es-service corpus 1\n"
    for split in (train, held_out):
        framed += len(split).to_bytes(8, "little") + hashlib.sha256(split).digest()
    return hashlib.sha256(framed).hexdigest()


def documents(split: np.ndarray) -> list[bytes]:
    return split.tobytes().split(b"\0")[1:]


# The standard library


def test_stdlib_is_python_source_split_by_content(stdlib: Corpus) -> None:
    train, held_out = documents(stdlib.train), documents(stdlib.held_out)
    assert len(train) > 300
    assert all(is_held_out(text, 5.0) for text in held_out)
    assert not any(is_held_out(text, 5.0) for text in train)
    assert Path(ast.__file__).read_bytes() in train + held_out
    assert all(text for text in train + held_out)


def test_stdlib_figures_are_those_of_the_docs(stdlib: Corpus) -> None:
    assert stdlib.train.size > 7_000_000
    found = baselines(stdlib, evaluation_rows(stdlib.held_out, rows=1024, segment_bytes=100))
    assert found.unigram == pytest.approx(4.73, abs=0.25)
    assert found.bigram == pytest.approx(3.54, abs=0.15)
    assert found.gzip == pytest.approx(2.0, abs=0.3)


def test_stdlib_leaves_out_packages_tests_and_build_records(tmp_path: Path) -> None:
    kept = ["abc.py", "b/__init__.py", "b/a.py", "b.py", "encodings/x.py"]
    left = ["site-packages/x.py", "dist-packages/x.py", "test/x.py", "b/tests/x.py", "__pycache__/x.py", "x.txt"]
    left += ["_sysconfigdata__linux.py", "config-3.11-x86_64/x.py", "idlelib/idle_test/x.py"]
    root = write(tmp_path, dict.fromkeys(kept + left, "x = 1\n"))
    (root / "gone.py").symlink_to(root / "nowhere")
    found = [file.relative_to(root).as_posix() for file in StdlibSource(root)._files()]
    assert found == ["abc.py", "b.py", "b/__init__.py", "b/a.py", "encodings/x.py"]


def test_stdlib_with_undecodable_files(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.py": "a", "b.py": b"\xff\xfe", "c.py": "c\u00e9"})
    assert [document.text for document in StdlibSource(root).documents()] == [b"a", "c\u00e9".encode()]


# Files


def files_config(*paths: Path, **more: object) -> FilesDataConfig:
    return FilesDataConfig.model_validate({"paths": paths, **more})


def test_documents_become_bytes_with_a_zero_before_each(tmp_path: Path) -> None:
    root = write(tmp_path / "text", {"b.txt": "beta", "a/x.txt": "\u00e4", "empty.txt": "", "val.txt": "held"})
    corpus = load_corpus(files_config(root, held_out_paths=[root / "val.txt"]), tmp_path / "cache")
    assert corpus.train.tobytes() == b"\0" + "\u00e4".encode() + b"\0beta"  # by relative path; val.txt taken out
    assert corpus.held_out.tobytes() == b"\0held"
    assert corpus.train.dtype == corpus.held_out.dtype == np.uint8
    assert corpus.content_hash == naive_hash(corpus.train.tobytes(), corpus.held_out.tobytes())
    assert Corpus.of(corpus.train, corpus.held_out, "again").content_hash == corpus.content_hash


def test_the_split_is_by_content_hash_and_copies_stay_together(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(400)]
    root = write(tmp_path / "text", {f"{copy}/{text}": text for text in texts for copy in "ab"})
    corpus = load_corpus(files_config(root, held_out_percent=12.5), tmp_path / "cache")
    chosen = [t for t in texts if int.from_bytes(hashlib.sha256(t.encode()).digest()[:8], "little") % 10000 < 1250]
    assert 20 < len(chosen) < 90
    assert sorted(documents(corpus.held_out)) == sorted([t.encode() for t in chosen] * 2)
    assert not {t.encode() for t in chosen} & set(documents(corpus.train))


def test_order_does_not_depend_on_the_file_system_and_moving_keeps_the_hash(tmp_path: Path) -> None:
    names = [f"{number:02}.txt" for number in range(40)]
    first = write(tmp_path / "one", {name: name for name in names})
    second = write(tmp_path / "two", {name: name for name in reversed(names)})
    hashes = {
        load_corpus(files_config(root, held_out_percent=30), tmp_path / "cache").content_hash
        for root in (first, second)
    }
    assert len(hashes) == 1


def test_patterns_hidden_binary_and_repeated_files(tmp_path: Path) -> None:
    held = write(tmp_path / "held", {"h": "h"})
    files = {"a.txt": "a", "b.md": "b", "c/d.txt": "d", ".git/e.txt": "e", "f.txt": b"\xff", "g.txt": b"x\0y"}
    root = write(tmp_path / "text", files)
    cases = {(): b"\0a\0b\0d", ("**/*.txt",): b"\0a\0d", ("*.md", "c/*"): b"\0b\0d"}
    for patterns, expected in cases.items():
        more = {"patterns": patterns} if patterns else {}
        config = files_config(root / "a.txt", root, root, held_out_paths=[held / "h"], **more)
        text = load_corpus(config, tmp_path / "cache").train.tobytes()
        assert text == (expected if expected.startswith(b"\0a") else b"\0a" + expected)


def test_max_bytes_keeps_a_prefix_of_training_and_all_of_held_out(tmp_path: Path) -> None:
    root = write(tmp_path / "text", {f"{number:02}": f"text {number:02} " * 5 for number in range(60)})
    for held_out in ({"held_out_percent": 30}, {"held_out_paths": [root / "07"]}):
        whole = load_corpus(files_config(root, **held_out), tmp_path / "cache")
        part = load_corpus(files_config(root, max_bytes=333, **held_out), tmp_path / "cache")
        assert part.train.tobytes() == whole.train.tobytes()[:333]
        assert part.held_out.tobytes() == whole.held_out.tobytes()
        assert part.content_hash != whole.content_hash
        more = load_corpus(files_config(root, max_bytes=10**9, **held_out), tmp_path / "cache")
        assert more.content_hash == whole.content_hash


@pytest.mark.parametrize("field", ["paths", "held_out_paths"])
def test_a_missing_path_is_named(tmp_path: Path, field: str) -> None:
    root = write(tmp_path / "text", {"a": "a"})
    config = files_config(**{"paths": [root], field: [root, tmp_path / "nowhere"]})
    with pytest.raises(DataError, match=rf"^data\.{field}: there is no file or folder .*nowhere .*; correct the path"):
        load_corpus(config, tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        ({".hidden": "x"}, {}, r"^data\.paths: there is no text in files"),
        ({"a": ""}, {}, r"^data\.paths: there is no text in files"),
        ({"a": "a"}, {"held_out_percent": 0.01}, r"^data\.held_out_percent: no document .* in the held-out split"),
        ({"a": "a"}, {"held_out_percent": 99.99}, r"^data\.held_out_percent: no document .* in the training split"),
    ],
)
def test_an_empty_split_names_the_field_and_the_remedy(
    tmp_path: Path, files: dict[str, bytes | str], more: dict[str, object], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load_corpus(files_config(write(tmp_path / "text", files), **more), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "corpora").iterdir())


def test_all_text_held_out_by_name(tmp_path: Path) -> None:
    root = write(tmp_path / "text", {"a": "a"})
    with pytest.raises(DataError, match=r"^data\.held_out_paths: no document .* in the training split"):
        load_corpus(files_config(root, held_out_paths=[root]), tmp_path / "cache")


def test_a_named_file_that_is_binary_is_an_error(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.bin": b"\xff\xff"})
    with pytest.raises(DataError, match=r"a\.bin is not UTF-8 text"):
        load_corpus(files_config(root / "a.bin"), tmp_path / "cache")


def test_another_content_hash_is_refused_and_says_what_to_do(tmp_path: Path) -> None:
    root = write(tmp_path / "text", {"a": "a", "val": "held"})
    config = files_config(root, held_out_paths=[root / "val"])
    found = load_corpus(config, tmp_path / "cache").content_hash
    assert load_corpus(config.model_copy(update={"content_hash": found}), tmp_path / "cache").content_hash == found
    other = config.model_copy(update={"content_hash": "0" * 64})
    message = rf"^data\.content_hash: the run began with 0{{64}}, and this machine has {found} .*Copy the folder"
    with pytest.raises(DataError, match=message):
        load_corpus(other, tmp_path / "cache")


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    root = write(tmp_path / "text", {"a": "a"})
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"cannot read .*/a: Permission denied"):
        load_corpus(files_config(root), tmp_path / "cache")
