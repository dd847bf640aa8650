"""What has to stay free is counted in bytes, inodes and shares, and looked at cheaply."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.database import Database
from storage.space import Disk, Least, Level, Marks, Room, disks_of
from tests.small_disk import fill, small_disk

_NONE = Least()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("1000", Least(1000)),
        ("512 MB", Least(512_000_000)),
        ("1.5GiB", Least(3 << 29)),
        ("5 %", Least(share=0.05)),
        ("0", Least(0)),
    ],
)
def test_an_amount_is_a_number_a_number_with_a_unit_or_a_share(written: str, expected: Least) -> None:
    assert Least.parse(written) == expected


@pytest.mark.parametrize("written", ["", "-1", "5 apples", "100 %", "MB", "1 mb"])
def test_what_is_no_amount_is_said_to_be_none(written: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        Least.parse(written)


def test_a_share_of_a_disk_is_of_its_whole_size() -> None:
    assert Least.parse("5 %").of(2000) == 100
    assert Least(300).of(2000) == 300


def test_the_defaults_ask_little_of_an_ordinary_disk() -> None:
    marks = Marks()
    whole = 10 * 10**12
    assert marks.refuse.of(whole) < whole * 0.001
    assert marks.refuse.of(whole) < marks.warn.of(whole) < whole * 0.001


def test_bytes_and_inodes_are_judged_and_room_returns_by_itself(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size="16m", inodes=100) as disk:
        marks = Marks(warn=Least(8 << 20), refuse=Least(4 << 20), warn_inodes=Least(60), refuse_inodes=Least(30))
        room = Room([Disk("data_dir", disk)], marks)

        def level() -> Level:
            return room.readings()[0].level

        assert level() is Level.ENOUGH
        fill(disk / "a", 9 << 20)
        assert level() is Level.SCARCE
        fill(disk / "b", 4 << 20)
        assert level() is Level.REFUSED
        assert "bytes are free" in room.readings()[0].words
        (disk / "a").unlink()
        assert level() is Level.ENOUGH
        for number in range(50):
            (disk / f"f{number}").touch()
        assert level() is Level.SCARCE
        for number in range(50, 80):
            (disk / f"f{number}").touch()
        assert level() is Level.REFUSED
        assert "inodes are free" in room.readings()[0].words


def test_a_look_at_the_disk_is_shared_by_what_comes_within_a_moment(tmp_path: Path) -> None:
    time = 0.0
    with small_disk(tmp_path / "disk", size="16m") as disk:
        marks = Marks(warn=_NONE, refuse=Least(8 << 20), warn_inodes=_NONE, refuse_inodes=_NONE)
        room = Room([Disk("data_dir", disk)], marks, lambda: time)
        assert room.refusal() == ""
        assert room.refusal(9 << 20)
        fill(disk / "a", 12 << 20)
        time = 0.05
        assert room.refusal() == ""
        time = 0.11
        assert room.refusal()
        (disk / "a").unlink()
        time = 0.3
        assert room.refusal() == ""


def test_a_disk_that_cannot_be_asked_is_an_error_and_not_room(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Room([Disk("data_dir", tmp_path / "gone")]).refusal()


def test_a_database_on_another_disk_is_watched_too(tmp_path: Path, empty_url: str) -> None:
    database = Database(empty_url)
    with small_disk(tmp_path / "disk", size="1m") as disk:
        found = disks_of(disk, database)
    database.close()
    assert [one.name for one in found] == ["data_dir", "database"]
    assert found[1].folder.is_absolute()


def test_a_database_on_the_same_disk_is_the_same_disk(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'overread.sqlite'}")
    assert [one.name for one in disks_of(tmp_path, database)] == ["data_dir"]
    database.close()
