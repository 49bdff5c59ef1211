"""Which row belongs to which split: published splits as they are, else by a hash of the normalised text."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "valid", "test")
TRAIN, VALID, TEST = range(3)
DROPPED = -1


def normalise(text: str) -> str:
    """The text under NFKC, without case, white space squeezed: what two duplicate rows share."""
    if text.isascii():  # NFKC changes nothing there, and most rows are ASCII
        return " ".join(text.lower().split())
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def split_hash(salt: str, texts: Sequence[str]) -> int:
    """64 bits of SHA-256 over the salt and the normalised texts of a row; the same on every machine."""
    content = "\0".join([salt, *(normalise(text) for text in texts)])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big")


def assign(
    hashes: NDArray[np.uint64],
    classes: NDArray[np.int64],
    published: NDArray[np.int8],
    *,
    valid_share: float,
    test_share: float,
) -> NDArray[np.int8]:
    """Give every row its split.

    Nothing published but `train`: a row is in test when its hash is below `test_share` of the range, in valid when it
    is in the next `valid_share` of the rest. So rows of the same text stand together, and adding rows moves no other.
    A published test split stays whole, and valid is carved out of train class by class (`carve`). A published valid
    split without a test split stays whole, and test is taken out of train by the hash.

    Args:
        hashes: [rows] from `split_hash`.
        classes: [rows] class index (zeros where the task has none).
        published: [rows] index into SPLITS that the data brings; all TRAIN where it brings none.
        valid_share: share of the training rows.
        test_share: share of all rows.

    Returns:
        [rows] index into SPLITS.
    """
    splits = published.copy()
    has_valid, has_test = bool((published == VALID).any()), bool((published == TEST).any())
    in_train = published == TRAIN
    if not has_test:
        splits[in_train & (hashes < _bound(test_share))] = TEST
    if not has_valid and not has_test:
        upper = _bound(test_share + (1.0 - test_share) * valid_share)
        splits[in_train & (hashes >= _bound(test_share)) & (hashes < upper)] = VALID
    elif not has_valid:
        rows = np.flatnonzero(in_train)
        splits[rows[carve(hashes[rows], classes[rows], valid_share)]] = VALID
    return splits


def assign_in_order(published: NDArray[np.int8], *, valid_share: float, test_share: float) -> NDArray[np.int8]:
    """Splits of rows that follow each other in one text: test is its end, valid what comes before, train the rest.

    Neighbours share names and sentences, so dealing them out by a hash would put the training text on both sides of
    every test row. Published splits stay; shares and shapes are those of `assign`.
    """
    splits = published.copy()
    for split, share in ((TEST, test_share), (VALID, valid_share)):
        rows = np.flatnonzero(splits == TRAIN)
        if not (published == split).any():
            splits[rows[len(rows) - round(share * len(rows)) :]] = split
    return splits


def carve(hashes: NDArray[np.uint64], classes: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Choose rows for validation, in each class the first `share` of them in hash order.

    Rows of the same text go together (a text under two labels counts to its first row's class), and at least one row
    of each class stays behind, so a class with a single row stays whole.

    Returns:
        [rows] True where the row is chosen.
    """
    _, first, group_of_row, sizes = np.unique(hashes, return_index=True, return_inverse=True, return_counts=True)
    class_of_group = classes[first]  # groups are in hash order, because np.unique sorts
    chosen = np.zeros(len(first), dtype=bool)
    for label in np.unique(class_of_group):
        groups = np.flatnonzero(class_of_group == label)
        filled = np.cumsum(sizes[groups])
        wanted = min(round(share * int(filled[-1])), int(filled[-1]) - 1)
        chosen[groups[filled <= wanted]] = True
    taken = chosen[group_of_row]
    for label in np.setdiff1d(classes, classes[~taken]):
        # All rows of this class are twins of rows of other classes: give the last of them back.
        taken[group_of_row == group_of_row[classes == label].max()] = False
    return taken


def first_in_hash_order(hashes: NDArray[np.uint64], rows: int) -> NDArray[np.int64]:
    """Indices of the first `rows` rows in hash order (ties in row order), sorted as the rows stand."""
    return np.sort(np.argsort(hashes, kind="stable")[:rows])


def _bound(share: float) -> np.uint64:
    return np.uint64(int(share * 2.0**64))
