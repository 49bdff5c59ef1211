"""Files of predictions: all columns come back as they were, nothing is overwritten, nothing is left half-written."""

from __future__ import annotations

import csv
import datetime
import json
import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune.errors import ConfigError, DataError
from finetune.inference.files import KINDS, check_out, read_rows, write_rows

pytestmark = pytest.mark.unit

COLUMNS: dict[str, list[Any]] = {
    "id": ["a", "b"],
    "text": ['He said "no", twice', "näïve 😀"],
    "prediction": ["yes", "no"],
    "probability": [0.75, 0.5],
}
Words = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), min_size=1).filter(
    lambda text: text.strip()
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_comes_back_as_it_was_written(tmp_path: Path, kind: str) -> None:
    out = tmp_path / f"out{kind}"
    write_rows(COLUMNS, out)
    columns, name = read_rows(out, None, None)
    assert name == "text"
    assert list(columns) == list(COLUMNS)
    assert columns["text"] == COLUMNS["text"]
    assert [float(value) for value in columns["probability"]] == [0.75, 0.5]
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_others_read_what_was_written(tmp_path: Path) -> None:
    for kind in KINDS:
        write_rows(COLUMNS, tmp_path / f"out{kind}")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        assert [row["text"] for row in csv.DictReader(file)] == COLUMNS["text"]
    assert (tmp_path / "out.tsv").read_text("utf-8").splitlines()[2] == "b\tnäïve 😀\tno\t0.5"
    objects = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert objects[0] == {name: values[0] for name, values in COLUMNS.items()}
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pydict() == COLUMNS


@pytest.mark.parametrize("kind", [".csv", ".jsonl", ".parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(texts=st.lists(Words, min_size=1, max_size=4))
def test_any_text_survives(tmp_path: Path, kind: str, texts: list[str]) -> None:
    out = tmp_path / f"out{kind}"
    write_rows({"text": texts, "other": texts}, out)
    assert read_rows(out, "text", None)[0]["other"] == texts


@pytest.mark.parametrize("mark", ["\t", "\n", "\r"])
@pytest.mark.parametrize("where", ["value", "header"])
def test_tsv_refuses_what_would_break_its_rows_and_leaves_nothing(tmp_path: Path, mark: str, where: str) -> None:
    name, value = ("te" + mark + "xt", "b") if where == "header" else ("text", "a" + mark + "b")
    with pytest.raises(DataError, match="a tab or a line break") as caught:
        write_rows({"id": ["1", "2"], name: ["fine", value]}, tmp_path / "out.tsv")
    assert ".csv" in caught.value.fix
    assert list(tmp_path.iterdir()) == []


def test_values_that_a_kind_of_file_has_no_form_for(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    columns: dict[str, list[Any]] = {"text": ["a", "b"], "day": [day, None], "score": [math.nan, 1.0], "mix": [1, "x"]}
    write_rows(columns, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert json.loads(lines[0], parse_constant=pytest.fail) == {
        "text": "a", "day": "2026-01-02", "score": None, "mix": 1,
    }  # fmt: skip
    write_rows(columns, tmp_path / "out.csv")
    assert read_rows(tmp_path / "out.csv", None, None)[0]["day"] == ["2026-01-02", ""]
    with pytest.raises(DataError, match="'mix' mixes kinds of values") as caught:
        write_rows(columns, tmp_path / "out.parquet")
    assert ".jsonl" in caught.value.fix
    for kind in KINDS:
        with pytest.raises(DataError, match="half a character"):
            write_rows({"text": ["a\ud83d"]}, tmp_path / f"half{kind}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.jsonl"]


def test_a_place_that_can_not_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    out = tmp_path / "gone" / "out.csv"
    check_out(out)
    out.parent.rmdir()
    with pytest.raises(ConfigError, match="can't be written: No such file"):
        write_rows(COLUMNS, out)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("there.csv", "exists already"),
        ("missing/out.csv", "does not exist"),
        ("out.txt", "ends in none of .csv"),
        ("out", "ends in none of"),
        ("folder.csv", "exists already"),
        ("n" * 300 + ".csv", "name too long"),
    ],
)
def test_an_out_that_would_lose_something_is_refused(tmp_path: Path, name: str, word: str) -> None:
    (tmp_path / "there.csv").write_text("mine")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ConfigError) as caught:
        check_out(tmp_path / name)
    assert word in caught.value.problem
    assert caught.value.fix
    assert (tmp_path / "there.csv").read_text() == "mine"


@pytest.mark.parametrize(
    ("column", "trained_on", "name"),
    [("body", None, "body"), (None, "body", "body"), (None, None, "text"), (None, "gone", "text"),
     ("text", "body", "text")],
)  # fmt: skip
def test_the_text_column_is_the_named_one_then_the_trained_one_then_a_usual_one(
    tmp_path: Path, column: str | None, trained_on: str | None, name: str
) -> None:
    (tmp_path / "in.csv").write_text("body,text\nb,t\n")
    assert read_rows(tmp_path / "in.csv", column, trained_on)[1] == name


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.csv", "text,n\nfine,1\n,2\n", ["in.csv", "line 3", "empty"]),
        ("in.csv", "text,n\nfine,1\n   ,2\n", ["in.csv", "line 3", "empty"]),
        ("in.tsv", "text\tn\nfine\t1\textra\n", ["in.tsv", "line 2"]),
        ("in.csv", "text,n\n", ["no rows"]),
        ("in.csv", "", ["in.csv", "empty"]),
        ("in.csv", "a,b\n1,2\n", ["no column has a usual name for the text", "a, b"]),
        ("in.jsonl", '{"text": "a"}\n{"text": \n', ["in.jsonl", "line 2"]),
        ("in.jsonl", '{"text": "a"}\n{"text": 3}\n', ["in.jsonl", "line 2"]),
        ("in.parquet", "PAR1nonsense", ["in.parquet"]),
        ("in.xlsx", "PK", [".xlsx"]),
    ],
)
def test_a_file_that_can_not_be_read_is_named_with_its_line(
    tmp_path: Path, name: str, content: str, words: list[str]
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name, None, None)
    for word in words:
        assert word in caught.value.problem
    assert "--set" not in str(caught.value)


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.csv"):
        read_rows(tmp_path / "gone.csv", None, None)
    (tmp_path / "in.csv").write_text("text,n\na,1\n")
    with pytest.raises(DataError, match="no column 'txt'") as caught:
        read_rows(tmp_path / "in.csv", "txt", None)
    assert "--column" in caught.value.fix


def test_a_line_that_lacks_a_key_is_named_because_no_column_may_lose_a_row(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b"}\n')
    with pytest.raises(DataError, match=r"line 2: the object has no key 'n'"):
        read_rows(tmp_path / "in.jsonl", None, None)
    (tmp_path / "in.jsonl").write_text('{"text": "a", "n": 1}\n{"text": "b", "n": null}\n')
    assert read_rows(tmp_path / "in.jsonl", None, None)[0] == {"text": ["a", "b"], "n": [1, None]}
