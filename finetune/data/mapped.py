"""Files mapped into memory that are larger than what is read of them at once."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np


def forget_pages(array: np.ndarray) -> None:
    """Give back the pages of the file that an array maps: they count as this process's memory, as large as the file in
    the end.

    They stay in the system's cache, and are mapped again when they are read; what was written is in the file. Nothing
    for other arrays (also those that keep what is written to themselves), and on systems without the call.
    """
    mapped: Any = getattr(array, "_mmap", None)  # of np.memmap, and of each slice of one
    if mapped is not None and getattr(array, "mode", "c") != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
