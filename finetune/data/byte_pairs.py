"""A tokenizer of byte pairs, as GPT-2 has one, learnt from a text; plain `transformers` saves and loads it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from finetune.data.characters import END, character_tokenizer
from finetune.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Every byte and the end: what is there before the first pair is joined.
FEWEST_TOKENS = 257


def learnt_tokenizer(texts: Iterable[str], byte_pairs: int | None) -> PreTrainedTokenizerBase:
    """A tokenizer for a model that begins from random weights: the texts' characters, or so many byte pairs.

    Raises:
        ConfigError: so few that not every byte has a token.
    """
    if byte_pairs is None:
        return character_tokenizer(texts)
    if byte_pairs < FEWEST_TOKENS:
        raise ConfigError(
            f"model.byte_pairs={byte_pairs} is less than the {FEWEST_TOKENS - 1} bytes and the end token need.",
            f"Set {FEWEST_TOKENS} or more, or `none` for characters.",
        )
    return byte_pair_tokenizer(texts, byte_pairs)


def byte_pair_tokenizer(texts: Iterable[str], tokens: int) -> PreTrainedTokenizerBase:
    """`tokens` tokens: each byte, an end, and the commonest pairs of the texts; fewer where the texts have no more.

    Over bytes, so that no text is unknown and decoding gives it back to the character.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )
