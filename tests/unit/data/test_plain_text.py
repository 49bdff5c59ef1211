"""Plain text through the one loader: a file in passages that keep their order, a folder as documents, tables."""

import json
from pathlib import Path

import pytest
from toy_data import csv, put

from finetune.config import TextClassificationData
from finetune.data.loader import LoadedData, load_data
from finetune.errors import DataError
from finetune.language_settings import PlainTextData

pytestmark = pytest.mark.unit

LINES = [
    f"Line {number} of a long text that nobody reads.\n" + ("\n" if number % 7 == 0 else "") for number in range(3000)
]
TEXT = "".join(LINES)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def load(source: str, **settings: object) -> LoadedData:
    return load_data(PlainTextData(source=source, **settings), {"text": None})


def test_one_file_is_cut_into_passages_in_order_and_nothing_is_lost(tmp_path: Path) -> None:
    put({"a.txt": TEXT.encode(), "b.txt": TEXT.replace("\n", "\r\n").encode()})(tmp_path)
    data = load("a.txt")
    assert data.passages
    assert "".join(text for split in ("train", "valid", "test") for text in data.splits[split]["text"]) == TEXT
    assert [len(data.splits[split]) for split in ("train", "valid", "test")] == [45, 5, 12]
    assert data.labels == ()
    passages = data.splits["train"]["text"][:]
    assert all(2_000 <= len(passage) < 4_000 and passage.endswith("\n\n") for passage in passages)
    assert data.splits["train"]["id"][:2] == ["1", str(1 + passages[0].count("\n"))]
    assert load("b.txt").sha256 == data.sha256
    assert any("whole stretches" in note for note in data.notes)


def test_shares_and_limit_of_one_file(tmp_path: Path) -> None:
    put({"a.txt": TEXT.encode()})(tmp_path)
    data = load("a.txt", test_share=0.1, valid_share=0.05, max_train_rows=10)
    assert [len(data.splits[split]) for split in ("train", "valid", "test")] == [10, 3, 6]
    assert "".join(data.splits["train"]["text"]) == TEXT[: len("".join(data.splits["train"]["text"]))]
    assert TEXT.endswith("".join(data.splits["test"]["text"]))


def test_a_text_without_blank_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    put({"a.txt": TEXT.replace("\n\n", "\n").encode()})(tmp_path)
    passages = [text for split in load("a.txt").splits.values() for text in split["text"]]
    assert all(passage.endswith(".\n") and len(passage) < 4_100 for passage in passages)


def test_each_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    put({f"books/{number % 3}/{number}.txt": f"Tale {number}.\nIt ends.\n".encode() for number in range(60)})(tmp_path)
    data = load("books")
    assert not data.passages
    rows = {row["id"]: row["text"] for split in data.splits.values() for row in split}
    assert rows == {f"{number % 3}/{number}.txt": f"Tale {number}.\nIt ends.\n" for number in range(60)}
    put({"books/0/60.txt": b"One more.\n"})(tmp_path)
    more = load("books")
    for split in ("train", "valid", "test"):
        assert set(data.splits[split]["id"]) <= set(more.splits[split]["id"])


def test_documents_in_folders_named_after_splits(tmp_path: Path) -> None:
    names = [*(f"train/{n}.txt" for n in range(40)), *(f"test/{n}.txt" for n in range(9))]
    put({f"books/{name}": f"Tale {name}".encode() for name in names})(tmp_path)
    data = load("books")
    assert {row["text"] for row in data.splits["test"]} == {f"Tale test/{n}.txt" for n in range(9)}
    assert len(data.splits["train"]) + len(data.splits["valid"]) == 40


def test_text_files_named_after_splits_stay_whole(tmp_path: Path) -> None:
    put({"books/train.txt": TEXT.encode(), "books/test.txt": TEXT[:9000].encode()})(tmp_path)
    data = load("books")
    assert data.passages
    assert "".join(data.splits["train"]["text"]) + "".join(data.splits["valid"]["text"]) == TEXT
    assert "".join(data.splits["test"]["text"]) == TEXT[:9000]


def test_a_column_of_a_table_needs_no_label(tmp_path: Path) -> None:
    put({"a.csv": csv([(f"Document number {n}", "x") for n in range(100)])})(tmp_path)
    data = load("a.csv")
    assert data.splits["train"].column_names == ["id", "text"]
    assert sum(len(split) for split in data.splits.values()) == 100


@pytest.mark.parametrize(
    ("files", "source", "words"),
    [
        ({"a.txt": b""}, "a.txt", "a.txt is empty"),
        ({"a.txt": b"\n \n\n"}, "a.txt", "no row to use"),
        ({"a.txt": b"short\n"}, "a.txt", "too few to split"),
        ({"a.txt": b"gr\xfc\xdfe\n"}, "a.txt", "line 1, byte 3"),
        ({"a.txt": b"\x1f\x8b123"}, "a.txt", "gzip"),
        ({"f/a.txt": b"one", "f/b.txt": b" \n"}, "f", "b.txt holds nothing but white space"),
        ({"f/a.txt": b"one", "f/test/b.txt": b"two"}, "f", "isn't clear"),
        ({"f/a.md": b"one"}, "f", "holds no data file"),
    ],
)
def test_what_cannot_be_read_is_refused(files: dict[str, bytes], source: str, words: str, tmp_path: Path) -> None:
    put(files)(tmp_path)
    with pytest.raises(DataError, match=words):
        load(source)


def test_a_classification_of_plain_text_is_refused_with_what_to_do(tmp_path: Path) -> None:
    put({"a.txt": TEXT.encode()})(tmp_path)
    with pytest.raises(DataError, match="has no label"):
        load_data(TextClassificationData(source="a.txt"), {"text": None, "label": None})


def test_the_data_command_checks_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from finetune.cli import main
    from finetune.commands import data_check

    monkeypatch.setattr(data_check, "_tokenizer", lambda *_: None)
    put({"a.txt": TEXT.encode()})(tmp_path)
    assert main(["data", "check", "a.txt", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["measured"]["rows"] == {"train": 45, "valid": 5, "test": 12}
    assert report["measured"]["label_counts"] == {}
    assert main(["data", "card", "a.txt", "--out", "a.md"]) == 0
    assert main(["data", "check", "a.md"]) == 0
    assert load("a.md").sha256 == load("a.txt").sha256
