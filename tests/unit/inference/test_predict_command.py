"""`finetune predict`: flags and run folders that can't be used are refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.adapters.peft_adapter import load_peft
from finetune.errors import ConfigError, SourceError
from finetune.files import sha256_file
from finetune.inference.command import predict

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("text\ngood\n")
    return write_record("completed", "text-classification")


def write_record(status: str, task: str) -> Path:
    record = {
        "status": status, "task": task, "recipe": {"name": "bert_cls", "origin": "packaged"},
        "config": {"data": {"text": None}}, "data": {"labels": ["no", "yes"]},
    }  # fmt: skip
    Path("run").mkdir(exist_ok=True)
    Path("run/run.json").write_text(json.dumps(record))
    return Path("run")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"texts": ["a"], "out": "o.csv"}, "--out and --column go with --file"),
        ({"texts": ["a"], "column": "c"}, "--out and --column go with --file"),
        ({"texts": ["a", " "]}, "--text is empty"),
        ({"texts": [""]}, "--text is empty"),
        ({"file": "in.csv"}, "--file needs --out"),
        ({"file": "in.csv", "out": "in.csv"}, "exists already"),
        ({"file": "in.csv", "out": "o.xlsx"}, "ends in none of"),
        ({"file": "in.csv", "out": "gone/o.csv"}, "does not exist"),
        ({"texts": ["a"]}, "run/model/config.json is not there"),
        ({"texts": ["a"], "pairs": ["b"]}, "predicts from one text"),
        ({"file": "in.csv", "out": "o.csv", "pair_column": "b"}, "predicts from one text"),
    ],
)
def test_what_does_not_go_together(arguments: dict[str, Any], word: str) -> None:
    values = {"texts": None, "file": None, "out": None, "column": None, **arguments}
    with pytest.raises(ConfigError) as caught:
        predict("run", **values)
    assert word in caught.value.problem
    assert caught.value.fix
    assert sorted(path.name for path in Path().iterdir()) == ["in.csv", "run"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"texts": ["a", "b"], "pairs": ["c"]}, "2 --text and 1 --text-pair"),
        ({"texts": ["a"]}, "1 --text and 0 --text-pair"),
        ({"texts": ["a"], "pairs": [" "]}, "--text-pair is empty"),
        ({"texts": ["a"], "pairs": ["b"], "pair_column": "c"}, "--column-pair goes with --file"),
        ({"file": "in.csv", "out": "o.csv", "pairs": ["b"]}, "--text-pair goes with --text"),
    ],
)
def test_a_run_on_pairs_wants_two_texts(arguments: dict[str, Any], word: str) -> None:
    record = json.loads(Path("run/run.json").read_text())
    record["config"]["data"]["text_pair"] = None
    Path("run/run.json").write_text(json.dumps(record))
    values = {"texts": None, "file": None, "out": None, "column": None, **arguments}
    with pytest.raises(ConfigError) as caught:
        predict("run", **values)
    assert word in caught.value.problem
    assert caught.value.fix


def test_what_the_run_did_not_write_is_named_before_it_is_loaded() -> None:
    record = json.loads(Path("run/run.json").read_text())
    model = Path("run/model")
    model.mkdir()
    (model / "config.json").write_text("{}")
    hashes = {"config.json": sha256_file(model / "config.json")}
    for name in ("config.json", "model.safetensors"):  # changed, and missing
        record["export_check"] = {"parts": {"model": {}}, "sha256": hashes | {name: "0" * 64}}
        Path("run/run.json").write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=rf"run/model/{name} is not the one that the run wrote"):
            predict("run", ["a"], None, None, None)


TRICKS: list[tuple[dict[str, Any], str]] = [
    # A kind that transformers doesn't know: it would ask on the terminal whether to import this.
    ({"config.json": {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}}, "asks for code"),
    ({"config.json": {}, "tokenizer_config.json": {"vocab_file": "../../secret.txt"}}, "leaves the model's folder"),
    (
        {"config.json": {}, "model.safetensors.index.json": {"weight_map": {"w": "../../w.safetensors"}}},
        "no safetensors file of its folder",
    ),
    ({"config.json": {}, "pytorch_model.bin": {}}, "can run code when loaded"),
]


@pytest.mark.parametrize(("files", "word"), TRICKS)
def test_a_run_folder_from_elsewhere_is_looked_at_before_a_library_reads_it(
    files: dict[str, Any], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("run/model").mkdir()
    for name, content in files.items():
        Path("run/model", name).write_text(json.dumps(content))
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(SourceError, match=word):
        predict("run", ["a"], None, None, None)


def test_an_adapter_is_looked_at_before_peft_reads_it() -> None:
    adapter = Path("run/adapter")
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_mapping": {"parent_library": "unread"}}')
    (adapter / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(SourceError, match=r"adapter_model\.safetensors is not there"):
        load_peft(None, adapter)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "auto_map": {"AutoModel": "evil.Model"}}')
    with pytest.raises(SourceError, match="asks for code"):
        load_peft(None, adapter)


def test_a_run_that_is_not_finished_says_how_to_finish_it() -> None:
    write_record("interrupted", "text-classification")
    with pytest.raises(ConfigError, match="run is interrupted, not completed") as caught:
        predict("run", ["a"], None, None, None)
    assert "--resume run" in caught.value.fix


def test_a_run_of_another_kind_and_no_run_at_all() -> None:
    write_record("completed", "translation")
    with pytest.raises(ConfigError, match="translation run"):
        predict("run", ["a"], None, None, None)
    with pytest.raises(ConfigError, match=r"gone/run.json is not there"):
        predict("gone", ["a"], None, None, None)
