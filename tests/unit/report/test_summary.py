"""The table at the end of a run."""

from typing import Any

import pytest

from finetune.report.summary import cut, summary_table, text_width

pytestmark = pytest.mark.unit


def test_the_whole_table(record: dict[str, Any]) -> None:
    assert summary_table(record) == "\n".join(
        [
            "movie_snippets test, 2,121 rows; 95 % intervals in brackets",
            "                              accuracy               macro F1               Matthews correlation",
            "fine-tuned                    0.842 [0.826, 0.858]   0.841 [0.825, 0.857]   0.684 [0.654, 0.714]",
            "majority class                0.509 [0.493, 0.525]   0.508 [0.492, 0.524]   0.018 [-0.012, 0.048]",
            "TF-IDF + logistic regression  0.781 [0.765, 0.797]   0.780 [0.764, 0.796]   0.563 [0.533, 0.593]",
            "frozen-encoder probe          0.803 [0.787, 0.819]   0.802 [0.786, 0.818]   0.607 [0.577, 0.637]",
            "",
            "fine-tuned against            points of accuracy             p         so it is",
            "majority class                +33.3 [+31.9, +34.7]           < 0.001   better",
            "TF-IDF + logistic regression  +6.1 [+4.7, +7.5]              < 0.001   better",
            "frozen-encoder probe          +3.9 [+2.5, +5.3]              < 0.001   better",
            "",
            "class     precision  recall      F1      rows",
            "negative      0.840   0.850   0.845     1,080",
            "positive      0.850   0.840   0.845     1,041",
        ]
    )


def test_a_gain_whose_interval_holds_zero_is_not_called_better(record: dict[str, Any]) -> None:
    record["gains"]["frozen-encoder probe"].update(value=0.004, low=-0.004, high=0.012, p=0.4)
    record["gains"]["majority class"].update(value=-0.02, low=-0.03, high=-0.01, p=0.002)
    table = summary_table(record)
    assert "+0.4 [-0.4, +1.2]              0.400     not distinguishable" in table
    assert "-2.0 [-3.0, -1.0]              0.002     worse" in table


def test_no_line_is_wider_than_100_columns(record: dict[str, Any]) -> None:
    record["data"]["card"] = "folder/" * 30
    record["baselines"]["a baseline with a very long name that somebody thought of"] = record["metrics"]["test"]
    record["gains"]["評" * 60] = record["gains"]["majority class"]
    record["per_class"]["test"][0]["label"] = "非常に長いラベル" * 20
    record["per_class"]["test"][1]["support"] = 123_456_789
    record["metrics"]["test"] = {
        "a_metric_with_quite_a_long_name": {"value": 12345.6, "low": 1.0, "high": 99999.9, "n": 5}
    }
    for line in summary_table(record).split("\n"):
        assert text_width(line) <= 100, line


def test_labels_cannot_break_the_table(record: dict[str, Any]) -> None:
    record["per_class"]["test"][0]["label"] = "bad\nlabel\x1b[31m"
    assert "bad label [31m" in summary_table(record)


def test_more_than_twenty_classes_are_not_listed(record: dict[str, Any]) -> None:
    record["per_class"]["test"] = record["per_class"]["test"] * 11
    assert summary_table(record).endswith("22 classes: run.json holds the scores of each.")


def test_valid_is_shown_where_there_is_no_test(record: dict[str, Any]) -> None:
    del record["metrics"]["test"]
    assert summary_table(record).startswith("movie_snippets valid, 2,121 rows")


@pytest.mark.parametrize("part", ["baselines", "gains", "per_class", "data", "config"])
def test_parts_may_be_missing(record: dict[str, Any], part: str) -> None:
    del record[part]
    assert "0.842 [0.826, 0.858]" in summary_table(record)


def test_a_run_without_results_says_its_status() -> None:
    assert summary_table({"status": "failed"}) == "No results: the run's status is failed."


def test_cut_counts_columns() -> None:
    assert cut("評論評論", 5) == "評論…"
    assert cut("abc", 3) == "abc"
