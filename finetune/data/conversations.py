"""Conversations as rows of a causal language model, by the tokenizer's own chat template: answers are the targets."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from finetune.config import DataSettings
from finetune.data.batching import RowKey
from finetune.data.blocks import IGNORE
from finetune.data.loader import LoadedData, load_data
from finetune.data.plan import make_plan
from finetune.data.readers import open_table
from finetune.data.splits import SPLITS, first_in_hash_order, split_hash
from finetune.errors import ConfigError, DataError
from finetune.language_settings import ConversationData

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]


@dataclass(frozen=True)
class ChatRows:
    """Rows of one conversation each, with the targets that count.

    Attributes:
        ids: token ids of all rows end to end, [tokens] int32.
        counts: whether a token is a target, [tokens] bool; never a row's first.
        offsets: row i is offsets[i]:offsets[i + 1], [rows + 1].
        target_bytes: UTF-8 bytes of each row's targets as text, [rows].
        cut: rows that lost targets at the limit, but not all.
        lost: rows that lost all of them, which are not among the rows.
        kept: index of each row in the split it was made of, [rows].
    """

    ids: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    target_bytes: np.ndarray
    cut: int
    lost: int
    kept: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets) - 1

    @property
    def targets(self) -> np.ndarray:
        """Targets of each row, [rows]."""
        return np.add.reduceat(self.counts, self.offsets[:-1]).astype(np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitems__(self, keys: list[RowKey]) -> list[dict[str, Any]]:
        return [self._row(slice(*self.offsets[key.index : key.index + 2])) for key in keys]

    def _row(self, part: slice) -> dict[str, Any]:
        ids, counts = self.ids[part], self.counts[part]
        return {"input_ids": ids[:-1], "targets": np.where(counts[1:], ids[1:], IGNORE)}


def load_conversations(settings: DataSettings) -> LoadedData:
    """Rows of `messages`, or of `prompt` and `response`, whichever the data has; then at most `max_eval_rows` to judge.

    Raises:
        DataError: the data has neither, or a row is wrong (with its line).
        ConfigError: both are named.
    """
    assert isinstance(settings, ConversationData)
    return _fewer_to_judge(load_data(settings, conversation_roles(settings)), settings.max_eval_rows)


def conversation_roles(settings: ConversationData) -> dict[str, str | None]:
    """`messages`, or `prompt` and `response`, whichever the data has, with the columns that are named.

    Raises:
        DataError: the data is not there.
        ConfigError: both are named.
    """
    named = {"prompt": settings.prompt, "response": settings.response}
    if settings.messages is not None and any(named.values()):
        raise ConfigError("data.messages does not go with data.prompt and data.response.", "Name one or the other.")
    plan = make_plan(settings, {})
    columns = plan.card.block.columns if plan.card else open_table(plan.files[0][1], plan.format).columns
    usual = any(column.strip().casefold() in ("messages", "conversation", "conversations") for column in columns)
    whole = settings.messages is not None or (usual and not any(named.values()))
    return {"messages": settings.messages} if whole else named


def conversation(row: Mapping[str, Any]) -> list[Message]:
    """A loaded row's messages."""
    if "messages" in row:
        return list(json.loads(row["messages"]))
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]


def tokenize_conversations(
    data: LoadedData,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    loss_on: Literal["responses", "all"],
    max_lost_share: float,
) -> tuple[LoadedData, dict[str, ChatRows]]:
    """`chat_rows` of every split, and the data without the rows that lose their whole answer, with notes on both.

    Raises:
        DataError: more than `max_lost_share` of a split would be left out, or the template doesn't fit.
    """
    rows = {name: chat_rows(split, tokenizer, max_tokens, loss_on) for name, split in data.splits.items()}
    notes = refuse_lost(rows, max_tokens, max_lost_share)
    splits = {name: split.select(rows[name].kept) for name, split in data.splits.items()}
    return replace(data, splits=splits, notes=(*data.notes, *notes)), rows


def use_template(tokenizer: PreTrainedTokenizerBase, file: str | None) -> None:
    """Give the tokenizer the chat template of a Jinja file; without one it must have its own.

    Raises:
        ConfigError: the file can't be read, or there is no template at all.
    """
    if file is not None:
        try:
            tokenizer.chat_template = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.chat_template={file} can't be read: {error}.", "Give a Jinja file.") from None
    if not tokenizer.chat_template:
        raise ConfigError(
            "The model's tokenizer has no chat template, so it is not said how a conversation is written down.",
            "Take an instruction-tuned model, or give one: --set data.chat_template=FILE.jinja",
        )


