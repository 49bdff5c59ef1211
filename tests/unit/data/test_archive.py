"""Hostile and broken archives are refused before a byte is written; honest ones come out byte for byte."""

import copy
import errno
import hashlib
import os
import random
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from finetune.data.archive import Limits, unpack
from finetune.errors import SourceError

pytestmark = pytest.mark.unit

GOOD = b"text,label\nfine,1\n"


def wheel_of(
    path: Path, *members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def entry(name: str, *, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def test_members_come_out_byte_for_byte_with_their_hashes(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(3 << 20)  # longer than one chunk
    archive = wheel_of(tmp_path / "a.whl", ("p/model/w.bin", noise), ("p/model/c.json", b"{}"), ("p/other.py", b"x"))
    out = tmp_path / "out"
    digests = unpack(archive, ["p/model/"], out)
    assert digests == {
        "p/model/w.bin": hashlib.sha256(noise).hexdigest(),
        "p/model/c.json": hashlib.sha256(b"{}").hexdigest(),
    }
    assert (out / "p/model/w.bin").read_bytes() == noise
    assert sorted(path.name for path in out.rglob("*") if path.is_file()) == ["c.json", "w.bin"]


def test_only_named_members_and_matching_files_are_unpacked(tmp_path: Path) -> None:
    archive = wheel_of(
        tmp_path / "a.whl", ("p/a.csv", GOOD), ("p/m/x.py", b"boom"), ("p/m/x.json", b"{}"), ("q.csv", b"q")
    )
    digests = unpack(archive, ["p/a.csv", "p/m/"], tmp_path / "out", only=("*.json",))
    assert sorted(digests) == ["p/a.csv", "p/m/x.json"]


def test_nothing_unpacked_is_executable(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", (entry("run.sh", mode=stat.S_IFREG | 0o4777), b"#!/bin/sh"))
    unpack(archive, ["run.sh"], tmp_path / "out")
    assert not (tmp_path / "out/run.sh").stat().st_mode & 0o7111


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../evil.txt", "leaves the folder"),
        ("p/../../evil.txt", "leaves the folder"),
        ("p/./evil.txt", "leaves the folder"),
        ("p//evil.txt", "leaves the folder"),
        ("..", "leaves the folder"),
        ("../", "leaves the folder"),
        ("/etc/evil.txt", "absolute name"),
        ("//host/share/evil", "absolute name"),
        ("C:/evil.txt", "absolute name"),
        ("p\\..\\evil.txt", "absolute name"),
        ("p/stream.txt:hidden", "absolute name"),
        ("p/evil\n.txt", "control characters"),
        ("p/\x1b[2Jevil.txt", "control characters"),
        ("p/aux.json", "not every system"),
        ("p/name.", "not every system"),
        ("p/" + "n" * 256, "not every system"),
    ],
)
def test_names_that_lead_elsewhere_refuse_the_whole_archive(tmp_path: Path, name: str, reason: str) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD), (name, b"evil"))
    with pytest.raises(SourceError, match=reason):
        unpack(archive, ["good.csv"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.whl"]


def test_a_name_cut_by_a_null_byte_is_refused(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csvXevil", GOOD))
    archive.write_bytes(archive.read_bytes().replace(b"good.csvXevil", b"good.csv\0evil"))
    with pytest.raises(SourceError, match="control characters"):
        unpack(archive, ["good.csv"], tmp_path / "out")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK, stat.S_IFDIR])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD), (entry("p/link", mode=kind | 0o777), b"/etc/passwd"))
    with pytest.raises(SourceError, match="link or a special file"):
        unpack(archive, ["good.csv"], tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD), ("good.csv", b"another"))
    with pytest.raises(SourceError, match=r"'good\.csv' twice"):
        unpack(archive, ["good.csv"], tmp_path / "out")


@pytest.mark.parametrize("pair", [("p/A.csv", "p/a.csv"), ("p/\u00e9.csv", "p/e\u0301.csv")])
def test_two_names_that_are_one_file_on_some_systems_are_refused(tmp_path: Path, pair: tuple[str, str]) -> None:
    archive = wheel_of(tmp_path / "a.whl", *((name, GOOD) for name in pair))
    with pytest.raises(SourceError, match="one file on some systems"):
        unpack(archive, ["p/"], tmp_path / "out")


