"""Pages of a mapped file that were read are no memory of the process afterwards, and are read again as they were."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.batching import RowKey
from finetune.data.images import ImageRows
from finetune.data.mapped import forget_pages
from finetune.data.tokens import TokenRows
from finetune.frozen_layers import HiddenRows

pytestmark = pytest.mark.unit
MIB = 2**20


def mapped_mib() -> float:
    """Pages of files that this process has mapped in."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile", "RssShmem"))) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it in other ways")
@pytest.mark.parametrize("mode", ["r", "r+"])
def test_pages_are_given_back_and_read_again(tmp_path: Path, mode: str) -> None:
    path, size = tmp_path / "numbers.bin", 64 * MIB
    np.arange(size // 8).tofile(path)
    array = np.memmap(path, np.int64, mode=mode)
    if mode == "r+":
        array[7] = -7  # not in the file's own time yet
    total = int(array.sum())
    before = mapped_mib()
    forget_pages(array[3:9])  # a slice stands for its file
    assert mapped_mib() < before - 60
    assert int(array.sum()) == total
    assert array[7] == (-7 if mode == "r+" else 7)


def test_other_arrays_stay_as_they_are(tmp_path: Path) -> None:
    array = np.arange(5)
    forget_pages(array)
    assert array.tolist() == [0, 1, 2, 3, 4]
    array.tofile(tmp_path / "numbers.bin")
    own = np.memmap(tmp_path / "numbers.bin", np.int64, mode="c")
    own[0] = 9  # in no file
    forget_pages(own[:2])
    assert own.tolist() == [9, 1, 2, 3, 4]


def all_tokens(numbers: np.memmap) -> Any:
    ids = numbers.view(np.int32)
    return TokenRows({"input_ids": ids}, np.linspace(0, len(ids), 65).astype(np.int64), np.zeros(64, bool))


def all_images(numbers: np.memmap) -> Any:
    pixels = numbers.view(np.uint8)
    starts = np.arange(64) * MIB
    return ImageRows(pixels, starts, starts + 3 * 512 * 512, np.full(64, 512), np.zeros(64, np.int64), 224)


def all_hidden(numbers: np.memmap) -> Any:
    hidden_ND = numbers.view(np.float32).reshape(-1, 64)
    return HiddenRows(all_tokens(numbers), hidden_ND, np.linspace(0, len(hidden_ND), 65).astype(np.int64))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems tell it in other ways")
@pytest.mark.parametrize("make", [all_tokens, all_images, all_hidden])
def test_rows_that_were_read_are_no_memory(tmp_path: Path, make: Callable[[np.memmap], Any]) -> None:
    np.arange(64 * MIB // 8).tofile(tmp_path / "numbers.bin")
    rows = make(np.memmap(tmp_path / "numbers.bin", np.int64, mode="r"))
    before, read = mapped_mib(), 0
    for index in range(64):
        (row,) = rows.__getitems__([RowKey(0, index)])
        read += sum(np.asarray(value).nbytes for value in row.values())
        assert sum(float(np.asarray(value).sum()) for value in row.values()) >= 0
        del row
    assert read > 8 * MIB
    assert mapped_mib() < before + 8