def render(tokenizer: PreTrainedTokenizerBase, messages: list[Message], *, to_answer: bool = False) -> str:
    """A conversation as the template writes it; `to_answer` ends it where the assistant's next answer begins.

    Raises:
        ConfigError: the template refuses the messages (roles that it has not, or in another order), or is no Jinja.
    """
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=to_answer))
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ConfigError(
            f"The chat template refuses a conversation of the roles {roles}: {error}.",
            "Give those rows other roles, or another template: --set data.chat_template=FILE.jinja",
        ) from None


def chat_rows(
    split: datasets.Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    loss_on: Literal["responses", "all"],
) -> ChatRows:
    """Token ids of every conversation, cut after `max_tokens`, and which of them are targets.

    A conversation is tokenised in pieces that end where an answer begins and where it ends, because that is how a
    model sees it when it answers: what stands before is tokenised without knowing what follows. An answer's targets
    reach to its end token; a line break that the template puts behind it is none.

    Raises:
        DataError: the template does not write a conversation's beginning as it writes the whole.
    """
    ids: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    target_bytes: list[int] = []
    kept: list[int] = []
    cut = lost = 0
    for index, row in enumerate(split):
        pieces = list(_pieces(tokenizer, conversation(row), str(row["id"])))
        tokens = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
        row_ids = np.array([token for piece in tokens for token in piece], dtype=np.int32)
        answers = [loss_on == "all" or answer for _, answer in pieces]
        counted = np.repeat(answers, [len(piece) for piece in tokens])
        counted[:1] = False
        whole = int(counted.sum())
        row_ids, counted = row_ids[:max_tokens], counted[:max_tokens]
        if not counted.any():
            lost += 1
            continue
        cut += int(counted.sum()) < whole
        ids.append(row_ids)
        counts.append(counted)
        kept.append(index)
        target_bytes.append(len(tokenizer.decode(row_ids[counted], skip_special_tokens=True).encode()))
    lengths = [len(some) for some in ids]
    return ChatRows(
        np.concatenate(ids) if ids else np.zeros(0, np.int32),
        np.concatenate(counts) if counts else np.zeros(0, bool),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.array(target_bytes, dtype=np.int64),
        cut,
        lost,
        np.array(kept, dtype=np.int64),
    )


def refuse_lost(rows: Mapping[str, ChatRows], max_tokens: int, limit: float) -> list[str]:
    """Notes on rows that are cut; those that lose their whole answer are left out, up to a share of a split's rows.

    Raises:
        DataError: more than that share of a split would be left out.
    """
    notes = []
    for name, some in rows.items():
        total, at = len(some) + some.lost, f"at data.max_tokens={max_tokens}"
        if some.lost > limit * total or not len(some):
            raise DataError(
                f"{name}: {some.lost:,} of {total:,} rows lose their whole answer {at}, more than "
                f"data.max_lost_share={limit:g}.",
                "Raise data.max_tokens, shorten the prompts, or allow it: --set data.max_lost_share="
                f"{min(0.99, some.lost / total + 0.01):.2f}",
            )
        if some.lost:
            notes.append(f"{name}: {some.lost:,} rows lose their whole answer {at} and are left out")
        if some.cut:
            notes.append(f"{name}: {some.cut:,} of {total:,} rows have their end cut off {at}")
    counted = (f"{name} {int(some.targets.sum()):,} of {len(some.ids):,}" for name, some in rows.items())
    return [*notes, "tokens that are targets: " + ", ".join(counted)]


def _pieces(tokenizer: PreTrainedTokenizerBase, messages: list[Message], row: str) -> Iterator[tuple[str, bool]]:
    """The rendered conversation in pieces, with whether each is what the assistant says, end token included."""
    whole, done = render(tokenizer, messages), ""
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:number], to_answer=True) if number else ""
        after = render(tokenizer, messages[: number + 1])
        if not (before.startswith(done) and after.startswith(before) and whole.startswith(after)):
            raise DataError(
                f"Row {row}: the chat template does not write the conversation up to message {number + 1} as it writes "
                "the whole, so it is not known which tokens are the answer.",
                "Shorten conversations to one answer, or give another template: --set data.chat_template=FILE.jinja",
            )
        answer = after[len(before) :]
        end = str(tokenizer.eos_token or "")
        spoken = answer.rstrip() if end and answer.rstrip().endswith(end) else answer
        yield before[len(done) :], False
        yield spoken, True
        done = before + spoken
    yield whole[len(done) :], False


def _fewer_to_judge(data: LoadedData, most: int | None) -> LoadedData:
    if most is None:
        return data
    splits, notes = dict(data.splits), list(data.notes)
    for name in SPLITS[1:]:
        split = splits[name]
        if len(split) > most:
            hashes = np.array(
                [split_hash("judged", [str(message) for message in conversation(row)]) for row in split], np.uint64
            )
            splits[name] = split.select(first_in_hash_order(hashes, most))
            notes.append(f"data.max_eval_rows keeps {most:,} of {len(split):,} {name} rows")
    return replace(data, splits=splits, notes=tuple(notes))
