"""A tokenizer whose tokens are the characters of a text, which plain `transformers` saves and loads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END, UNKNOWN = "<|endoftext|>", "<|unknown|>"


def character_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """One token for each character that the texts hold, sorted, then an end and one for all other characters.

    Nothing is normalised, so decoding gives the text back to the character.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocabulary = {token: index for index, token in enumerate([*sorted(characters), END, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()  # without it decoding puts a space between tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
