"""`finetune data check` with real tokenizers, on every kind of rows, and without a network."""

import argparse
import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.commands import data, data_check
from finetune.config import DataSettings
from finetune.data.loader import load_data
from finetune.errors import ConfigError, SourceError
from finetune.recipe import load_recipe

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


DATA = Path(os.environ.get("FINETUNE_DATA", ""))
NEEDS_DATA = pytest.mark.skipif(not (DATA / "glue").is_dir(), reason="FINETUNE_DATA names no folder with glue, wnut17")


def report_of(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert finetune("check", *words, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@NEEDS_DATA
def test_pairs_are_recognised_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mrpc = DATA / "glue" / "MRPC"
    shutil.copy(mrpc / "train_official3668.tsv", tmp_path / "train.tsv")
    lines = (mrpc / "msr_paraphrase_test.txt").read_text("utf-8").splitlines(keepends=True)
    # A pair of train in test is a leak; one with its texts exchanged is not.
    stolen = (mrpc / "train_official3668.tsv").read_text("utf-8").splitlines(keepends=True)[1]
    quality, first_id, second_id, first, second = stolen.rstrip("\n").split("\t")
    turned = "\t".join([quality, second_id, first_id, second, first]) + "\n"
    (tmp_path / "test.tsv").write_text("".join([*lines, stolen, turned]), "utf-8")
    report = report_of(capsys, str(tmp_path), "--max-tokens", "64")
    assert report["kind"] == "pairs of texts"
    # MRPC's published counts: 2,753 of 4,076 training pairs are paraphrases, 279 of them in GLUE's dev set.
    counts = report["measured"]["label_counts"]["1"]
    assert counts["train"] + counts["valid"] == 2753 - 279
    assert counts["test"] == 1147 + 2 * int(quality)
    assert report["measured"]["leaks"]["test"] == 1
    assert report["lengths"]["unit"] == "tokens"
    # By the tokenizer itself, pair by pair.
    tokenizer = data_check._tokenizer(None, load_recipe("bert_pair"))
    rows = [line.rstrip("\n").split("\t")[3:] for line in (tmp_path / "test.tsv").read_text("utf-8").splitlines()[1:]]
    rows += [line.split("\t")[3:] for line in (tmp_path / "train.tsv").read_text("utf-8").splitlines()[1:]]
    longer = np.mean([len(ids) > 64 for ids in tokenizer([a for a, _ in rows], [b for _, b in rows])["input_ids"]])
    assert report["lengths"]["truncated"] == pytest.approx(longer, abs=1e-4)


@NEEDS_DATA
def test_scores_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (DATA / "glue" / "STS-B" / "train.tsv").read_text("utf-8").splitlines(keepends=True)[:301]
    (tmp_path / "sts.tsv").write_text("".join(lines), "utf-8")
    options = ["--recipe", "bert_pair", "--set", "objective.kind=regression"]
    report = report_of(capsys, str(tmp_path / "sts.tsv"), *options)
    assert sum(report["measured"]["rows"].values()) == 300
    assert report["measured"]["label_counts"] == {}
    assert any("labels are numbers from 0 to 5" in note for note in report["notes"])
    assert finetune("check", str(tmp_path / "sts.tsv"), "--recipe", "bert_pair") == 1  # as classes they are refused
    assert "measurements" in capsys.readouterr().out


@NEEDS_DATA
def test_entities_are_counted_by_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sources = {"wnut17train.conll": "train", "emerging.dev.conll": "dev", "emerging.test.annotated": "test"}
    begins: Counter[str] = Counter()
    for source, name in sources.items():
        text = (DATA / "wnut17" / source).read_text("utf-8")
        (tmp_path / f"{name}.conll").write_text(text, "utf-8")
        begins.update(re.findall(r"\tB-(\S+)$", text, flags=re.MULTILINE))
    report = report_of(capsys, str(tmp_path), "--max-tokens", "48")
    assert report["kind"] == "words with tags"
    counts = report["measured"]["label_counts"]
    assert {name: sum(by_split.values()) for name, by_split in counts.items()} == dict(begins)
    assert sum(by_split["test"] for by_split in counts.values()) == 1079  # table 4 of the shared task's paper
    assert 0 < report["lengths"]["truncated"] < 0.2
    assert report["lengths"]["truncated_by_label"] == {}
    assert finetune("check", str(tmp_path), "--max-tokens", "48") == 0
    printed = capsys.readouterr().out
    assert "6 types of entities" in printed
    assert "of rows are read in windows, being longer than 48 tokens" in printed


def test_conversations_and_answers_that_are_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dialogues = load_data(DataSettings(source="movie_dialogues"), {"prompt": None, "response": None}).splits["train"]
    rows = [{"prompt": row["prompt"], "response": row["response"]} for row in dialogues.select(range(300))]
    chats = [
        {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]}
        for row in rows
    ]
    for name, some in (("pairs", rows), ("chats", chats)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    pairs, whole = (report_of(capsys, str(tmp_path / f"{name}.jsonl")) for name in ("pairs", "chats"))
    assert pairs["kind"] == whole["kind"] == "conversations"
    assert sum(pairs["measured"]["rows"].values()) == 300
    # The same conversations in another form: the same template writes the same tokens.
    assert pairs["lengths"] == whole["lengths"]
    assert any("tokens that are targets" in note for note in pairs["notes"])
    # The template's own beginning takes more than 16 tokens, so no answer is left.
    assert finetune("check", str(tmp_path / "chats.jsonl"), "--max-tokens", "16") == 1
    printed = capsys.readouterr().out
    assert "300" in printed
    assert "rows lose their whole answer at data.max_tokens=16" in printed


def test_what_check_takes_and_refuses(tmp_path: Path) -> None:
    (tmp_path / "reviews.csv").write_text("text,label\n" + "".join(f"film number {i},{i % 2}\n" for i in range(300)))
    with pytest.raises(ConfigError, match=r"train\.lr is not a setting of `finetune data check`"):
        finetune("check", str(tmp_path / "reviews.csv"), "--set", "train.lr=1")
    with pytest.raises(ConfigError, match="no kind that is checked"):
        finetune("check", str(tmp_path / "reviews.csv"), "--recipe", "resnet_pretrain")
