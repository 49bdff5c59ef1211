"""Splits, folders and cards that don't hold together: refused with a key or a file and a fix."""

from pathlib import Path

import pytest
from toy_data import GOOD, PLAIN, Case, assert_refused, card, csv, load, put

from finetune.errors import ConfigError, FinetuneError

pytestmark = pytest.mark.unit

SPLIT = {"f/train.csv": csv(GOOD), "f/test.csv": csv(GOOD[:40])}


CASES: list[Case] = [
    # splits
    ("too few rows", put({"d.csv": csv(GOOD[:2])}), "d.csv", ["2 rows are too few"], "Add rows"),
    (
        "label that only test has",
        put({"f/train.csv": csv(GOOD), "f/test.csv": csv([*GOOD[:30], ("new", "mixed")])}),
        "f",
        ["test.csv, line 32", "'mixed'", "no training row"],
        "Add training rows",
    ),
    (
        "label that the hash puts in test only",
        put({"d.csv": csv([*GOOD, ("a rare one 0", "rare")])}),
        "d.csv split_salt=s8",
        ["'rare' has 1 row", "line 202", "none of them in train"],
        "split_salt",
    ),
    ("no file in the folder", put({"f/readme.txt": b"x"}), "f", ["f holds no data file"], "train.csv"),
    (
        "several files in the folder",
        put({"f/a.csv": csv(GOOD), "f/b.csv": csv(GOOD)}),
        "f",
        ["a.csv, b.csv"],
        "train.csv",
    ),
    ("two kinds in the folder", put({**SPLIT, "f/valid.jsonl": b"{}"}), "f", [".csv, .jsonl"], "one kind"),
    (
        "two training files",
        put({**SPLIT, "f/training.csv": csv(GOOD)}),
        "f",
        ["more than one is the train"],
        "Name them",
    ),
    ("test without train", put({"f/test.csv": csv(GOOD)}), "f", ["test.csv", "no training file"], "train.csv"),
    ("two sets in a folder", put({f"f/{name}/train.csv": csv(GOOD) for name in "ab"}), "f", ["several"], "--data"),
    (
        "an empty test file",
        put({"f/train.csv": csv(GOOD), "f/test.csv": b"text,label\n"}),
        "f",
        ["test.csv has a header"],
        "Add",
    ),
    # cards
    ("card without dashes", put({"c.md": b"# hi\n"}), "c.md", ["c.md, line 1"], "data card"),
    (
        "card with broken YAML",
        put({"c.md": b"---\nlicense: mit\nlanguage: [en\n---\n"}),
        "c.md",
        ["c.md, line"],
        "Mend",
    ),
    ("card without licence", put({"c.md": card(PLAIN, "language: [en]\n")}), "c.md", ["no `license:`"], "cc-by"),
    ("card without language", put({"c.md": card(PLAIN, "license: mit\n")}), "c.md", ["no `language:`"], "en"),
    (
        "card without block",
        put({"c.md": b"---\nlicense: mit\nlanguage: [en]\n---\n"}),
        "c.md",
        ["no `finetune:`"],
        "Add",
    ),
    ("card with an unknown key", put({"c.md": card(PLAIN + "  colums: 1\n")}), "c.md", ["colums", "columns"], "Mend"),
    (
        "card with two sources",
        put({"c.md": card(PLAIN.replace("path: .", "path: ., hub: a/b"))}),
        "c.md",
        ["exactly one"],
        "Mend",
    ),
    (
        "card with a bad encoding",
        put({"c.md": card(PLAIN + "  format: {encoding: utf-99}\n")}),
        "c.md",
        ["utf-99"],
        "Mend",
    ),
    (
        "card that climbs out",
        put({"c.md": card(PLAIN.replace("d.csv", "../d.csv"))}),
        "c.md",
        ["../d.csv", "'..'"],
        "Mend",
    ),
    ("card whose file is gone", put({"c.md": card(PLAIN)}), "c.md", ["d.csv does not exist"], "c.md"),
    (
        "card whose file changed",
        put(
            {"c.md": card(PLAIN.replace("d.csv}", f"d.csv}}, file_hashes: {{d.csv: {'a' * 64}}}")), "d.csv": csv(GOOD)}
        ),
        "c.md",
        ["d.csv is not the file", "SHA-256"],
        "new card",
    ),
    (
        "label that the card doesn't list",
        put({"c.md": card(PLAIN), "d.csv": csv([*GOOD, ("x", "poss")])}),
        "c.md",
        ["line 202", "'poss'"],
        "'pos'",
    ),
    (
        "label that no row has",
        put({"c.md": card(PLAIN.replace("[neg, pos]", "[neg, pos, mixed]")), "d.csv": csv(GOOD)}),
        "c.md",
        ["'mixed'", "no row"],
        "labels",
    ),
    (
        "value that the rule doesn't list",
        put({"c.md": card(PLAIN + "  label_rule: {map: {neg: neg, good: pos}}\n"), "d.csv": csv(GOOD)}),
        "c.md",
        ["line 3", "'pos'", "label_rule.map"],
        "neg, good",
    ),
    (
        "a rule's key that YAML reads as a truth value",
        put({"c.md": card(PLAIN + "  label_rule: {map: {no: neg, yes: pos}}\n"), "d.csv": csv(GOOD)}),
        "c.md",
        ["label_rule.map", "quote yes"],
        "quotes",
    ),
    (
        "sign of a word",
        put({"c.md": card(PLAIN + "  label_rule: {sign: true}\n"), "d.csv": csv(GOOD)}),
        "c.md",
        ["line 2", "'neg'", "no number"],
        "rule",
    ),
    (
        "column that contradicts the card",
        put({"c.md": card(PLAIN), "d.csv": csv(GOOD)}),
        "c.md text=label",
        ["data.text=label", "c"],
        "Leave data.text out",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=[case[0] for case in CASES])
def test_bad_input_is_refused_with_a_place_and_a_fix(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(case, tmp_path, monkeypatch)


def test_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "d.csv").write_bytes(csv(GOOD))
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("finetune.data.arrow_splits.pa.OSFile", full)
    with pytest.raises(FinetuneError, match="No space left") as caught:
        load(str(tmp_path / "d.csv"))
    assert "FINETUNE_CACHE" in caught.value.fix
    assert [path for path in (tmp_path / "cache" / "data").iterdir()] == []


def test_a_card_without_a_label_column_refuses_a_classification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    put({"c.md": card(PLAIN.replace(", label: label", "")), "d.csv": csv(GOOD)})(tmp_path)
    with pytest.raises(FinetuneError, match="not for label") as caught:
        load(str(tmp_path / "c.md"))
    assert not isinstance(caught.value, ConfigError)
    assert "label: COLUMN" in caught.value.fix
