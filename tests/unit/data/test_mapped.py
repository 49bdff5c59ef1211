"""Pages of a mapped file that were read are no memory of the process afterwards, and are read again as they were."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from finetune.data.mapped import forget_pages

pytestmark = pytest.mark.unit
MIB = 2**20


def mapped_mib() -> float:
    """Pages of files that this process has mapped in."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1024


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


def test_other_arrays_stay_as_they_are() -> None:
    array = np.arange(5)
    forget_pages(array)
    assert array.tolist() == [0, 1, 2, 3, 4]
