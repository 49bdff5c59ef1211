"""Checks: numbers that can be counted by hand, also for data that a run would refuse."""

from pathlib import Path

import pytest
from toy_data import GOOD, csv, put

from finetune.config import TextClassificationData
from finetune.data.checks import CheckReport, check_data

pytestmark = pytest.mark.unit

ROLES = {"text": None, "label": None}


def check(source: Path, **options: object) -> CheckReport:
    return check_data(TextClassificationData(source=str(source)), ROLES, **options)


def test_counts(tmp_path: Path) -> None:
    twins = [("Same text", "pos"), ("same  TEXT", "pos"), ("same  TEXT", "neg"), ("Same text", "pos")]
    put({"a.csv": csv([*GOOD, *twins])})(tmp_path)
    report = check(tmp_path / "a.csv")
    assert report.problems == {}
    assert sum(report.measured.rows.values()) == 204
    assert {label: sum(counts.values()) for label, counts in report.measured.label_counts.items()} == {
        "neg": 101,
        "pos": 103,
    }
    duplicates = report.measured.duplicates
    assert (duplicates.exact, duplicates.normalised, duplicates.conflicting) == (2, 3, 4)
    assert report.measured.leaks == {"valid": 0, "test": 0}
    assert report.lengths.unit == "words"
    assert report.lengths.percentiles["max"] == 4


def test_leaks_between_published_files(tmp_path: Path) -> None:
    put({"train.csv": csv(GOOD), "test.csv": csv([*GOOD[:7], *((f"n {i}", "pos") for i in range(60))])})(tmp_path)
    assert check(tmp_path).measured.leaks == {"valid": 0, "test": 7}


def test_truncation_by_class(tmp_path: Path) -> None:
    rows = [(f"{'long ' * 9 if label == 'pos' else ''}{text}", label) for text, label in GOOD]
    put({"a.csv": csv(rows)})(tmp_path)
    report = check(
        tmp_path / "a.csv",
        lengths=lambda columns: [len(text.split()) for text in columns[0]],
        unit="tokens",
        max_length=8,
    )
    assert report.lengths.truncated == 0.5
    assert report.lengths.truncated_by_label == {"neg": 0.0, "pos": 1.0}


def test_every_problem_is_counted_with_its_first_lines(tmp_path: Path) -> None:
    bad = b",pos\n ,neg\nx,\na,b,c\nlast one, Pos\n" + b",pos\n" * 3
    put({"a.csv": csv(GOOD) + bad})(tmp_path)
    report = check(tmp_path / "a.csv")
    assert {kind: count for kind, (count, _) in report.problems.items()} == {
        "empty texts": 5,
        "missing labels": 1,
        "ragged rows": 1,
        "labels that differ in case or space only": 1,
    }
    first = report.problems["empty texts"][1]
    assert len(first) == 3
    assert "line 202" in first[0]
    assert sum(report.measured.rows.values()) == 201


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (csv([(text, "pos") for text, _ in GOOD]), "one class only"),
        (csv(GOOD[:2]), "splits without a row"),
        (csv([("", "pos"), ("", "neg")]), "files without a row"),
        (csv([(text, f"{i}.5") for i, (text, _) in enumerate(GOOD)]), "labels that are measurements"),
        (
            csv([(f"{i % 9},{text}", label) for i, (text, label) in enumerate(GOOD)], "id,text,label"),
            "ids that stand twice",
        ),
    ],
)
def test_data_that_a_run_refuses_is_still_described(tmp_path: Path, content: bytes, kind: str) -> None:
    put({"a.csv": content})(tmp_path)
    report = check(tmp_path / "a.csv")
    assert kind in report.problems
    assert report.as_dict()["problems"][kind]["count"] >= 1


def test_nothing_goes_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    put({"a.csv": csv(GOOD)})(tmp_path)
    check(tmp_path / "a.csv")
    assert not (tmp_path / "cache").exists()
