"""Documents packed for a language model; writing on from a prompt: the same for the same seed, beyond the context."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.data.batching import RowKey
from finetune.data.characters import character_tokenizer
from finetune.data.loader import LoadedData
from finetune.language_modeling import generate, pack_splits, sampler

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def tokenizer() -> object:
    return character_tokenizer(["abcdefgh"])


@pytest.fixture(scope="module")
def model(tokenizer: object) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    # Special tokens that are never drawn, so that lengths are known.
    config = GPT2Config(
        vocab_size=8, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


@pytest.mark.parametrize("across", [False, True])
def test_every_document_ends_with_the_end_and_shares_a_block_only_when_asked(
    across: bool, tokenizer: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    texts, end = ["abc", "hgfedcba"], tokenizer.eos_token_id  # type: ignore[attr-defined]
    split = datasets.Dataset.from_dict({"id": ["1", "2"], "text": texts})
    blocks, text_bytes = pack_splits(LoadedData("x", None, {"train": split}, (), "", ()), tokenizer, 5, across)
    rows = blocks["train"].__getitems__([RowKey(0, index) for index in range(len(blocks["train"]))])
    # The first character of each is predicted from an end, and its own end from its last character.
    targets = np.concatenate([row["targets"] for row in rows]).tolist()
    assert targets == [0, 1, 2, end, 7, 6, 5, 4, 3, 2, 1, 0, end]
    assert [row["input_ids"][0] for row in rows] == ([end, 7, 2] if across else [end, end, 3])
    assert [len(row["targets"]) for row in rows] == ([5, 5, 3] if across else [4, 5, 4])
    assert text_bytes["train"].tolist() == [3, 8]


@pytest.mark.parametrize(("prompt", "tokens"), [("abc", 5), ("abc", 60), ("abcdefgh" * 5, 7), ("a" * 16, 1)])
def test_as_many_tokens_as_asked_whatever_the_context(
    prompt: str, tokens: int, model: GPT2LMHeadModel, tokenizer: object
) -> None:
    model.train()
    written = generate(model, tokenizer, prompt, tokens, seed=1)
    assert len(written) == tokens
    assert set(written) <= set("abcdefgh")
    assert written == generate(model, tokenizer, prompt, tokens, seed=1)
    assert model.training
    if tokens > 30:
        assert written != generate(model, tokenizer, prompt, tokens, seed=2)


def test_nothing_is_sampled_without_prompts_or_tokens(tokenizer: object) -> None:
    assert sampler(tokenizer, [], 5, 0) is None
    assert sampler(tokenizer, ["a"], 0, 0) is None
