"""Tagged words from CoNLL, JSONL and Parquet, withheld test labels, numbers as labels: read right, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune.config import DataSettings
from finetune.data.loader import LoadedData, load_data
from finetune.data.tagged import first_break
from finetune.errors import ConfigError, DataError
from finetune.text_settings import TaggedTextData, TextPairData

pytestmark = pytest.mark.unit

ROLES = {"tokens": None, "tags": None}
ROWS = [([f"Ann{i}", "of", "New", "York"], ["B-person", "O", "B-place", "I-place"]) for i in range(120)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def conll(rows: list[tuple[list[str], list[str]]], gap: str = "\n", between: str = "\t") -> str:
    return gap.join("".join(f"{word}{between}{tag}\n" for word, tag in zip(*row, strict=True)) for row in rows)


def words_of(data: LoadedData) -> list[tuple[list[str], list[str]]]:
    return sorted((row["tokens"], row["tags"]) for split in data.splits.values() for row in split)


def test_every_kind_of_file_gives_the_same_rows(home: Path) -> None:
    Path("a.conll").write_text(conll(ROWS))
    Path("b.conll").write_text("-DOCSTART- O\n\n" + conll(ROWS, gap="\t\n\n", between=" "))
    four = [(words, [f"NN X {tag}" for tag in tags]) for words, tags in ROWS]
    Path("c.bio").write_text(conll(four, between=" "))
    Path("d.jsonl").write_text("".join(json.dumps({"tokens": words, "labels": tags}) + "\n" for words, tags in ROWS))
    names = ["O", "B-person", "I-person", "B-place", "I-place"]
    table = pa.table(
        {"tokens": [words for words, _ in ROWS], "ner_tags": [[names.index(tag) for tag in tags] for _, tags in ROWS]}
    )
    features = {"info": {"features": {"ner_tags": {"feature": {"names": names}, "_type": "List"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), "e.parquet")
    loaded = [load_data(DataSettings(source=name), ROLES) for name in ("a.conll", "b.conll", "d.jsonl", "e.parquet")]
    loaded.append(load_data(DataSettings(source="c.bio"), {"tokens": None, "tags": "tags"}))
    for data in loaded:
        assert words_of(data) == sorted(ROWS)
        assert data.labels == ("O", "B-person", "I-person", "B-place", "I-place")
    assert len({data.sha256 for data in loaded}) == 1
    assert {row["id"] for row in loaded[0].splits["train"]} < {str(1 + 5 * i) for i in range(120)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("B-place", "I-place", 1), ["a.conll, line 3", "I-place", "follows 'O'", "IOB2"]),
        (lambda text: text.replace("B-place", "B-person", 1), ["a.conll, line 4", "'I-place'", "follows 'B-person'"]),
        (lambda text: text.replace("B-person", "I-person", 1), ["a.conll, line 1", "begins the sentence"]),
        (lambda text: text.replace("B-place", "place", 1), ["a.conll, line 3", "'place'", "is no tag"]),
        (lambda text: text.replace("Ann7\tB-person", "Ann7"), ["a.conll, line 36", "1 fields, but 2 columns"]),
        (
            lambda text: text.replace("\tO", "\tS-place"),
            ["a.conll, line 2", "'B-person', which has no end", "IOBES"],
        ),
    ],
)
def test_broken_sequences_are_named_with_their_line(change: object, words: list[str]) -> None:
    Path("a.conll").write_text(change(conll(ROWS)))  # type: ignore[operator]
    with pytest.raises(DataError) as caught:
        load_data(DataSettings(source="a.conll"), ROLES)
    for word in words:
        assert word in caught.value.problem
    assert caught.value.fix


def test_words_and_tags_that_are_not_as_many_are_refused() -> None:
    Path("a.jsonl").write_text('{"tokens": ["a", "b"], "tags": ["O", "O"]}\n{"tokens": ["a", "b"], "tags": ["O"]}\n')
    with pytest.raises(DataError, match=r"a.jsonl, line 2: 2 words, but 1 tags"):
        load_data(DataSettings(source="a.jsonl"), ROLES)


@pytest.mark.parametrize(
    ("tags", "iobes", "at"),
    [
        ("S-A O B-A I-A E-A", True, None),
        ("B-A I-A", True, 1),
        ("B-A O", True, 1),
        ("B-A S-A", True, 1),
        ("E-A", True, 0),
        ("B-A I-A B-A B-B I-B O", False, None),
        ("B-A I-B", False, 1),
    ],
)
def test_where_a_sequence_breaks(tags: str, iobes: bool, at: int | None) -> None:
    broken = first_break(tags.split(), iobes)
    assert (None if broken is None else broken[0]) == at


def write_pairs(folder: str, test_header: str = "index\t#1 String\t#2 String", tail: str = "") -> None:
    Path(folder).mkdir()
    rows = [f"{i % 2}\tfirst text {i}\tsecond text {i}\n" for i in range(300)]
    Path(folder, "train.tsv").write_text("\ufeffQuality\t#1 String\t#2 String\n" + "".join(rows[:200]), "utf-8")
    Path(folder, "dev.tsv").write_text("Quality\t#1 String\t#2 String\n" + "".join(rows[200:]))
    Path(folder, "test.tsv").write_text(f"{test_header}\n0\tone\tother{tail}\n1\ttwo\tother{tail}\n")


PAIR = {"text": None, "text_pair": None, "label": None}


def test_a_published_test_file_without_labels_is_left_out_aloud() -> None:
    write_pairs("glue")
    data = load_data(DataSettings(source="glue"), PAIR)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 180, "valid": 20, "test": 100}
    assert "the published validation rows are the test rows" in data.notes[0]
    assert data.splits["test"][0]["text_pair"] == "second text 200"


def test_a_test_file_of_minus_ones_is_left_out_too() -> None:
    write_pairs("glue", "#1 String\t#2 String\tnothing\tQuality", tail="\t-1")
    assert len(load_data(DataSettings(source="glue"), PAIR).splits["test"]) == 100


def test_a_test_file_whose_label_may_have_another_name_is_refused() -> None:
    write_pairs("glue", "mood\t#1 String\t#2 String")
    with pytest.raises(DataError, match="has no column 'Quality' for the label"):
        load_data(DataSettings(source="glue"), PAIR)


def test_question_and_sentence_are_found_as_a_pair() -> None:
    rows = "".join(f"q {i}?\ts {i}.\t{i % 2}\n" for i in range(300))
    Path("qnli.tsv").write_text("question\tsentence\tlabel\n" + rows)
    data = load_data(DataSettings(source="qnli.tsv"), PAIR)
    assert data.splits["train"][0]["text"].startswith("q")
    assert data.splits["train"][0]["text_pair"].startswith("s")


def write_scores(bad: str = "1.5") -> None:
    rows = [f"a {i},b {i},{i / 100}\n" for i in range(299)] + [f"a,b,{bad}\n"]
    Path("s.csv").write_text("sentence1,sentence2,score\n" + "".join(rows))


def test_labels_may_be_numbers() -> None:
    write_scores()
    data = load_data(DataSettings(source="s.csv"), PAIR, scores=True)
    assert data.labels == ()
    assert data.splits["train"].features["label"].dtype == "float64"
    assert any(note == "labels are numbers from 0 to 2.98" for note in data.notes)
    with pytest.raises(DataError):
        load_data(DataSettings(source="s.csv"), PAIR)


@pytest.mark.parametrize("bad", ["", "high", "nan", "inf", "1e999"])
def test_a_label_that_is_no_finite_number_is_named_with_its_line(bad: str) -> None:
    write_scores(bad)
    with pytest.raises(DataError, match=r"s.csv, line 301: the label .* is not a finite number"):
        load_data(DataSettings(source="s.csv"), PAIR, scores=True)


@pytest.mark.parametrize(("settings", "named"), [(TextPairData, "nyu-mll/glue/mrpc"), (TaggedTextData, ".conll")])
def test_a_recipe_without_data_names_sources(settings: type[DataSettings], named: str) -> None:
    with pytest.raises(ConfigError, match="no data of its own") as caught:
        load_data(settings(source=""), PAIR)
    assert named in caught.value.fix


def test_a_folder_of_a_hub_repository_is_a_source(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pairs("mrpc")
    asked = []

    def fetch(repo_id: str, revision: str | None) -> Path:
        asked.append((repo_id, revision))
        return home

    monkeypatch.setattr("finetune.data.plan.hub_data_files", fetch)
    assert len(load_data(DataSettings(source="nyu-mll/glue/mrpc"), PAIR).splits["test"]) == 100
    with pytest.raises(DataError, match="no folder 'rte'") as caught:
        load_data(DataSettings(source="nyu-mll/glue/rte", revision="v1"), PAIR)
    assert "mrpc" in caught.value.fix
    assert asked == [("nyu-mll/glue", None), ("nyu-mll/glue", "v1")]
