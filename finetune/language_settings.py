"""Settings of causal language models: plain text, and conversations."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune.config import DataSettings, Section, Share


class PlainTextData(DataSettings):
    """Documents of plain text: a .txt file or a folder of them, or a text column of a table."""

    text: str | None = None
    """Name of the text column. `none` finds it (text, sentence, content, review, ...)."""
    block_tokens: Annotated[int, Field(ge=8)] = 512
    """Longest stretch that the model sees at once. Longer documents are cut into blocks; no token is left out."""
    pack_across_documents: bool = False
    """Join all documents to one stream, so that blocks are full but cross documents' ends."""


class LanguageModelObjective(Section):
    """What is measured beside a language model's loss."""

    baselines: bool = True
    """Measure the model before training on the same test documents, so that the gain can be seen."""
    prompts: list[str] = Field(default_factory=lambda: ["Once upon a time"])
    """Beginnings that the model goes on from before and after training; the record and the model card show both."""
    sample_tokens: Annotated[int, Field(ge=0)] = 40
    """Tokens that are sampled after each prompt; 0 for none."""


class ConversationData(DataSettings):
    """Conversations: a column of messages, or one of prompts and one of responses."""

    messages: str | None = None
    """Name of a column of lists of {"role", "content"}. `none` finds it (messages, conversation, conversations)."""
    prompt: str | None = None
    """Name of the prompts' column. `none` finds it (prompt, question, statement, user)."""
    response: str | None = None
    """Name of the responses' column. `none` finds it (response, completion, answer, reply, output, assistant)."""
    chat_template: str | None = None
    """Jinja file that says how a conversation is written down. `none` takes the tokenizer's own."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Longer conversations are cut here; the run says how many."""
    max_lost_share: Share = 0.01
    """Share of a split's rows that may lose their whole answer at max_tokens; they are left out, more is refused."""
    max_eval_rows: Annotated[int, Field(ge=1)] | None = None
    """Validate and test on so many rows each, chosen by a hash of their text; `none` takes all."""


class ConversationObjective(Section):
    """What a chat model learns of a conversation, and what is measured beside its loss."""

    loss_on: Literal["responses", "all"] = "responses"
    """Which tokens are targets: what the assistant says, or everything."""
    baselines: bool = True
    """Measure the model before training on the same test rows, so that the gain can be seen."""
    answered_rows: Annotated[int, Field(ge=0)] = 6
    """Test conversations whose last answer is written anew before and after training; the model card shows them."""
    answer_tokens: Annotated[int, Field(ge=1)] = 40
    """Most tokens of such an answer; one that does not end before is counted."""
