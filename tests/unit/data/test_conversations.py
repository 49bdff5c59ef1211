"""Conversations: which tokens are targets, what is cut, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from toy_data import card, put

from finetune.data.batching import RowKey
from finetune.data.blocks import IGNORE
from finetune.data.characters import END, character_tokenizer
from finetune.data.conversations import chat_rows, load_conversations, refuse_lost, use_template
from finetune.errors import ConfigError, DataError
from finetune.evaluation.language import AnswerJudge
from finetune.language_settings import ConversationData

pytestmark = pytest.mark.unit

TEMPLATE = (
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "who?"},
    {"role": "assistant", "content": "me"},
]


@pytest.fixture
def tokenizer() -> object:
    made = character_tokenizer(["abcdefghijklmnopqrstuvwxyz[]?! \n"])
    made.chat_template = TEMPLATE
    return made


def split(*conversations: object) -> datasets.Dataset:
    return datasets.Dataset.from_list(
        [{"id": str(number), "messages": json.dumps(messages)} for number, messages in enumerate(conversations)]
    )


def targets_of(tokenizer: object, row: dict[str, np.ndarray]) -> str:
    assert len(row["input_ids"]) == len(row["targets"])
    return str(tokenizer.decode(row["targets"][row["targets"] != IGNORE]))  # type: ignore[attr-defined]


def test_every_answer_and_its_end_are_targets_and_nothing_else(tokenizer: object) -> None:
    rows = chat_rows(split(TALK), tokenizer, 1000, "responses")
    (row,) = rows.__getitems__([RowKey(0, 0)])
    assert targets_of(tokenizer, row) == f"hi{END}me{END}"
    assert rows.targets.tolist() == [6]
    assert rows.target_bytes.tolist() == [4]
    whole = tokenizer.apply_chat_template(TALK, tokenize=True)["input_ids"]  # type: ignore[attr-defined]
    assert row["input_ids"].tolist() == whole[:-1]
    kept = row["targets"] != IGNORE
    assert row["targets"][kept].tolist() == np.array(whole[1:])[kept].tolist()


def test_everything_may_be_a_target(tokenizer: object) -> None:
    rows = chat_rows(split(TALK), tokenizer, 1000, "all")
    (row,) = rows.__getitems__([RowKey(0, 0)])
    assert (row["targets"] != IGNORE).all()
    assert rows.targets.tolist() == [len(row["targets"])] == rows.lengths.tolist()


def test_rows_that_lose_their_answer_are_counted_and_refused(tokenizer: object) -> None:
    long = [{"role": "user", "content": "hello " * 20}, {"role": "assistant", "content": "no"}]
    rows = {"train": chat_rows(split(TALK, long, TALK), tokenizer, 60, "responses")}
    assert (len(rows["train"]), rows["train"].lost, rows["train"].cut) == (2, 1, 2)
    assert rows["train"].kept.tolist() == [0, 2]
    with pytest.raises(DataError, match=r"train: 1 of 3 rows lose their whole answer at data.max_tokens=60") as refused:
        refuse_lost(rows, 60, 0.01)
    assert "data.max_lost_share=0.34" in str(refused.value)
    notes = refuse_lost(rows, 60, 0.34)
    assert notes[0] == "train: 1 rows lose their whole answer at data.max_tokens=60 and are left out"
    assert notes[1] == "train: 2 of 3 rows have their end cut off at data.max_tokens=60"
    with pytest.raises(DataError, match="1 of 1 rows"):
        refuse_lost({"train": chat_rows(split(long), tokenizer, 60, "responses")}, 60, 0.99)


def test_a_template_that_rewrites_what_came_before_is_refused(tokenizer: object) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + TEMPLATE  # type: ignore[attr-defined]
    with pytest.raises(DataError, match="Row 0: the chat template does not write the conversation up to message 3"):
        chat_rows(split(TALK), tokenizer, 100, "responses")


def test_a_template_that_refuses_is_one_message(tokenizer: object) -> None:
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=r"roles system, user, assistant.*no system role"):
        chat_rows(split(TALK[:3]), tokenizer, 100, "responses")


def test_a_tokenizer_without_a_template_needs_one(tmp_path: Path) -> None:
    tokenizer = character_tokenizer(["ab"])
    with pytest.raises(ConfigError, match="has no chat template"):
        use_template(tokenizer, None)
    with pytest.raises(ConfigError, match=r"data.chat_template=.*gone.jinja can't be read"):
        use_template(tokenizer, str(tmp_path / "gone.jinja"))
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    use_template(tokenizer, str(tmp_path / "own.jinja"))
    assert tokenizer.chat_template == TEMPLATE


BAD = {
    "no list": ('{"messages": "hello"}', "line 1: 'messages' is no list of messages"),
    "no role": ('{"messages": [{"content": "a"}]}', "line 1: message 1 of 'messages' lacks role or content"),
    "no text": (
        '{"messages": [{"role": "user", "content": ["a"]}]}', "message 1 of 'messages' has a role or content that is no"
    ),
    "empty": ('{"messages": [{"role": "user", "content": " "}]}', r"message 1 of 'messages' \(user\) is empty"),
    "more": (
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": [1]}]}',
        "message 2 of 'messages' has 'tool_calls' besides",
    ),
    "no answer": ('{"messages": [{"role": "user", "content": "a"}]}', "has no message of the role assistant"),
    "neither": ('{"instruction": "a", "input": "b"}', "no column has a usual name for the prompt"),
    "empty response": ('{"prompt": "a", "response": ""}', "line 1: the text in 'response' is empty"),
}  # fmt: skip


@pytest.mark.parametrize(("line", "message"), list(BAD.values()), ids=list(BAD))
def test_bad_conversations_are_refused_with_their_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "d.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=message):
        load_conversations(ConversationData(source=str(tmp_path / "d.jsonl")))


def test_messages_and_pairs_are_found_and_not_mixed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    lines = [json.dumps({"messages": [*TALK, {"role": "user", "content": f"bye {i}"}]}) for i in range(300)]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    data = load_conversations(ConversationData(source=str(tmp_path / "chats.jsonl"), max_eval_rows=10))
    assert json.loads(data.splits["train"][0]["messages"])[:5] == TALK
    assert len(data.splits["valid"]) == len(data.splits["test"]) == 10
    assert any(note.startswith("data.max_eval_rows keeps 10 of ") for note in data.notes)
    with pytest.raises(ConfigError, match="does not go with"):
        load_conversations(ConversationData(source=str(tmp_path / "chats.jsonl"), messages="messages", prompt="a"))


def test_a_card_splits_in_order_and_leaves_empty_rows_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path / "cache"))
    block = (
        "  task: text-generation\n  source: {path: ., files: {all: d.csv}}\n  columns: {prompt: q, response: a}\n"
        "  drop_empty: true\n  splits: {in_order: true, valid_share: 0.1, test_share: 0.2}\n"
    )
    rows = [f"ask {i},answer {i}" for i in range(200)] + [" , ", "ask, "]
    put({"c.md": card(block), "d.csv": "\n".join(["q,a", *rows]).encode()})(tmp_path)
    data = load_conversations(ConversationData(source=str(tmp_path / "c.md")))
    numbers = {name: [int(row["prompt"].split()[1]) for row in some] for name, some in data.splits.items()}
    assert numbers["test"] == list(range(160, 200))
    assert numbers["valid"] == list(range(144, 160))
    assert numbers["train"] == list(range(144))
    assert "2 rows were left out because a text of theirs is empty, as the card says" in data.notes


def test_answers_are_judged_by_their_own_tokens_and_bytes(tokenizer: object) -> None:
    short = [{"role": "user", "content": "who?"}, {"role": "assistant", "content": "a"}]
    judge = AnswerJudge({"test": chat_rows(split(TALK, short), tokenizer, 1000, "responses")}, 0)
    values = judge.quick("test", [[9.0], [3.0]])
    assert values["loss"] == pytest.approx(12 / (6 + 2))
    assert values["bits_per_byte"] == pytest.approx(12 / np.log(2) / (4 + 1))
