"""`finetune cache`: lists, verifies, and deletes nothing but this toolkit's own cache."""

import argparse
import hashlib
import zipfile
from pathlib import Path

import filelock
import pytest

from finetune.commands import cache as command
from finetune.data.wheels import Wheel, wheel_members
from finetune.errors import ConfigError, SourceError

pytestmark = pytest.mark.unit


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser(prog="finetune")
    command.add(parser.add_subparsers())
    args = parser.parse_args(["cache", *arguments])
    status: int = args.call(args)
    return status


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one wheel and one member unpacked."""
    root = tmp_path / "cache"
    monkeypatch.setenv("FINETUNE_CACHE", str(root))
    path = root / "wheels" / "toy-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("toy/a.csv", b"x" * 3_000_000)
    wheel_members(Wheel("toy", "1.0", hashlib.sha256(path.read_bytes()).hexdigest()), ["toy/a.csv"])
    return root


def test_ls_shows_entries_and_their_sizes(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("ls") == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{cache}\n")
    assert "3.0 MB  wheels/toy-1.0-py3-none-any.whl" in out
    assert "3.0 MB  pypi/toy-1.0-" in out
    assert "6.0 MB  in all" in out


def test_ls_of_no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "none"))
    assert run() == 0
    assert "empty" in capsys.readouterr().out
    assert not (tmp_path / "none").exists()


def test_verify_of_a_whole_cache(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify") == 0
    assert "1 members are what their hashes say" in capsys.readouterr().out


@pytest.mark.parametrize("pattern", ["pypi/*/toy/a.csv", "wheels/*.whl", "pypi/*.json"])
def test_verify_names_the_damaged_file(cache: Path, pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = cache.glob(pattern)
    path.write_bytes(b"y" + path.read_bytes()[1:])
    with pytest.raises(SourceError, match="are damaged") as caught:
        run("verify")
    assert str(path) in str(caught.value)
    assert f"DAMAGED  {path}" in capsys.readouterr().out


def test_clear_without_yes_deletes_nothing(cache: Path) -> None:
    with pytest.raises(ConfigError, match=r"6\.0 MB .* would be deleted") as caught:
        run("clear")
    assert "finetune cache clear --yes" in caught.value.fix
    assert list(cache.glob("wheels/*.whl"))


def test_clear_with_yes(cache: Path) -> None:
    assert run("clear", "--yes") == 0
    assert not cache.exists()
    assert run("clear", "--yes") == 0


def test_clear_leaves_what_the_toolkit_did_not_make(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "thesis.txt").write_text("mine")
    assert run("clear", "--yes") == 0
    assert [path.name for path in cache.iterdir()] == ["thesis.txt"]
    assert "thesis.txt" in capsys.readouterr().err


def test_clear_follows_no_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("mine")
    (cache / "data").symlink_to(tmp_path / "precious")
    assert run("clear", "--yes") == 0
    assert (tmp_path / "precious/file").read_text() == "mine"
    assert (cache / "data").is_symlink()


@pytest.mark.parametrize(
    "tag", [None, "", "Signature: 8a477f597d28d172789f06886806bc55\n# This folder is the cache of another program.\n"]
)
def test_clear_refuses_a_folder_that_is_not_this_cache(
    tag: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    (home / "data/thesis.txt").write_text("mine")
    if tag is not None:
        (home / "CACHEDIR.TAG").write_text(tag)
    monkeypatch.setenv("FINETUNE_CACHE", str(home))
    with pytest.raises(ConfigError, match="is not a cache of this toolkit"):
        run("clear", "--yes")
    assert (home / "data/thesis.txt").read_text() == "mine"


def test_clear_waits_for_nobody_and_refuses_while_another_process_fetches(cache: Path) -> None:
    (lock,) = cache.glob("locks/*.lock")
    with filelock.FileLock(lock, is_singleton=False), pytest.raises(SourceError, match="Another process"):
        run("clear", "--yes")
    assert list(cache.glob("wheels/*.whl"))


@pytest.mark.parametrize("action", [[], ["ls"], ["verify"], ["clear"]])
def test_help_teaches_with_an_example(action: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*action, "--help")
    assert caught.value.code == 0
    assert "Example" in capsys.readouterr().out