def test_a_name_that_is_a_file_and_a_folder_is_refused(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("p/x", GOOD), ("p/x/y", GOOD))
    with pytest.raises(SourceError, match="file and a folder"):
        unpack(archive, ["p/"], tmp_path / "out")


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD))
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the encryption flag of the central directory's entry
    archive.write_bytes(content)
    with pytest.raises(SourceError, match="encrypted"):
        unpack(archive, ["good.csv"], tmp_path / "out")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compression_that_wheels_do_not_use_is_refused(tmp_path: Path, method: int) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD), compression=method)
    with pytest.raises(SourceError, match="compression method"):
        unpack(archive, ["good.csv"], tmp_path / "out")


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("bomb.csv", bytes(20 << 20)))
    assert archive.stat().st_size < 100_000
    with pytest.raises(SourceError, match="more than 200 times"):
        unpack(archive, ["bomb.csv"], tmp_path / "out")


def test_a_small_file_of_zeros_is_no_bomb(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("zeros.csv", bytes(1 << 20)))
    unpack(archive, ["zeros.csv"], tmp_path / "out")
    assert (tmp_path / "out/zeros.csv").stat().st_size == 1 << 20


def test_a_member_that_unpacks_to_more_than_it_declares_is_refused(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("bomb.csv", bytes(20 << 20)))
    content = bytearray(archive.read_bytes())
    at = content.index(b"PK\x01\x02")
    content[at + 24 : at + 28] = struct.pack("<I", 1000)  # declared size in the central directory
    archive.write_bytes(content)
    with pytest.raises(SourceError, match="can be read"):
        unpack(archive, ["bomb.csv"], tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_overlapping_members_are_refused(tmp_path: Path) -> None:
    """Fifield's bomb: entries of the directory that all point at the same packed bytes."""
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a0", random.Random(0).randbytes(4096))
        for number in range(1, 9):
            clone = copy.copy(opened.infolist()[0])
            clone.filename = clone.orig_filename = f"a{number}"
            opened.filelist.append(clone)
    with pytest.raises(SourceError, match="overlap"):
        unpack(archive, ["a0"], tmp_path / "out")


@pytest.mark.parametrize(
    ("limits", "reason"),
    [(Limits(members=1), "2 members, more than 1"), (Limits(unpacked_bytes=20), "would unpack to")],
)
def test_size_limits(tmp_path: Path, limits: Limits, reason: str) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("p/a.csv", GOOD), ("p/b.csv", GOOD))
    with pytest.raises(SourceError, match=reason):
        unpack(archive, ["p/"], tmp_path / "out", limits=limits)


def test_a_full_disk_is_noticed_before_it_is_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD))
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=len(GOOD) - 1))
    with pytest.raises(SourceError, match="No space left"):
        unpack(archive, ["good.csv"], tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_disk_that_fills_while_writing_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(SourceError, match="No space left") as caught:
        unpack(archive, ["good.csv"], tmp_path / "out")
    assert "FINETUNE_CACHE" in caught.value.fix
    assert not list((tmp_path / "out").iterdir())


def test_a_link_in_the_target_folder_is_not_followed(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("p/good.csv", GOOD))
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out/p").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SourceError, match="through a link"):
        unpack(archive, ["p/good.csv"], tmp_path / "out")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_link_with_a_members_name_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", GOOD))
    (tmp_path / "out").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "out/good.csv").symlink_to(tmp_path / "precious")
    unpack(archive, ["good.csv"], tmp_path / "out")
    assert (tmp_path / "out/good.csv").read_bytes() == GOOD
    assert (tmp_path / "precious").read_text() == "mine"


def test_a_missing_member_is_named_with_the_nearest_one(tmp_path: Path) -> None:
    archive = wheel_of(tmp_path / "a.whl", ("p/reviews.csv", GOOD))
    with pytest.raises(SourceError, match=r"no member p/review.csv") as caught:
        unpack(archive, ["p/review.csv"], tmp_path / "out")
    assert "Did you mean p/reviews.csv?" in caught.value.fix


def empty(content: bytes) -> bytes:
    return b""


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def without_directory(content: bytes) -> bytes:
    return content[: content.index(b"PK\x01\x02")]


def flipped_data(content: bytes) -> bytes:
    at = content.index(b"good.csv") + len("good.csv") + 20
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


def other_local_name(content: bytes) -> bytes:
    return content.replace(b"good.csv", b"evil.csv", 1)


def text(content: bytes) -> bytes:
    return b"<html>Please log in</html>"


@pytest.mark.parametrize("damage", [empty, cut, without_directory, flipped_data, other_local_name, text])
def test_a_broken_archive_is_one_clear_error(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    noise = random.Random(0).randbytes(500)
    archive = wheel_of(tmp_path / "a.whl", ("good.csv", noise))
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(SourceError, match=r"a\.whl .*can be read"):
        unpack(archive, ["good.csv"], tmp_path / "out")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path != archive]
