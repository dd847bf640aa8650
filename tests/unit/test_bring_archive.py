"""A folder or an archive that somebody brings: it becomes plain files below one new folder, or nothing at all."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from inference.bring.archive import Limits, take_in
from inference.errors import CardError


def _zip(path: Path, members: dict[str, bytes], **kinds: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = (kinds.get(name.rpartition("/")[2], stat.S_IFREG) | 0o644) << 16
            archive.writestr(info, content)
    return path


def _broken(path: Path) -> Path:
    _zip(path, {"model.pt": os.urandom(5000)})
    content = bytearray(path.read_bytes())
    content[2000] ^= 0xFF
    path.write_bytes(content)
    return path


def _lying(path: Path) -> Path:
    """An archive whose directory says that a file is smaller than it unpacks to."""
    _zip(path, {"model.pt": b"ab" * 5000})
    content = path.read_bytes()
    assert content.count((10000).to_bytes(4, "little")) == 2
    path.write_bytes(content.replace((10000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    return path


def _everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_folder_is_copied_without_what_is_no_part_of_a_model(tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    (source / "configs").mkdir(parents=True)
    (source / ".git").mkdir()
    (source / ".git" / "HEAD").write_text("ref")
    (source / "configs" / "metadata.json").write_text("{}")
    (source / "weights.bin").write_bytes(b"w" * 10)
    (source / "same.bin").symlink_to("weights.bin")
    done: list[tuple[int, int]] = []
    names = take_in(source, tmp_path / "taken", progress=lambda now, total: done.append((now, total)))
    assert names == ["configs/metadata.json", "same.bin", "weights.bin"]
    assert not (tmp_path / "taken" / "same.bin").is_symlink()
    assert (tmp_path / "taken" / "same.bin").read_bytes() == b"w" * 10
    assert done[-1] == (22, 22)


def test_an_archive_of_one_folder_is_unpacked_as_that_folder(tmp_path: Path) -> None:
    source = _zip(tmp_path / "b.zip", {"spleen/configs/metadata.json": b"{}", "spleen/model.pt": b"x"})
    assert take_in(source, tmp_path / "taken") == ["configs/metadata.json", "model.pt"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: _zip(path, {"a/ok": b"1", "../evil": b"1"}), "leads out of the folder"),
        (lambda path: _zip(path, {"a/../../evil": b"1"}), "leads out of the folder"),
        (lambda path: _zip(path, {"/etc/evil": b"1"}), "no name below the folder"),
        (lambda path: _zip(path, {"C:/evil": b"1"}), "no name below the folder"),
        (lambda path: _zip(path, {"a\\..\\..\\evil": b"1"}), "no name below the folder"),
        (lambda path: _zip(path, {"link": b"/etc/passwd"}, link=stat.S_IFLNK), "a link or a device"),
        (lambda path: _zip(path, {"pipe": b""}, pipe=stat.S_IFIFO), "a link or a device"),
        (lambda path: _zip(path, {"model.pt": b"1", "MODEL.pt": b"2"}), "twice"),
        (lambda path: _zip(path, {"model": b"1", "model/x": b"2"}), "cannot be unpacked"),
        (lambda path: _zip(path, {"a\x1bb": b"1"}), "no name that a model's file may have"),
        (lambda path: _zip(path, {"bomb.bin": bytes(40 << 20)}), "times its packed size"),
        (lambda path: _zip(path, {str(number): b"" for number in range(60)}), "at most 50 files"),
        (lambda path: _zip(path, {"large.bin": os.urandom(1000), "more.bin": bytes(64 << 20)}), "bytes are taken in"),
        (lambda path: _zip(path, {"/".join(["a" * 200] * 24): b"1"}), "cannot be unpacked"),
        (_broken, "cannot be unpacked"),
        (_lying, "cannot be unpacked|more bytes than"),
        (lambda path: path.write_bytes(b"no archive") and path, "neither a folder nor a zip archive"),
    ],
)
def test_an_archive_that_is_not_plain_files_is_refused_and_nothing_of_it_stays(
    tmp_path: Path, make: Callable[[Path], Path], said: str
) -> None:
    inner = tmp_path / "in"
    inner.mkdir()
    source = make(inner / "b.zip")
    place = tmp_path / "models"
    place.mkdir()
    with pytest.raises(CardError, match=said):
        take_in(source, place / "taken", limits=Limits(size=48 << 20, files=50))
    assert _everything(tmp_path) == {"in", "in/b.zip", "models"}


@pytest.mark.parametrize("kind", ["file", "folder", "through a link within", "fifo"])
def test_a_folder_with_a_link_out_of_it_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("s")
    source = tmp_path / "bundle"
    source.mkdir()
    if kind == "file":
        (source / "model.pt").symlink_to(tmp_path / "secret" / "key")
    elif kind == "folder":
        (source / "models").symlink_to(tmp_path / "secret")
    elif kind == "fifo":
        os.mkfifo(source / "model.pt")
    else:
        (source / "a").symlink_to("../secret/key")
        (source / "b").symlink_to("a")
    with pytest.raises(CardError, match=r"leads out|neither a file"):
        take_in(source, tmp_path / "taken")
    assert not (tmp_path / "taken").exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_link_that_takes_a_files_place_while_a_folder_is_read_is_not_followed_out_of_it(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.pt").write_text("s")
    source = tmp_path / "bundle"
    (source / "models").mkdir(parents=True)
    (source / "a.pt").write_text("a")
    (source / "models" / "key.pt").write_text("w")

    def swap(done: int, total: int) -> None:
        if done > 1:
            return
        left, there = (
            (source / "models", "secret") if kind == "folder" else (source / "models" / "key.pt", "secret/key.pt")
        )
        left.rename(tmp_path / "before")
        left.symlink_to(tmp_path / there)

    with pytest.raises(CardError, match="changed while it was read"):
        take_in(source, tmp_path / "taken", progress=swap)
    assert (tmp_path / "before").exists()
    assert not (tmp_path / "taken").exists()
