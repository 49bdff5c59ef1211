"""`finetune data`: what it prints, where, and its exit status."""

import argparse
import json
from pathlib import Path

import pytest

from finetune.commands import data, data_check
from finetune.errors import ConfigError, DataError

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_check, "_tokenizer", lambda *_: None)
    rows = [f"{'fine' if i % 2 else 'poor'} film number {i},{i % 2}" for i in range(300)]
    (tmp_path / "reviews.csv").write_text("\n".join(["review,stars", *rows, ""]))


def finetune(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="finetune")
    data.add(parser.add_subparsers())
    args = parser.parse_args(["data", *words])
    status = args.call(args)
    assert isinstance(status, int)
    return status


def test_check_prints_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("check", "reviews.csv") == 0
    printed = capsys.readouterr().out
    assert "300 rows" in printed
    assert "A run can train on this data." in printed
    assert max(len(line) for line in printed.splitlines()) <= 120


def test_check_counts_tokens_and_what_is_cut_off(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Letters:
        def __call__(self, texts: list[str], **_: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[ord(letter) for letter in text] for text in texts]}

    monkeypatch.setattr(data_check, "_tokenizer", lambda *_: Letters())
    finetune("check", "reviews.csv", "--max-tokens", "19", "--json")
    lengths = json.loads(capsys.readouterr().out)["lengths"]
    assert lengths["percentiles"] == {"p50": 20, "p90": 20, "p95": 20, "p99": 20, "max": 20}
    # "fine film number 7" has 18 letters; 200 of the 300 have three digits
    assert lengths["truncated"] == 0.6667
    finetune("check", "reviews.csv", "--max-tokens", "17")
    assert "100.00% of rows are longer than 17 tokens" in capsys.readouterr().out


def test_check_says_what_a_run_would_refuse(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("reviews.csv").open("a") as file:
        file.write(",1\n")
    assert finetune("check", "reviews.csv") == 1
    assert "reviews.csv, line 302" in capsys.readouterr().out


def test_check_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("check", "reviews.csv", "--json", "--set", "data.label=stars") == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["measured"]["rows"].values()) == 300
    assert report["measured"]["duplicates"] == {"exact": 0, "normalised": 0, "conflicting": 0}
    assert report["problems"] == {}


def test_a_misspelt_setting_is_refused_with_the_right_one() -> None:
    with pytest.raises(ConfigError, match=r"data\.lable.*\n.*data\.label"):
        finetune("check", "reviews.csv", "--set", "data.lable=stars")


def test_card_is_printed_or_saved(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("card", "reviews.csv", "--license", "mit", "--language", "en") == 0
    assert capsys.readouterr().out.startswith("---\nlicense: mit\n")
    assert finetune("card", "reviews.csv", "--out", "cards/reviews.md") == 0
    assert "TODO" not in Path("cards/reviews.md").read_text()
    assert finetune("check", "cards/reviews.md") == 0
    with pytest.raises(DataError, match="exists already"):
        finetune("card", "reviews.csv", "--out", "cards/reviews.md")


def test_list_names_every_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [
        "digits",
        "grimm_tales",
        "movie_dialogues",
        "movie_snippets",
        "newsgroups_20",
        "reuters_r52",
        "reuters_r8",
        "sms_spam",
    ]


def test_no_subcommand_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        finetune()
    assert "error: the following arguments are required: COMMAND" in capsys.readouterr().err
