"""`finetune data check` with the default recipe's real tokenizer, and without a network."""

import argparse
import json
from pathlib import Path

import pytest

from finetune.commands import data
from finetune.errors import SourceError

pytestmark = pytest.mark.integration


def finetune(*words: str) -> int:
    parser = argparse.ArgumentParser(prog="finetune")
    data.add(parser.add_subparsers())
    args = parser.parse_args(["data", *words])
    return int(args.call(args))


def test_tokens_are_those_of_the_default_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune("check", "sms_spam", "--json", "--max-tokens", "64") == 0
    lengths = json.loads(capsys.readouterr().out)["lengths"]
    assert lengths["unit"] == "tokens"
    assert lengths["percentiles"]["max"] == 7_896  # as the card's known issues say
    assert lengths["truncated"] == 0.0194


def test_words_stand_in_when_the_default_model_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_model(name: str, revision: str | None) -> None:
        raise SourceError(f"{name} can't be fetched: no network.", "Connect.")

    monkeypatch.setattr("finetune.data.sources.resolve_model", no_model)
    rows = "".join(f"film number {i},{i % 2}\n" for i in range(300))
    (tmp_path / "reviews.csv").write_text(f"text,label\n{rows}")
    assert finetune("check", str(tmp_path / "reviews.csv")) == 0
    printed = capsys.readouterr()
    assert "length in words" in printed.out
    assert "can't be fetched: no network. Counting words" in printed.err
    with pytest.raises(SourceError):
        finetune("check", str(tmp_path / "reviews.csv"), "--model", "some/model")
