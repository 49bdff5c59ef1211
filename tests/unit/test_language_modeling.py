"""Writing on from a prompt: the same for the same seed, and longer than the model's context."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from finetune.data.characters import character_tokenizer
from finetune.language_modeling import generate, sampler

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
