"""Splits: stable under growth, blind to case and space, and fair to rare classes."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.data.splits import TEST, TRAIN, VALID, assign, carve, first_in_hash_order, normalise, split_hash

pytestmark = pytest.mark.unit

TEXTS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60)
SHARES = {"valid_share": 0.1, "test_share": 0.2}


def hashes(texts: list[str], salt: str = "s") -> np.ndarray:
    return np.array([split_hash(salt, [text]) for text in texts], dtype=np.uint64)


def by_hash(texts: list[str]) -> list[int]:
    zeros = np.zeros(len(texts), dtype=np.int64)
    return assign(hashes(texts), zeros, zeros.astype(np.int8), **SHARES).tolist()


def test_hash_is_plain_sha256_so_that_any_machine_can_repeat_it() -> None:
    expected = int.from_bytes(hashlib.sha256(b"salt\0good film").digest()[:8], "big")
    assert split_hash("salt", ["  Good\n FILM "]) == expected


@pytest.mark.parametrize(
    ("one", "other"), [("Straße", "STRASSE"), ("\ufb01lm", "film"), ("a\u00a0b", "a b"), ("A\t b ", "a b")]
)
def test_normalised_texts_meet(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@given(st.text())
def test_the_ascii_shortcut_changes_nothing(text: str) -> None:
    import unicodedata

    assert normalise(text) == " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def test_pairs_are_not_hashed_as_one_text() -> None:
    assert split_hash("s", ["a b", "c"]) != split_hash("s", ["a", "b c"])


@given(TEXTS, TEXTS)
def test_adding_rows_moves_no_other_row(texts: list[str], more: list[str]) -> None:
    assert by_hash([*more, *texts])[len(more) :] == by_hash(texts)


@given(TEXTS)
def test_duplicates_stand_together(texts: list[str]) -> None:
    splits = by_hash([*texts, *(f" {text.upper().lower()}  " for text in texts)])
    same = {}
    for text, split in zip([*texts, *(f" {text.upper().lower()}  " for text in texts)], splits, strict=True):
        assert same.setdefault(normalise(text), split) == split


def test_shares_come_out() -> None:
    splits = np.array(by_hash([f"row {i}" for i in range(20_000)]))
    shares = [(splits == split).mean() for split in (TRAIN, VALID, TEST)]
    assert shares == pytest.approx([0.72, 0.08, 0.2], abs=0.01)


def test_a_published_test_split_stays_and_valid_comes_from_train_class_by_class() -> None:
    texts = [f"row {i}" for i in range(1_000)]
    classes = np.array([0] * 700 + [1] * 99 + [2] + [0] * 200)
    published = np.array([TRAIN] * 800 + [TEST] * 200, dtype=np.int8)
    splits = assign(hashes(texts), classes, published, **SHARES)
    assert ((splits == TEST) == (published == TEST)).all()
    assert [int(((splits == VALID) & (classes == label)).sum()) for label in range(3)] == [70, 10, 0]


def test_published_valid_without_test() -> None:
    texts = [f"row {i}" for i in range(1_000)]
    published = np.array([TRAIN] * 800 + [VALID] * 200, dtype=np.int8)
    splits = assign(hashes(texts), np.zeros(1_000, np.int64), published, **SHARES)
    assert ((splits == VALID) == (published == VALID)).all()
    assert 100 < (splits == TEST).sum() < 220


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 4)), min_size=1, max_size=60), st.floats(0.01, 0.49))
def test_carving_keeps_every_class_in_train_and_twins_together(rows: list[tuple[int, int]], share: float) -> None:
    keys = hashes([f"text {text}" for text, _ in rows])
    classes = np.array([label for _, label in rows], dtype=np.int64)
    taken = carve(keys, classes, share)
    assert set(classes[~taken]) == set(classes)
    assert not set(keys[taken]) & set(keys[~taken])


def test_carving_takes_the_lowest_hashes_of_each_class() -> None:
    keys = np.array([9, 1, 5, 3, 7, 2, 8, 4, 6, 0], dtype=np.uint64)
    classes = np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], dtype=np.int64)
    assert np.flatnonzero(carve(keys, classes, 0.4)).tolist() == [1, 3, 5, 9]


def test_first_in_hash_order() -> None:
    keys = np.array([5, 1, 4, 1, 3], dtype=np.uint64)
    assert first_in_hash_order(keys, 3).tolist() == [1, 3, 4]
