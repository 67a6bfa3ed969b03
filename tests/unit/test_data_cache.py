"""The cache of corpora: what is stored, when it is read again, and what damage does."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from es_service.data import Cache, FilesDataConfig, default_cache_dir, load_corpus
from es_service.data.files import FilesSource
from es_service.data.writer import HEADER_BYTES, CorpusWriter, npy_header
from es_service.errors import DataError


@pytest.fixture
def config(tmp_path: Path) -> FilesDataConfig:
    """Two settled files: old enough for the index to trust their times."""
    for name, text in (("train", "training text"), ("held", "held-out text")):
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1e9, 1e9))
    return FilesDataConfig(paths=(tmp_path / "train",), held_out_paths=(tmp_path / "held",))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a source is read."""
    seen: list[int] = []
    documents = FilesSource.documents

    def counted(self: FilesSource) -> object:
        seen.append(1)
        return documents(self)

    monkeypatch.setattr(FilesSource, "documents", counted)
    return seen


def folder_of(cache: Path) -> Path:
    (folder,) = (cache / "corpora").iterdir()
    return folder


def test_layout(config: FilesDataConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    corpus = load_corpus(config, cache)
    folder = folder_of(cache)
    assert folder.name == corpus.content_hash
    assert {file.name for file in folder.iterdir()} == {"train.npy", "held_out.npy", "corpus.json", "verified.json"}
    assert np.load(folder / "train.npy", allow_pickle=False).tobytes() == b"\0training text"
    assert np.load(folder / "held_out.npy", allow_pickle=False).tobytes() == b"\0held-out text"
    about = json.loads((folder / "corpus.json").read_text())
    assert about["content_hash"] == corpus.content_hash
    assert about["name"] == corpus.name
    assert about["splits"]["train"]["bytes"] == corpus.train.size


@pytest.mark.parametrize("size", [0, 1, 12_345, 6_000_000_000])
def test_header_is_the_one_of_numpy(size: int, tmp_path: Path) -> None:
    header = npy_header(size)
    assert len(header) == HEADER_BYTES
    if size < 20_000:
        np.save(tmp_path / "a.npy", np.zeros(size, np.uint8))
        assert (tmp_path / "a.npy").read_bytes() == header + bytes(size)


def test_corpora_are_memory_mapped_and_read_only(config: FilesDataConfig, tmp_path: Path) -> None:
    corpus = load_corpus(config, tmp_path / "cache")
    assert isinstance(corpus.train.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        corpus.train[0] = 1


def test_the_second_start_reads_no_text(config: FilesDataConfig, tmp_path: Path, builds: list[int]) -> None:
    first = load_corpus(config, tmp_path / "cache")
    assert load_corpus(config, tmp_path / "cache").content_hash == first.content_hash
    assert len(builds) == 1


def test_a_changed_file_is_read_again(config: FilesDataConfig, tmp_path: Path, builds: list[int]) -> None:
    first = load_corpus(config, tmp_path / "cache")
    config.paths[0].write_text("training TEXT")
    second = load_corpus(config, tmp_path / "cache")
    assert second.train.tobytes() == b"\0training TEXT"
    assert second.content_hash != first.content_hash
    assert len(builds) == 2


def test_fresh_files_are_not_trusted_to_the_index(config: FilesDataConfig, tmp_path: Path, builds: list[int]) -> None:
    now = time.time()
    os.utime(config.paths[0], (now, now))
    for text in ("training TEXT", "TRAINING text"):  # the same size, and perhaps the same time
        config.paths[0].write_text(text)
        assert load_corpus(config, tmp_path / "cache").train.tobytes() == b"\0" + text.encode()
    assert len(builds) == 2


def test_a_copied_corpus_serves_a_machine_without_its_text(config: FilesDataConfig, tmp_path: Path) -> None:
    built = load_corpus(config, tmp_path / "cache").content_hash
    shutil.copytree(tmp_path / "cache" / "corpora", tmp_path / "elsewhere" / "corpora")
    config.paths[0].unlink()
    wanted = config.model_copy(update={"content_hash": built})
    assert load_corpus(wanted, tmp_path / "elsewhere").train.tobytes() == b"\0training text"
    with pytest.raises(DataError, match=r"data\.paths"):
        load_corpus(config, tmp_path / "elsewhere")


def flip_last_byte(folder: Path) -> None:
    data = bytearray((folder / "train.npy").read_bytes())
    data[-1] ^= 1
    (folder / "train.npy").write_bytes(bytes(data))


def flip_and_keep_the_time(folder: Path) -> None:
    stat = (folder / "train.npy").stat()
    flip_last_byte(folder)
    os.utime(folder / "train.npy", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def flip_and_forge_a_stamp_of_another_format(folder: Path) -> None:
    flip_last_byte(folder)
    (folder / "verified.json").write_text("[true]")


def cut(folder: Path) -> None:
    with (folder / "held_out.npy").open("r+b") as file:
        file.truncate(HEADER_BYTES + 3)


def cut_header(folder: Path) -> None:
    (folder / "held_out.npy").write_bytes(b"")


def other_dtype(folder: Path) -> None:
    np.save(folder / "train.npy", np.zeros(4, np.int32))


def remove_split(folder: Path) -> None:
    (folder / "held_out.npy").unlink()


def spoil_json(folder: Path) -> None:
    (folder / "corpus.json").write_text("{")


def json_of_another_shape(folder: Path) -> None:
    (folder / "corpus.json").write_text("[]")


@pytest.mark.parametrize(
    "damage",
    [
        flip_last_byte,
        flip_and_keep_the_time,
        flip_and_forge_a_stamp_of_another_format,
        cut,
        cut_header,
        other_dtype,
        remove_split,
        spoil_json,
        json_of_another_shape,
    ],
)
def test_a_damaged_corpus_is_built_again_with_one_warning(
    config: FilesDataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: Callable[[Path], None]
) -> None:
    built = load_corpus(config, tmp_path / "cache").content_hash
    damage(folder_of(tmp_path / "cache"))
    wanted = config.model_copy(update={"content_hash": built})
    with caplog.at_level(logging.WARNING):
        corpus = load_corpus(wanted, tmp_path / "cache")
    assert corpus.train.tobytes() == b"\0training text"
    assert corpus.held_out.tobytes() == b"\0held-out text"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "damaged and will be built again" in caplog.text
    assert folder_of(tmp_path / "cache").name == built  # and nothing else is left
    caplog.clear()
    load_corpus(wanted, tmp_path / "cache")
    assert not caplog.records


def test_every_flipped_byte_of_a_split_is_found(config: FilesDataConfig, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    built = load_corpus(config, cache).content_hash
    path = folder_of(cache) / "train.npy"
    sound = path.read_bytes()
    for position in range(len(sound)):
        path.write_bytes(sound[:position] + bytes([sound[position] ^ 0x10]) + sound[position + 1 :])
        assert Cache(cache).open(built) is None
    path.write_bytes(sound)
    assert Cache(cache).open(built) is not None


@pytest.mark.parametrize("entry", ["", "../../etc/passwd", "0" * 64, "/" * 64, b"\xff"])
def test_a_spoilt_index_only_costs_time(
    config: FilesDataConfig, tmp_path: Path, builds: list[int], entry: str | bytes
) -> None:
    load_corpus(config, tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "index").iterdir()
    index.write_bytes(entry if isinstance(entry, bytes) else entry.encode())
    assert load_corpus(config, tmp_path / "cache").train.tobytes() == b"\0training text"
    assert len(builds) == 2


def test_a_sound_corpus_is_hashed_once(
    config: FilesDataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_corpus(config, tmp_path / "cache")
    monkeypatch.setattr("es_service.data.cache.split_digest", lambda split: pytest.fail("hashed again"))
    load_corpus(config, tmp_path / "cache")


def test_a_failed_build_leaves_nothing(
    config: FilesDataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr(CorpusWriter, "finish", lambda self, name: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(DataError, match="disk full; set ES_SERVICE_CACHE to a writable folder"):
        load_corpus(config, cache)
    assert not list((cache / "corpora").iterdir())


def test_leftovers_of_a_killed_build_are_removed(
    config: FilesDataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("es_service.data.cache.shutil.rmtree", lambda *args, **options: None)
        patch.setattr(CorpusWriter, "finish", lambda self, name: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            load_corpus(config, cache)
    assert folder_of(cache).name.startswith("building-")
    built = load_corpus(config, cache).content_hash
    assert folder_of(cache).name == built


def test_a_cache_that_cannot_be_made_is_named(config: FilesDataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match=r"cannot build the corpus in the cache .*file.*set ES_SERVICE_CACHE"):
        load_corpus(config, tmp_path / "file")


def test_a_read_only_cache_serves(
    config: FilesDataConfig, tmp_path: Path, builds: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    load_corpus(config, tmp_path / "cache")
    (folder_of(tmp_path / "cache") / "verified.json").unlink()

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(path)

    monkeypatch.setattr("es_service.data.cache.write_atomically", refuse)
    assert load_corpus(config, tmp_path / "cache").train.size == 14
    assert len(builds) == 1


def test_many_workers_of_a_node_build_at_once(config: FilesDataConfig, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from es_service.data import FilesDataConfig, load_corpus\n"
        "config = FilesDataConfig.model_validate_json(sys.argv[1])\n"
        "print(load_corpus(config, pathlib.Path(sys.argv[2])).content_hash)\n"
    )
    command = [sys.executable, "-c", code, config.model_dump_json(), str(tmp_path / "cache")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    found = {worker.communicate(timeout=60)[0].strip() for worker in workers}
    assert found == {folder_of(tmp_path / "cache").name}


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: FilesDataConfig) -> None:
    monkeypatch.setenv("ES_SERVICE_CACHE", str(tmp_path / "from-environment"))
    assert default_cache_dir() == tmp_path / "from-environment"
    load_corpus(config)
    assert (tmp_path / "from-environment" / "corpora").is_dir()
    monkeypatch.delenv("ES_SERVICE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / ".cache" / "es-service"
