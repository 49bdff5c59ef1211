"""Rows of a later split that also stand in an earlier one: word for word, normalised, or nearly (MinHash)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from finetune.data.splits import normalise

if TYPE_CHECKING:
    from datasketch import MinHash, MinHashLSH

Texts = tuple[str, ...]
"""The texts of one row: one, or two of a pair."""
Kind = Literal["exact", "normalised", "near"]
Shingles = npt.NDArray[np.uint64]
Known = tuple[tuple[str, int], Shingles, npt.NDArray[Any]]
"""(split, row) of an earlier row, its shingles, and its MinHash values."""

WORDS = 3
CHARACTERS = 5
PERMUTATIONS = 128
# Of pairs exactly at the threshold, at most this share is missed; of nearer ones fewer.
MISSED = 0.001
# So many candidates are compared exactly, the most alike first by their estimate: a boilerplate text that thousands of
# rows share must not make the search quadratic.
COMPARED = 20
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Leak:
    """A row that an earlier split holds too, and the first such row (of near ones the most alike)."""

    split: str
    row: int
    kind: Kind
    earlier_split: str
    earlier_row: int
    similarity: float
    """Jaccard similarity of the rows' shingles; 1 for the kinds that are not near."""


def shingles(texts: Texts) -> Shingles:
    """Hashes of a row's shingles, sorted and each once: runs of 3 words, without case and punctuation.

    Texts of fewer than 3 words, and those written without spaces, are cut into runs of 5 characters instead.
    """
    found: set[bytes] = set()
    for place, text in enumerate(texts):
        text = normalise(text)
        words = _WORD.findall(text)
        if len(words) >= WORDS:
            pieces = [" ".join(words[at : at + WORDS]) for at in range(len(words) - WORDS + 1)]
        else:
            pieces = [text[at : at + CHARACTERS] for at in range(max(1, len(text) - CHARACTERS + 1))]
        # The two texts of a pair mean different things: the same words in the other place are no match.
        found.update(hashlib.blake2b(f"{place}\0{piece}".encode(), digest_size=8).digest() for piece in pieces)
    return np.sort(np.frombuffer(b"".join(found), dtype=np.uint64))


def jaccard(a: Shingles, b: Shingles) -> float:
    """Shared shingles over all shingles of two rows, from 0 to 1."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def band_rows(threshold: float) -> int:
    """Hash values a band of the index: as many as still miss at most 1 pair in 1,000 at the threshold.

    A pair of similarity s meets in one of b bands of r values with the chance 1 - (1 - s^r)^b (Leskovec, Rajaraman
    and Ullman, Mining of Massive Datasets, section 3.4).
    """
    fitting = [r for r in (1, 2, 4, 8, 16) if (1 - threshold**r) ** (PERMUTATIONS // r) <= MISSED]
    return max(fitting)


def find_leaks(splits: Mapping[str, Sequence[Texts]], threshold: float) -> list[Leak]:
    """The rows of each split that stand in a split before it, in the order of splits and rows.

    Near rows are candidates by MinHash (Broder 1997) with locality-sensitive hashing, confirmed by their exact Jaccard
    similarity: time and memory grow with the rows, not with their square. A signature is 512 bytes a row.

    Args:
        splits: split -> texts of its rows; train first.
        threshold: least Jaccard similarity of near rows, from 0.1 to 1.
    """
    from datasketch import MinHashLSH

    rows_of_band = band_rows(threshold)
    index: MinHashLSH = MinHashLSH(num_perm=PERMUTATIONS, params=(PERMUTATIONS // rows_of_band, rows_of_band))
    exact: dict[Texts, tuple[str, int]] = {}
    normal: dict[Texts, tuple[str, int]] = {}
    known: list[Known] = []
    leaks: list[Leak] = []
    last = list(splits)[-1]
    for split, rows in splits.items():
        fresh: dict[Texts, tuple[int, Shingles, MinHash]] = {}
        for row, texts, key, some, sketch in _sketched(rows, normal):
            if texts in exact:
                leaks.append(Leak(split, row, "exact", *exact[texts], 1.0))
            elif key in normal:
                leaks.append(Leak(split, row, "normalised", *normal[key], 1.0))
            elif some is not None and sketch is not None:
                near = _nearest(some, sketch, index, known, threshold) if known else None
                if near is not None:
                    leaks.append(Leak(split, row, "near", *near[0], near[1]))
                if split != last:
                    fresh.setdefault(key, (row, some, sketch))
        for row, texts in enumerate(rows):
            exact.setdefault(texts, (split, row))
        for key, (row, some, sketch) in fresh.items():  # only now: rows of one split may be alike
            normal[key] = (split, row)
            index.insert(len(known), sketch)
            known.append(((split, row), some, sketch.hashvalues))
    return leaks


def _sketched(
    rows: Sequence[Texts], known: Mapping[Texts, Any]
) -> Iterator[tuple[int, Texts, Texts, Shingles | None, MinHash | None]]:
    """(row, its texts, normalised, their shingles, their signature); the last two None where the text is known."""
    from datasketch import MinHash

    empty = MinHash(PERMUTATIONS, hashfunc=int)
    for row, texts in enumerate(rows):
        key = tuple(normalise(text) for text in texts)
        if key in known:
            yield row, texts, key, None, None
            continue
        some, sketch = shingles(texts), empty.copy()
        sketch.update_batch((some & np.uint64(0xFFFFFFFF)).tolist())
        yield row, texts, key, some, sketch


def _nearest(
    some: Shingles,
    sketch: MinHash,
    index: MinHashLSH,
    known: Sequence[Known],
    threshold: float,
) -> tuple[tuple[str, int], float] | None:
    found = np.array(sorted(index.query(sketch)), dtype=np.int64)
    if not len(found):
        return None
    estimates = (np.stack([known[at][2] for at in found]) == sketch.hashvalues).mean(axis=1)
    likely = found[np.argsort(-estimates, kind="stable")[:COMPARED]].tolist()
    best, at = max((jaccard(some, known[at][1]), -at) for at in likely)
    return (known[-at][0], best) if best >= threshold else None
