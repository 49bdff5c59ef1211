"""The character tokenizer: text to ids and back without loss, also after plain transformers loaded it."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from finetune.data.characters import character_tokenizer

pytestmark = pytest.mark.unit

TEXT = "First Citizen:\nBefore we  proceed,\tspeak.\n\n'Tis — done! ü"


def test_round_trip_after_saving(tmp_path: Path) -> None:
    made = character_tokenizer([TEXT])
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    ids = loaded(TEXT)["input_ids"]
    assert len(ids) == len(TEXT)
    assert ids == made(TEXT)["input_ids"] == [sorted(set(TEXT)).index(char) for char in TEXT]
    assert loaded.decode(ids) == TEXT
    assert len(loaded) == len(set(TEXT)) + 2
    assert loaded.eos_token_id == len(set(TEXT))


def test_unknown_characters_and_the_end_are_tokens_of_their_own() -> None:
    tokenizer = character_tokenizer(["ab"])
    assert tokenizer("aZb\u20ac")["input_ids"] == [0, 3, 1, 3]
    assert tokenizer.convert_tokens_to_ids(tokenizer.eos_token) == 2
