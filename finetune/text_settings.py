"""Settings of text tasks beside plain classification: pairs of texts, and words with tags."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune.config import ClassificationObjective, DataSettings, Section


class TextPairData(DataSettings):
    """Rows of two texts and a label or a number."""

    examples: ClassVar[str] = (
        "Give pairs with --data: a hub id (nyu-mll/glue/mrpc, nyu-mll/glue/rte, sentence-transformers/stsb), a CSV, "
        "TSV, JSONL or Parquet file with the columns sentence1, sentence2 and label, or a folder with train and test "
        "files (GLUE's own are read as they are)."
    )
    text: str | None = None
    """Name of the first text's column. `none` finds it (sentence1, premise, question1, ...)."""
    text_pair: str | None = None
    """Name of the second text's column. `none` finds it (sentence2, hypothesis, question2, ...)."""
    label: str | None = None
    """Name of the label column. `none` finds it (label, class, score, ...)."""
    max_tokens: Annotated[int, Field(ge=8)] = 128
    """Longer pairs are cut here, the longer text first; `finetune plan` and the run say how many."""


class TaggedTextData(DataSettings):
    """Rows of words with a tag each."""

    examples: ClassVar[str] = (
        "Give tagged words with --data: a hub id (tner/wnut2017, eriktks/conll2003 with --set "
        "data.revision=refs/convert/parquet), a .conll file (a word, a tab and its tag on each line, a blank line "
        'after each sentence), JSONL with {"tokens": [...], "tags": [...]}, or a folder with train and test files.'
    )
    tokens: str | None = None
    """Name of the column of words. `none` finds it (tokens, words; in CoNLL files the first)."""
    tags: str | None = None
    """Name of the column of tags, IOB2 or IOBES. `none` finds it (tags, ner_tags, labels; in CoNLL files the last)."""
    max_tokens: Annotated[int, Field(ge=16)] = 128
    """Longer sentences are read in windows of so many sub-words; every word is predicted once."""
    overlap_tokens: Annotated[int, Field(ge=0)] = 32
    """Sub-words that neighbouring windows share at least, so that no word stands at the edge of both."""


class PairObjective(ClassificationObjective):
    """What is learned of a pair: its class, or a number."""

    kind: Literal["classification", "regression"] = "classification"
    """`regression` reads labels as numbers, minimises their squared error, and keeps the best Pearson correlation."""
    positive: str | None = None
    """Label whose own F1 is measured besides, as GLUE does for MRPC (1)."""


class BaselineObjective(Section):
    """Whether anything is measured beside the model."""

    baselines: bool = True
    """Measure what needs no fine-tuning on the same test rows, so that the gain can be seen."""


class FewShotObjective(BaselineObjective):
    """How pairs are made of a few labelled texts."""

    rounds: Annotated[int, Field(ge=1)] = 20
    """In each round every text meets one of its own class and one of another: 2 x rounds x texts pairs an epoch."""
    each_text_once: bool = False
    """Encode a text once for all of a micro-batch's pairs that it is in, which then share its dropout: with few texts
    half the work or less. Without dropout the same but for rounding."""


class MaskedTextData(DataSettings):
    """Documents of plain text: a .txt file or a folder of them, or a text column of a table."""

    text: str | None = None
    """Name of the text column. `none` finds it (text, sentence, content, review, ...)."""
    block_tokens: Annotated[int, Field(ge=16)] = 128
    """Longest stretch that the model sees at once. Longer documents are cut into blocks; no token is left out."""


class MaskedObjective(BaselineObjective):
    """Which tokens are hidden from the model."""

    mask_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.15
    """Share of the tokens to be predicted; of these 80 % are masked, 10 % become another token, 10 % stay."""
    whole_words: bool = True
    """Hide all sub-words of a word together; alone, one is often given away by the others."""
