"""What `finetune data check` reads and counts of each kind of rows: texts, pairs, tagged words, conversations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets

from finetune.config import DataSettings, TextClassificationData
from finetune.data.card import card_names, load_card
from finetune.data.checks import Examine, Lengths, token_lengths
from finetune.data.columns import PAIRS, find_columns
from finetune.data.conversations import chat_rows, conversation, conversation_roles, refuse_lost, render
from finetune.data.file_kinds import SUFFIXES
from finetune.data.image_checks import is_images
from finetune.data.plan import make_plan
from finetune.data.readers import open_table
from finetune.errors import ConfigError, DataError
from finetune.image_settings import ImageData
from finetune.language_settings import ConversationData
from finetune.text_settings import TaggedTextData, TextPairData


@dataclass(frozen=True)
class Kind:
    """How rows of one kind are read and counted.

    Attributes:
        roles: role to column name, or None to find it.
        fate: what a run does with rows above the limit.
    """

    name: str
    roles: dict[str, str | None]
    fate: str = "are longer than"


def recognised(source: str) -> type[DataSettings]:
    """The settings of the kind of rows that a source holds, by its card or its columns; texts with labels if unsure.

    Raises:
        DataError, SourceError: the source is not there, or can't be read.
    """
    if is_images(source):
        return ImageData
    if source in card_names() or source.endswith(".md"):
        columns = tuple(load_card(source).block.columns)
        if {"prompt", "messages"} & set(columns):
            return ConversationData
        return (
            TaggedTextData if "tags" in columns else TextPairData if "text_pair" in columns else TextClassificationData
        )
    if is_plain_text(source):
        return TextClassificationData
    plan = make_plan(TextClassificationData(source=source), {})
    path = plan.files[0][1]
    columns = open_table(path, plan.format).columns

    def has(*roles: str) -> bool:
        try:
            find_columns({role: None for role in roles}, columns, path, False)
        except DataError:
            return False
        return True

    names = {name.strip().casefold() for name in columns}
    if has("tokens", "tags"):
        return TaggedTextData
    if any(names >= set(pair) for pair in PAIRS) and has("label"):
        return TextPairData
    if not has("text", "label") and (has("messages") or has("prompt", "response")):
        return ConversationData
    return TextClassificationData


def is_plain_text(source: str) -> bool:
    """Whether a source on this machine is a .txt file, or a folder of nothing else that could be read."""
    path = Path(source)
    files = path.rglob("*") if path.is_dir() else [path]
    return {file.suffix.lower() for file in files if file.suffix.lower() in SUFFIXES} == {".txt"}


def kind_of_rows(settings: DataSettings) -> Kind:
    """What a recipe with these settings reads.

    Raises:
        ConfigError: settings of a kind that is not checked.
    """
    if isinstance(settings, ConversationData):
        return Kind("conversations", conversation_roles(settings))
    if isinstance(settings, TaggedTextData):
        roles = {"tokens": settings.tokens, "tags": settings.tags}
        return Kind("words with tags", roles, "are read in windows, being longer than")
    if isinstance(settings, TextPairData):
        texts = {"text": settings.text, "text_pair": settings.text_pair}
        return Kind("pairs of texts", texts | {"label": settings.label})
    text, label = getattr(settings, "text", ""), getattr(settings, "label", "")
    if text == "":
        raise ConfigError(f"The data of {settings.source} is of no kind that is checked.", "Leave --recipe out.")
    if label == "" or _unlabelled(settings.source):
        return Kind("texts", {"text": text})
    return Kind("texts", {"text": text, "label": label})


def _unlabelled(source: str) -> bool:
    if source in card_names() or source.endswith(".md"):
        return "label" not in load_card(source).block.columns
    return is_plain_text(source)


def lengths_of(settings: DataSettings, tokenizer: Any) -> Lengths:
    """Tokens of each row as a run counts them, special ones included."""
    if isinstance(settings, ConversationData):
        return _chat_lengths(tokenizer)
    if isinstance(settings, TaggedTextData):
        return _word_lengths(tokenizer)
    return token_lengths(tokenizer)


def _word_lengths(tokenizer: Any) -> Lengths:
    def lengths(columns: Sequence[Sequence[Any]]) -> Sequence[int]:
        encoded = tokenizer(
            [list(words) for words in columns[0]], is_split_into_words=True, return_attention_mask=False, verbose=False
        )
        return [len(ids) for ids in encoded["input_ids"]]

    return lengths


def _chat_lengths(tokenizer: Any) -> Lengths:
    def lengths(columns: Sequence[Sequence[str]]) -> Sequence[int]:
        roles = ("messages",) if len(columns) == 1 else ("prompt", "response")
        rows = (dict(zip(roles, values, strict=True)) for values in zip(*columns, strict=True))
        texts = [render(tokenizer, conversation(row)) for row in rows]
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]]

    return lengths


def lost_answers(settings: ConversationData, tokenizer: Any, loss_on: Literal["responses", "all"]) -> Examine:
    """What the limit costs conversations: notes on answers that are cut or lost, an error where too many are."""

    def examine(splits: Mapping[str, datasets.Dataset]) -> tuple[list[str], list[DataError]]:
        notes: list[str] = []
        errors: list[DataError] = []
        for name, split in splits.items():
            try:
                rows = {name: chat_rows(split, tokenizer, settings.max_tokens, loss_on)}
                notes += refuse_lost(rows, settings.max_tokens, settings.max_lost_share)
            except DataError as error:
                errors.append(error)
        return notes, errors

    return examine
