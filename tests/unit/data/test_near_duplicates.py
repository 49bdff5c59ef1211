"""Near duplicates: the search finds what all pairs give, kinds exclude each other, pairs keep their places."""

import numpy as np
import pytest

from finetune.data.near_duplicates import PERMUTATIONS, band_rows, find_leaks, jaccard, shingles

pytestmark = pytest.mark.unit


def test_jaccard_of_shingles_by_hand() -> None:
    # "the dull film ended", "dull film ended late": of 2 + 2 runs of three words one is shared.
    one, other = (shingles((text,)) for text in ("The dull, film  ENDED", "dull film ended late"))
    assert (len(one), len(other), jaccard(one, other)) == (2, 2, pytest.approx(1 / 3))
    assert jaccard(one, one) == 1.0
    # Five characters where there are too few words: abcde bcdef against bcdef cdefg.
    assert jaccard(shingles(("abcdef",)), shingles(("bcdefg",))) == pytest.approx(1 / 3)


def test_the_places_of_a_pair_are_not_mixed() -> None:
    a, b = "one two three four", "five six seven eight"
    assert jaccard(shingles((a, b)), shingles((b, a))) == 0.0


def test_a_pair_at_the_threshold_is_hardly_ever_missed() -> None:
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.95):
        rows = band_rows(threshold)
        assert (1 - threshold**rows) ** (PERMUTATIONS // rows) <= 0.001


def test_kinds_exclude_each_other_and_rows_of_one_split_are_no_leak() -> None:
    long = "a film that is as long as it is dull and as dull as it is long by any measure"
    splits = {
        "train": [("Good film .",), (long,), (long,)],
        "valid": [("good FILM .",), ("nothing like it",), ("nothing like it",)],
        "test": [("Good film .",), ("nothing like it",), (long + " indeed",), ("something else entirely here",)],
    }
    found = [
        (leak.split, leak.row, leak.kind, leak.earlier_split, leak.earlier_row) for leak in find_leaks(splits, 0.7)
    ]
    assert found == [
        ("valid", 0, "normalised", "train", 0),
        ("test", 0, "exact", "train", 0),
        ("test", 1, "exact", "valid", 1),
        ("test", 2, "near", "train", 1),
    ]


def test_the_search_finds_what_all_pairs_find() -> None:
    generator = np.random.default_rng(0)
    words = [f"w{number}" for number in range(400)]
    train = [tuple(generator.choice(words, 30)) for _ in range(150)]
    test = []
    for number in range(150):  # copies with 0 to 9 words replaced
        row = list(train[number])
        for at in generator.integers(0, 30, number % 10):
            row[at] = str(generator.choice(words))
        test.append(row)
    splits = {name: [(" ".join(row),) for row in rows] for name, rows in (("train", train), ("test", test))}
    sets = {name: [{tuple(row[at : at + 3]) for at in range(28)} for row in rows] for name, rows in
            (("train", train), ("test", test))}  # fmt: skip
    for threshold in (0.4, 0.7, 0.9):
        best = [max(len(a & b) / len(a | b) for b in sets["train"]) for a in sets["test"]]
        expected = {row: alike for row, alike in enumerate(best) if alike >= threshold}
        found = {leak.row: leak.similarity for leak in find_leaks(splits, threshold)}
        assert found == pytest.approx(expected)
        assert 10 < len(found) < 150
