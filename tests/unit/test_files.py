"""Files appear whole or not at all."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from finetune.files import sha256_file, whole_file, write_atomically, write_json

pytestmark = pytest.mark.unit


def cpu_flags() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "first")
    write_atomically(path, "zweites ä")
    assert path.read_text("utf-8") == "zweites ä"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def half() -> None:
        with whole_file(path) as file:
            file.write(b"ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order = []
    sync, rename = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), sync(handle))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("rename"), rename(a, b))[1])
    write_atomically(tmp_path / "a", "x")
    assert order == ["fsync", "rename", "fsync"]


def test_json_keeps_its_order_and_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": 1, "a": "ä"})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "z": 1,\n  "a": "ä"\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


@pytest.mark.skipif("sha_ni" not in cpu_flags(), reason="this processor has no instructions for SHA-256")
def test_hashing_takes_at_most_a_second_a_gigabyte(tmp_path: Path) -> None:
    size = 64 << 20
    (tmp_path / "a").write_bytes(bytes(size))
    seconds = []
    for _ in range(3):
        began = time.thread_time()
        sha256_file(tmp_path / "a")
        seconds.append(time.thread_time() - began)
    assert min(seconds) / (size / 1e9) <= 1.0


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()
